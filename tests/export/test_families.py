"""Checkpoints of other projects through ``qtl-export``: what can be exported, and what the refusals say."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnx
import pytest

from edge_runtime.encoder import Encoder
from edge_runtime.picture import prepare
from qtl_core.bundle import open_half
from qtl_export.cli import main
from tests.export.test_unused_layers import layers_of
from tests.nn import foreign
from tests.nn.test_family_tinyllava import GOLDEN, stage_quantized


def test_a_llava_without_quantizer_is_exported_unquantized(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    foreign.make_llava(tmp_path / "mine", layer=[-2, -1])
    bundle = tmp_path / "bundle"
    assert main(["--bits", "16", str(tmp_path / "mine"), "-o", str(bundle), "--validate", "4", "--json"]) == 0
    said = json.loads(capsys.readouterr().out)
    assert (said["model"], said["tokens"], said["code_dim"]) == ("mine", 16, foreign.WIDTH)
    assert said["validation"]["passed"] and said["validation"]["answers"]["asked"] == 4
    manifest = json.loads((bundle / "client" / "manifest.json").read_text())
    assert manifest["picture"]["fit"] == "crop"
    assert manifest["template"]["before_image"] == "USER: "


@pytest.mark.parametrize("bits", [["--bits", "2"], ["--levels", "5"], ["--bits", "auto"]])
def test_codes_need_a_quantizer(tmp_path: Path, capsys: pytest.CaptureFixture[str], bits: list[str]) -> None:
    foreign.make_llava(tmp_path / "mine")
    assert main([*bits, str(tmp_path / "mine"), "-o", str(tmp_path / "bundle")]) == 4
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert error.startswith("error: ") and "has no quantizer" in error and "--bits 16" in error
    assert not (tmp_path / "bundle").exists()


def test_questions_as_codes_need_a_quantizer_too(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    foreign.make_llava(tmp_path / "mine")
    options = ["--bits", "16", "--text", "codes", "-o", str(tmp_path / "bundle")]
    assert main([str(tmp_path / "mine"), *options]) == 4
    assert "no language quantizer" in capsys.readouterr().err


def test_quantized_tinyllava_is_exported_with_its_own_quantizers(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = stage_quantized(tmp_path / "theirs")
    bundle = tmp_path / "bundle"
    options = ["--bits", "2", "--text", "codes", "-o", str(bundle), "--validate", "64", "--json"]
    assert main([str(folder), *options]) == 0
    said = json.loads(capsys.readouterr().out)
    assert (said["levels"], said["tokens"], said["code_dim"], said["payload_bytes"]) == (4, 15, 64, 240)
    assert said["validation"]["passed"] and said["validation"]["codes"]["compared"] == 64 * 15 * 64
    # The last of its tower's four layers is not read, and not in the graph.
    graph = onnx.load(bundle / "client" / "client.onnx").graph
    assert layers_of([one.name for one in graph.initializer]) == {0, 1, 2}
    # The device's own code makes the bytes that project made of the picture.
    expected = np.load(GOLDEN / "quantized_tinyllava" / "expected.npz", allow_pickle=False)
    half = open_half(bundle / "client", "client")
    pixels = prepare(GOLDEN / "tinyllava" / "image.png", half.manifest.picture)
    assert Encoder(half).run(pixels[None]) == [expected["image_packed"].tobytes()]
