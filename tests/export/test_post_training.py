"""Quantizers fitted to pictures: for checkpoints that have none, in closed form, through ``qtl-export``."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from qtl_core.bundle import open_half
from qtl_core.nn.checkpoint import load_checkpoint
from qtl_export.cli import main
from qtl_export.post_training import PostTraining
from qtl_export.progress import Progress
from qtl_training.digits.scenes import render, sample
from tests.nn import foreign


def make_pictures(folder: Path, n: int = 24) -> Path:
    """Soft blobs of colour."""
    rng = np.random.default_rng(5)
    folder.mkdir()
    for index in range(n):
        small = Image.fromarray(rng.integers(0, 256, (4, 4, 3), dtype=np.uint8))
        small.resize((40, 32), Image.Resampling.BICUBIC).save(folder / f"{index:03}.png")
    return folder


def test_a_checkpoint_without_quantizer_gets_one(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    foreign.make_llava(tmp_path / "mine")
    pictures, bundle = make_pictures(tmp_path / "pictures"), tmp_path / "bundle"
    options = ["--calibrate", str(pictures), "-o", str(bundle), "--validate", "16", "--json"]
    assert main(["--bits", "2", str(tmp_path / "mine"), *options]) == 0
    said = json.loads(capsys.readouterr().out)
    assert (said["levels"], said["code_dim"], said["payload_bytes"]) == (4, foreign.WIDTH, 16 * 32 // 4)
    fitted = said["fitted"]
    assert (fitted["pictures"], fitted["pictures_aside"], fitted["levels"]) == (20, 4, 4)
    assert said["validation"]["passed"] and said["validation"]["codes"]["differ"] == 0
    manifest = open_half(bundle / "client", "client").manifest
    assert manifest.cut.levels == 4
    # Fewer codes, and levels by entropy.
    options = [*options[:4], "--code-dim", "8", "--validate", "4", "--json"]
    assert main(["--bits", "auto", str(tmp_path / "mine"), *options]) == 0
    said = json.loads(capsys.readouterr().out)
    assert said["code_dim"] == 8 and said["levels"] == said["auto"]["levels"] == said["fitted"]["levels"]
    assert said["fitted"]["snr_db"] < fitted["snr_db"]


def test_more_levels_restore_more_and_k_is_the_best(tmp_path: Path) -> None:
    foreign.make_llava(tmp_path / "mine")
    checkpoint = load_checkpoint(tmp_path / "mine")
    post = PostTraining(checkpoint, make_pictures(tmp_path / "pictures"), None, Progress())
    found = [post.fitted(levels)[1] for levels in (2, 4, 16, 256)]
    decibels = [one.snr_db for one in found]
    assert decibels == sorted(decibels) and decibels[-1] > decibels[0] + 20
    assert [one.k for one in found] == sorted(one.k for one in found)  # finer steps reach farther out


def test_the_shipped_model_answers_from_fitted_codes(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    scenes = sample("train", 40, 11)
    (tmp_path / "pictures").mkdir()
    for index, picture in enumerate(render(scenes, slice(None))):
        Image.fromarray(picture).save(tmp_path / "pictures" / f"{index:03}.png")
    right = {}
    for bits, code_dim in (("4", "128"), ("1", "2")):
        options = ["--calibrate", str(tmp_path / "pictures"), "-o", str(tmp_path / "bundle"), "--json"]
        assert main(["--bits", bits, "--code-dim", code_dim, *options, "--validate", "24"]) == 0
        said = json.loads(capsys.readouterr().out)
        assert said["validation"]["passed"] and "held_out.npz" in said["validation"]["source"]
        assert said["validation"]["entropy"]["tables"] == "pictures of the user"
        answers = said["validation"]["answers"]
        right[bits] = answers["right"] / answers["known"]
    assert right["4"] > 0.9
    assert right["1"] < 0.7  # two bits a token say too little


@pytest.mark.parametrize(
    ("options", "code", "message"),
    [
        (["--bits", "16", "--calibrate", "DIR"], 2, "goes with neither --bits 16"),
        (["--quantizer", "tiny", "--calibrate", "DIR"], 2, "goes with neither --bits 16 nor --quantizer"),
        (["--bits", "2", "--code-dim", "8"], 2, "--code-dim goes with --calibrate"),
        (["--bits", "2", "--calibrate", "EMPTY"], 3, "there is no picture"),
        (["--bits", "2", "--calibrate", "DIR", "--code-dim", "999"], 3, "give 1 to 32"),
        (["--bits", "2", "--calibrate", "FEW"], 3, "give at least 9"),
    ],
)
def test_what_cannot_be_fitted(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], options: list[str], code: int, message: str
) -> None:
    foreign.make_llava(tmp_path / "mine")
    (tmp_path / "EMPTY").mkdir()
    make_pictures(tmp_path / "FEW", 3)
    make_pictures(tmp_path / "DIR")
    named = [str(tmp_path / one) if one.isupper() else one for one in options]
    assert main([*named, str(tmp_path / "mine"), "-o", str(tmp_path / "bundle")]) == code
    assert message in capsys.readouterr().err
    assert not (tmp_path / "bundle").exists()
