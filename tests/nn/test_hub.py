"""Ids of the hub in place of folders: downloaded once, cached, and every refusal in one line."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from huggingface_hub import constants

from qtl_core.errors import CheckpointError
from qtl_core.nn.checkpoint import load_checkpoint
from qtl_core.nn.hub import checkpoint_folder, model_name
from tests.nn import foreign
from tests.nn.hub_stand_in import COMMIT, NAME, Hub, serving
from tests.nn.test_family_tinyllava import stage


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    files = tmp_path / "published"
    files.mkdir()
    with serving(files) as hub:
        template = constants.HUGGINGFACE_CO_URL_TEMPLATE.replace(constants.ENDPOINT, hub.address)
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
        monkeypatch.setattr(constants, "ENDPOINT", hub.address)
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        monkeypatch.setattr(constants, "HF_HUB_DISABLE_IMPLICIT_TOKEN", True)
        monkeypatch.chdir(tmp_path)
        yield hub


def said(place: str) -> str:
    with pytest.raises(CheckpointError) as caught:
        load_checkpoint(place)
    assert caught.value.exit_code == 4 and "\n" not in str(caught.value)
    return str(caught.value)


def test_an_id_is_downloaded_once_and_read_like_a_folder(
    hub: Hub, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    foreign.make_llava(hub.folder, shard="40KB")
    for useless in ("model.gguf", "pytorch_model.bin", "consolidated.safetensors", "onnx/model.onnx"):
        (hub.folder / useless).parent.mkdir(exist_ok=True)
        (hub.folder / useless).write_bytes(b"x")
    checkpoint = load_checkpoint(f"{NAME}@main")
    assert checkpoint.settings.name == "tiny-llava" and checkpoint.path.name == COMMIT
    assert capfd.readouterr().err == ""
    wanted = {file.name for file in hub.folder.glob("model-*.safetensors")}
    assert wanted <= set(hub.got) and "config.json" in hub.got and "tokenizer.json" in hub.got
    assert not {"model.gguf", "pytorch_model.bin", "consolidated.safetensors", "onnx/model.onnx"} & set(
        hub.got
    )
    ours = load_checkpoint(hub.folder).model.state_dict()
    assert all(torch.equal(one, ours[name]) for name, one in checkpoint.model.state_dict().items())
    before = list(hub.got)
    load_checkpoint(NAME, weights=False)
    assert hub.got == before
    # Without a network, what is in the cache is enough.
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert checkpoint_folder(NAME) == checkpoint.path


def test_pytorchs_files_are_fetched_where_there_are_no_others(hub: Hub) -> None:
    hub.folder.rmdir()
    stage(hub.folder)
    folder = checkpoint_folder(NAME)
    assert {name for name in hub.got if name.endswith(".bin")} == {
        f"{part}/pytorch_model.bin" for part in ("language_model", "vision_tower", "connector")
    }
    assert load_checkpoint(NAME).path == folder


def test_a_folder_that_is_there_wins(hub: Hub, tmp_path: Path) -> None:
    foreign.make_llava(tmp_path / NAME)
    assert load_checkpoint(NAME).path == Path(NAME) and model_name(Path(NAME)) == "tiny-llava"
    assert hub.got == []


def test_what_is_no_id_is_not_looked_for(hub: Hub, tmp_path: Path) -> None:
    for place in (tmp_path / "nowhere", "nowhere", "./a/b", "a/b/c", "../b", "org/name@", "~/b", "a/.."):
        assert "no checkpoint at" in said(str(place))
        assert checkpoint_folder(place) == Path(place)


@pytest.mark.parametrize(
    ("place", "refuse", "named"),
    [
        (
            "somebody/else",
            "",
            "there is no folder somebody/else, and the hub .* has no somebody/else for you",
        ),
        (f"{NAME}@v7", "", f"no revision 'v7' of {NAME}"),
        (NAME, "GatedRepo", "is gated: accept its conditions at http.*hf auth login"),
        (NAME, "", f"{NAME} on the hub has no file of a checkpoint"),
    ],
)
def test_refusals_are_one_line(hub: Hub, place: str, refuse: str, named: str) -> None:
    hub.refuse = refuse
    assert re.search(named, said(place))


def test_no_network_and_no_copy(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert "is not asked while HF_HUB_OFFLINE is set; the cache has no complete copy" in said(NAME)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    assert "cannot be reached (" in said(NAME)


@pytest.mark.slow
def test_the_commands_take_ids(hub: Hub, tmp_path: Path) -> None:
    foreign.make_llava(hub.folder)
    settings = {**os.environ, "HF_ENDPOINT": hub.address, "HF_HOME": str(tmp_path / "home")}
    settings.pop("HF_HUB_OFFLINE", None)

    def run(*options: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "qtl_export.cli", *options]
        return subprocess.run(command, env=settings, cwd=tmp_path, capture_output=True, text=True)

    looked = run("inspect", NAME, "--json")
    assert looked.returncode == 0 and json.loads(looked.stdout)["checkpoint"] == NAME
    # The second time there is no network.
    settings["HF_HUB_OFFLINE"] = "1"
    exported = run("--bits", "16", NAME, "-o", "bundle", "--validate", "2", "--json")
    assert exported.returncode == 0, exported.stderr
    assert json.loads(exported.stdout)["model"] == "tiny-llava"
    refused = run("inspect", "somebody/else")
    assert refused.returncode == 4 and refused.stderr.strip().splitlines()[-1].startswith(
        "error: there is no"
    )
