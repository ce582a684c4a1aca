"""``qtl-export inspect``: what it says of checkpoints of each family, and that it loads no weights."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from qtl_core.nn.checkpoint import load_checkpoint
from qtl_export.cli import main
from tests.nn import foreign
from tests.nn.test_family_tinyllava import stage_quantized


def inspected(capsys: pytest.CaptureFixture[str], *options: str) -> dict[str, Any]:
    assert main(["inspect", *options, "--json"]) == 0
    said: dict[str, Any] = json.loads(capsys.readouterr().out)
    return said


def test_a_llava(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    foreign.make_llava(tmp_path, layer=-2)
    said = inspected(capsys, str(tmp_path))
    assert (said["family"], said["tower"], said["decoder"]) == ("llava", "clip_vision_model", "llama")
    assert (said["picture"], said["fit"], said["quantizer"]) == ([28, 28], "crop", None)
    assert (said["tokens"], said["tower_width"], said["width"]) == (16, 24, 32)
    assert said["bytes_by_bits"]["2"] == 16 * 32 // 4 and said["bytes_by_bits"]["16"] == 16 * 32 * 2
    model = load_checkpoint(tmp_path).model
    assert said["server_parameters"] == sum(one.numel() for one in model.decoder.parameters())
    # Hidden state -2 of 3 layers: the third layer and the norm behind it are no part of the graph.
    behind = ("tower.encoder.layers.2.", "tower.post_layernorm.")
    needed = sum(one.numel() for name, one in model.vision.named_parameters() if not name.startswith(behind))
    assert said["client_parameters"] == needed
    assert 4 * needed < said["peak_bytes"] < 4 * needed + 1_000_000


def test_operations_are_counted_by_hand(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    foreign.make_llava(tmp_path, "siglip_vision_model", layer=-2, select="full")
    tokens, width, mlp, patch = 16, 24, 40, 3 * 7 * 7
    layer = 4 * tokens * width**2 + 2 * tokens * width * mlp + 2 * tokens**2 * width
    connector = tokens * (width * 32 + 32 * 32)
    expected = 2 * (tokens * patch * width + 2 * layer + connector)
    assert inspected(capsys, str(tmp_path))["gflop"] * 1e9 == pytest.approx(expected)


def test_quantizers_are_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    said = inspected(capsys, str(stage_quantized(tmp_path / "theirs")))
    assert said["family"] == "quantized-tinyllava" and said["quantizer"]["levels"] == 4
    assert (said["coded_tokens"], said["code_dim"], said["bytes_by_bits"]["2"]) == (15, 64, 240)


def test_the_shipped_checkpoint_is_looked_at_by_default(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["inspect"]) == 0
    out = capsys.readouterr().out
    assert "siglip_stem_vision_model" in out and "9 x 32 codes" in out and "2 bit: 72 " in out


def test_no_weights_are_loaded_and_missing_ones_are_found(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    foreign.make_llava(tmp_path, shard="60KB")
    model = load_checkpoint(tmp_path, weights=False).model
    assert all(parameter.is_meta for parameter in model.decoder.parameters())
    assert all(parameter.is_meta for parameter in model.vision.tower.parameters())
    sorted(tmp_path.glob("model-*.safetensors"))[1].unlink()
    assert main(["inspect", str(tmp_path)]) == 4
    assert "lacks 1 of" in capsys.readouterr().err


def test_a_shape_that_does_not_fit_is_found(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from safetensors.torch import load_file, save_file

    foreign.make_llava(tmp_path)
    tensors = load_file(tmp_path / "model.safetensors")
    tensors["language_model.lm_head.weight"] = torch.zeros(3, 3)
    save_file(tensors, tmp_path / "model.safetensors")
    assert main(["inspect", str(tmp_path)]) == 4
    assert "lm_head.weight is [3, 3]" in capsys.readouterr().err
