"""Layers behind the hidden state that is read are in neither half of a bundle, in any family."""

from __future__ import annotations

import dataclasses
import shutil
from collections.abc import Callable
from pathlib import Path

import onnx
import pytest
from onnx import numpy_helper
from safetensors.torch import load_file

from qtl_core.nn.checkpoint import Checkpoint, load_checkpoint
from qtl_core.nn.model import VisionEncoder
from qtl_core.nn.server_partition import WEIGHTS_FILE, write_server_half
from qtl_export.cost import client_parameters
from qtl_export.graph import export_graph
from qtl_export.halves import Agreement
from tests.nn import foreign
from tests.nn.paligemma import make_paligemma
from tests.nn.test_family_tinyllava import FINISHED, stage_quantized

# Folder -> a checkpoint in it, and how many of the tower's layers its graph needs.
Make = Callable[[Path], int]


def llava(tower: str, layer: int | list[int], needed: int) -> Make:
    def make(folder: Path) -> int:
        foreign.make_llava(folder, tower, layer=layer)
        return needed

    return make


def paligemma(folder: Path) -> int:
    make_paligemma(folder)
    return 3


def tinyllava(folder: Path) -> int:
    shutil.copytree(FINISHED, folder)
    return -1


def quantized_tinyllava(folder: Path) -> int:
    stage_quantized(folder)
    return -1


MAKES: dict[str, Make] = {
    "llava-clip": llava("clip_vision_model", -2, 2),
    "llava-siglip": llava("siglip_vision_model", -2, 2),
    "llava-clip-first": llava("clip_vision_model", 1, 1),
    "llava-siglip-several": llava("siglip_vision_model", [0, -3], 1),
    "llava-clip-last": llava("clip_vision_model", -1, 3),
    "paligemma": paligemma,
    "tinyllava": tinyllava,
    "quantized-tinyllava": quantized_tinyllava,
}


def layers_of(names: list[str]) -> set[int]:
    """Numbers of the tower's layers that tensors are of."""
    inside = [name.partition(".layers.")[2] for name in names if "tower" in name and ".layers." in name]
    return {int(rest.partition(".")[0]) for rest in inside}


def depth_of(vision: VisionEncoder) -> int:
    return int(vision.tower.config.num_hidden_layers)


def check_graph(checkpoint: Checkpoint, levels: int, needed: int, folder: Path) -> None:
    vision = checkpoint.model.vision
    # "patch" and -2 of the golden folders: all but the last.
    needed = depth_of(vision) - 1 if needed < 0 else needed
    initializers = onnx.load(export_graph(checkpoint, levels, folder)).graph.initializer
    weights = [one for one in initializers if ".weight" in one.name or ".bias" in one.name]
    held = layers_of([one.name for one in weights])
    print(f"{checkpoint.family}: layers {sorted(held)} of {depth_of(vision)}")
    assert held == set(range(needed))
    has_norm = any("post_layernorm" in one.name for one in initializers)
    assert has_norm == vision.settings.final_norm
    # By bytes too, whatever the exporter calls them: what is needed, small constants beside it, less where
    # it stores equal tensors once or folds a batch norm into the convolution in front.
    expected = 4 * client_parameters(vision)
    if levels:
        expected += 4 * sum(one.numel() for one in checkpoint.model.vision_quantizer.in_proj.parameters())
    found = sum(numpy_helper.to_array(one).nbytes for one in initializers)
    first = vision.tower.get_submodule("encoder.layers.0")
    a_layer = 4 * sum(one.numel() for one in first.parameters())
    assert abs(found - expected) < a_layer / 2


def check_server(checkpoint: Checkpoint, levels: int, folder: Path) -> None:
    agreement = Agreement.of(checkpoint, levels, "plain")
    write_server_half(folder, checkpoint, agreement.cut, agreement.text)
    tensors = load_file(folder / WEIGHTS_FILE)
    assert {name.partition(".")[0] for name in tensors} <= {"decoder", "vision_dequantizer"}
    decoder = sum(one.numel() for one in checkpoint.model.decoder.parameters())
    out = sum(one.numel() for name, one in tensors.items() if name.startswith("vision_dequantizer."))
    assert sum(one.numel() for one in tensors.values()) == decoder + out


def run(make: Make, folder: Path) -> None:
    needed = make(folder / "mine")
    checkpoint = load_checkpoint(folder / "mine")
    levels = checkpoint.settings.vision.levels if checkpoint.model.quantized else 0
    (folder / "client").mkdir()
    check_graph(checkpoint, levels, needed, folder / "client")
    check_server(checkpoint, levels, folder / "server")


@pytest.mark.slow
@pytest.mark.parametrize("make", MAKES.values(), ids=MAKES.keys())
def test_unused_layers_are_dropped_in_every_family(make: Make, tmp_path: Path) -> None:
    run(make, tmp_path)


@pytest.mark.slow
def test_unused_layers_are_dropped_of_our_own_layout(checkpoint: Path, tmp_path: Path) -> None:
    # The tiny one reads its only layer; with the layer before it, none is left.
    ours = load_checkpoint(checkpoint)
    vision = ours.model.vision
    depth = depth_of(vision)
    for layer, needed in ((-1, depth), (-2, depth - 1)):
        vision.settings = dataclasses.replace(vision.settings, feature_layer=layer)
        folder = tmp_path / str(needed)
        folder.mkdir()
        check_graph(ours, 4, needed, folder)
    check_server(ours, 4, tmp_path / "server")
