"""Weight files: lazily, in shards, of any plain type; everything broken or hostile is one clear line."""

from __future__ import annotations

import json
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from qtl_core.errors import CheckpointError
from qtl_core.nn.checkpoint import load_checkpoint
from qtl_core.nn.weights import Weights
from tests.nn import foreign

RAN: list[str] = []


class Code:
    """What a hostile pickle holds: a call that happens while it is read."""

    def __reduce__(self) -> tuple[Callable[[str], None], tuple[str]]:
        return RAN.append, ("ran",)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("llava") / "whole"
    foreign.make_llava(folder)
    return folder


@pytest.fixture(scope="module")
def sharded(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("llava") / "sharded"
    foreign.make_llava(folder, shard="60KB")
    assert len(list(folder.glob("*.safetensors"))) > 2
    return folder


@pytest.fixture
def copy(whole: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(whole, tmp_path / "copy"))


@pytest.fixture
def shards(sharded: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(sharded, tmp_path / "shards"))


def refused(folder: Path, named: str) -> str:
    with pytest.raises(CheckpointError, match=named) as caught:
        load_checkpoint(folder)
    assert caught.value.exit_code == 4
    assert "\n" not in str(caught.value)
    return str(caught.value)


def rewrite(folder: Path, change: Callable[[dict[str, torch.Tensor]], object]) -> None:
    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    save_file(tensors, folder / "model.safetensors")


def test_shards_and_one_file_are_the_same_model(whole: Path, sharded: Path) -> None:
    one, many = (load_checkpoint(folder).model.state_dict() for folder in (whole, sharded))
    assert one.keys() == many.keys()
    assert all(torch.equal(one[name], many[name]) for name in one)


def test_a_pytorch_file_of_plain_tensors_is_read(copy: Path, whole: Path) -> None:
    torch.save(load_file(copy / "model.safetensors"), copy / "pytorch_model.bin")
    (copy / "model.safetensors").unlink()
    read, expected = load_checkpoint(copy).model.state_dict(), load_checkpoint(whole).model.state_dict()
    assert all(torch.equal(read[name], expected[name]) for name in expected)


def test_shapes_are_known_without_reading(whole: Path) -> None:
    weights = Weights(whole)
    assert weights.shape("multi_modal_projector.linear_1.weight") == (32, 24)
    assert len(weights) == len(list(weights)) > 20


def test_a_pickle_with_code_is_refused_and_not_run(copy: Path) -> None:
    (copy / "model.safetensors").unlink()
    for protocol in (2, 4):
        (copy / "pytorch_model.bin").write_bytes(pickle.dumps({"a": Code()}, protocol))
        refused(copy, "pytorch_model.bin is refused.*get the checkpoint as safetensors")
    torch.save({"a": Code()}, copy / "pytorch_model.bin")
    refused(copy, "pytorch_model.bin is refused")
    assert RAN == []


def test_something_else_than_tensors_is_refused(copy: Path) -> None:
    (copy / "model.safetensors").unlink()
    torch.save({"epoch": 3}, copy / "pytorch_model.bin")
    refused(copy, "something else than named tensors")


def test_missing_tensors_are_named(copy: Path) -> None:
    rewrite(copy, lambda tensors: tensors.pop("multi_modal_projector.linear_2.bias"))
    refused(copy, r"lacks connector\.linear_2\.bias of the model")


def test_many_missing_tensors_are_counted(copy: Path) -> None:
    rewrite(copy, lambda tensors: [tensors.pop(name) for name in list(tensors) if ".mlp." in name])
    assert refused(copy, "and 15 more").count("mlp") == 3


def test_extra_tensors_are_named(copy: Path) -> None:
    rewrite(copy, lambda tensors: tensors.update(adapter=torch.zeros(2)))
    refused(copy, "has adapter, for which the model.*no place")


def test_another_shape_is_named(copy: Path) -> None:
    name = "multi_modal_projector.linear_2.bias"
    rewrite(copy, lambda tensors: tensors.update({name: torch.zeros(7)}))
    refused(copy, r"linear_2\.bias is \[7\], its config\.json asks for \[32\]")


def test_weights_quantized_already_are_refused(copy: Path) -> None:
    name = "multi_modal_projector.linear_2.bias"
    rewrite(copy, lambda tensors: tensors.update({name: torch.zeros(32, dtype=torch.int8)}))
    refused(copy, "stored as int8")


def test_buffers_of_older_files_are_passed_over(copy: Path) -> None:
    rewrite(
        copy,
        lambda tensors: tensors.update(
            {
                "language_model.model.layers.0.self_attn.rotary_emb.inv_freq": torch.zeros(8),
                "vision_tower.vision_model.embeddings.position_ids": torch.zeros(1, 17, dtype=torch.int64),
            }
        ),
    )
    load_checkpoint(copy)


@pytest.mark.parametrize("older", [True, False])
def test_names_of_other_versions_of_transformers(copy: Path, whole: Path, older: bool) -> None:
    def rename(name: str) -> str:
        if older:
            return name.replace("vision_tower.", "vision_tower.vision_model.")
        if name == "language_model.lm_head.weight":
            return "lm_head.weight"
        return "model." + name.replace("language_model.model.", "language_model.")

    tensors = load_file(copy / "model.safetensors")
    save_file({rename(name): tensor for name, tensor in tensors.items()}, copy / "model.safetensors")
    read, expected = load_checkpoint(copy).model.state_dict(), load_checkpoint(whole).model.state_dict()
    assert all(torch.equal(read[name], expected[name]) for name in expected)


def test_a_shard_that_is_missing_is_named(shards: Path) -> None:
    lost = sorted(shards.glob("model-*.safetensors"))[1]
    lost.unlink()
    refused(shards, f"lacks 1 of .* shards: {lost.name}; is the download complete")


def test_a_half_downloaded_shard_is_named(shards: Path) -> None:
    half = sorted(shards.glob("model-*.safetensors"))[1]
    half.write_bytes(half.read_bytes()[: half.stat().st_size // 2])
    refused(shards, f"{half.name} cannot be read.*half-downloaded, download it again")


def test_a_half_downloaded_pytorch_file_is_named(copy: Path) -> None:
    torch.save(load_file(copy / "model.safetensors"), copy / "pytorch_model.bin")
    (copy / "model.safetensors").unlink()
    data = (copy / "pytorch_model.bin").read_bytes()
    for size in (len(data) // 2, 100, 0):
        (copy / "pytorch_model.bin").write_bytes(data[:size])
        refused(copy, r"pytorch_model\.bin (cannot be read.*half-downloaded|is refused)")


def test_a_shard_of_another_model_is_named(shards: Path) -> None:
    first, second = sorted(shards.glob("model-*.safetensors"))[:2]
    shutil.copy(first, second)
    refused(shards, f"{second.name} lacks .* which its index says it has")


@pytest.mark.parametrize("file", ["../other.safetensors", "/etc/passwd", "..", 3])
def test_an_index_reaches_no_other_folder(shards: Path, file: Any) -> None:
    index = shards / "model.safetensors.index.json"
    names = json.loads(index.read_text())
    names["weight_map"][next(iter(names["weight_map"]))] = file
    index.write_text(json.dumps(names))
    refused(shards, "not one beside it")


def test_a_pointer_instead_of_a_file_is_named(copy: Path) -> None:
    (copy / "model.safetensors").write_text(
        "version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n"
    )
    refused(copy, "only a Git LFS pointer")


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"model_type": "mamba"}, "'mamba'; known here: 'llava'"),
        ({"vision_config": {"model_type": "resnet"}}, "tower of the kind 'resnet'; known here: clip"),
        ({"text_config": {"model_type": "rwkv"}}, "decoder of the kind 'rwkv'; known here: gemma"),
        ({"text_config": None}, "decoder of the kind None"),
        ({"vision_feature_layer": "last"}, "vision_feature_layer 'last'"),
        ({"vision_feature_select_strategy": "cls"}, "'cls' is not one of default, full"),
        ({"projector_hidden_act": "swoosh"}, "projector_hidden_act"),
        ({"quantization_config": {"bits": 4}}, "quantized weights"),
    ],
)
def test_settings_that_are_not_supported_are_named(copy: Path, change: dict[str, Any], named: str) -> None:
    config = json.loads((copy / "config.json").read_text())
    (copy / "config.json").write_text(json.dumps({**config, **change}))
    refused(copy, named)


def test_pictures_of_another_size_than_the_tower_are_named(copy: Path) -> None:
    processor = json.loads((copy / "preprocessor_config.json").read_text())
    processor |= {"size": {"shortest_edge": 56}, "crop_size": 56}
    (copy / "preprocessor_config.json").write_text(json.dumps(processor))
    refused(copy, "makes pictures of 56 x 56, the tower takes 28 x 28")


def test_a_further_quantizer_cannot_be_asked_for(whole: Path) -> None:
    with pytest.raises(CheckpointError, match="no quantizer 'small'"):
        load_checkpoint(whole, quantizer="small")


def test_what_has_no_quantizer_says_so(whole: Path) -> None:
    model = load_checkpoint(whole).model
    with pytest.raises(CheckpointError, match=r"no vision quantizer.*--bits 16"):
        _ = model.vision_quantizer
    with pytest.raises(CheckpointError, match=r"no language quantizer.*--text plain"):
        _ = model.language_quantizer


def test_training_says_which_layout_it_takes(whole: Path) -> None:
    with pytest.raises(CheckpointError, match="'llava', which can be exported but not trained"):
        _ = load_checkpoint(whole).llava
