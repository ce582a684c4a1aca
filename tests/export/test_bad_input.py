"""What ``qtl-export`` says of checkpoints and folders that cannot be used: one line, and its exit code."""

from __future__ import annotations

import json
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from qtl_export.cli import main
from tests.export.test_cli import one_line
from tests.nn import foreign
from tests.nn.test_family_tinyllava import GOLDEN

RAN: list[str] = []


class Code:
    """What a hostile pickle holds: a call that happens while it is read."""

    def __reduce__(self) -> tuple[Callable[[str], None], tuple[str]]:
        return RAN.append, ("ran",)


@pytest.fixture(scope="module")
def sharded(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("llava") / "mine"
    foreign.make_llava(folder, shard="60KB")
    return folder


@pytest.fixture
def mine(sharded: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(sharded, tmp_path / "mine"))


def one_file(folder: Path) -> dict[str, torch.Tensor]:
    """Takes the shards away; returns what was in them."""
    shards = list(folder.glob("*.safetensors"))
    tensors = {name: tensor for shard in shards for name, tensor in load_file(shard).items()}
    for path in (*shards, folder / "model.safetensors.index.json"):
        path.unlink()
    return tensors


def missing(folder: Path) -> None:
    tensors = one_file(folder)
    del tensors["language_model.model.layers.1.mlp.up_proj.weight"]
    save_file(tensors, folder / "model.safetensors")


def extra(folder: Path) -> None:
    save_file({**one_file(folder), "language_model.lora_a": torch.zeros(2)}, folder / "model.safetensors")


def lost_shard(folder: Path) -> None:
    sorted(folder.glob("model-*.safetensors"))[-1].unlink()


def half_a_shard(folder: Path) -> None:
    shard = sorted(folder.glob("model-*.safetensors"))[-1]
    shard.write_bytes(shard.read_bytes()[:-1])


def code_in_a_pickle(folder: Path) -> None:
    one_file(folder)
    (folder / "pytorch_model.bin").write_bytes(pickle.dumps({"a": Code()}))


def quantized_already(folder: Path) -> None:
    tensors = one_file(folder)
    name = "language_model.model.layers.1.mlp.up_proj.weight"
    save_file({**tensors, name: tensors[name].to(torch.int8)}, folder / "model.safetensors")


def strange_activation(folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "projector_hidden_act": "swoosh"}))


def strange_connector(folder: Path) -> None:
    shutil.rmtree(folder)
    shutil.copytree(GOLDEN / "tinyllava" / "tinyllava-tiny", folder)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "connector_type": "mixture_of_experts"}))


@pytest.mark.parametrize(
    ("spoil", "named"),
    [
        (missing, "lacks decoder.model.layers.1.mlp.up_proj.weight of the model"),
        (extra, "has language_model.lora_a, for which the model"),
        (lost_shard, "is the download complete?"),
        (half_a_shard, "it is damaged or half-downloaded, download it again"),
        (code_in_a_pickle, "pytorch_model.bin is refused"),
        (quantized_already, "up_proj.weight is stored as int8"),
        (strange_activation, "projector_hidden_act"),
        (strange_connector, "mixture_of_experts"),
    ],
)
def test_checkpoints(
    spoil: Callable[[Path], None],
    named: str,
    mine: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    spoil(mine)
    assert main(["--bits", "16", str(mine), "-o", str(tmp_path / "bundle")]) == 4
    assert named in one_line(capsys.readouterr().err)
    assert [path.name for path in tmp_path.iterdir()] == ["mine"]
    assert RAN == []
    # The look at it that loads nothing says the same.
    assert main(["inspect", str(mine)]) == 4
    assert named in one_line(capsys.readouterr().err)


@pytest.mark.parametrize("option", ["--pictures", "--calibrate"])
@pytest.mark.parametrize("kind", ["empty", "only text", "absent", "a file"])
def test_folders_without_pictures(
    option: str, kind: str, checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "pictures"
    if kind == "a file":
        folder.write_text("no folder")
    elif kind != "absent":
        folder.mkdir()
        if kind == "only text":
            (folder / "notes.txt").write_text("no picture")
    assert main(["--bits", "2", str(checkpoint), option, str(folder), "-o", str(tmp_path / "bundle")]) == 3
    line = one_line(capsys.readouterr().err)
    assert str(folder) in line and ("there is no picture" in line or "cannot read the folder" in line)
    assert not (tmp_path / "bundle").exists()
