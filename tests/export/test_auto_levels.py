"""``--bits auto``: levels from the entropy of the features of real pictures."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from qtl_core.bundle import open_half
from qtl_core.errors import InputError
from qtl_core.level_selection import feature_entropy, recommend
from qtl_core.nn.calibration import cut_features
from qtl_core.nn.checkpoint import load_checkpoint, save_checkpoint
from qtl_export.auto_levels import choose_levels
from qtl_export.cli import main
from qtl_export.config import ExportConfig
from qtl_export.progress import Progress
from tests.export.conftest import CODE_DIM, TOKENS, smooth

ENOUGH = 60
"""Pictures of 20 codes each that hold two batches of 500."""


@pytest.fixture(scope="module")
def album(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("album")
    for index, picture in enumerate(smooth(ENOUGH, 5)):
        Image.fromarray(picture).save(folder / f"{index:03}.png")
    return folder


def error_line(captured: str) -> str:
    assert "Traceback" not in captured
    return captured.splitlines()[-1]


@pytest.mark.usefixtures("traced")
def test_the_bundle_has_the_levels_of_the_rule(
    checkpoint: Path, album: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bundle = tmp_path / "bundle"
    args = [str(checkpoint), "--bits", "auto", "--pictures", str(album), "-o", str(bundle), "--validate", "4"]
    assert main([*args, "--json"]) == 0
    said = json.loads(capsys.readouterr().out)
    auto = said["auto"]
    assert auto["levels"] == said["levels"] == recommend(auto["entropy_bits"]["mean"])
    assert auto["pictures"] == ENOUGH and auto["batches"] == 2 and auto["source"] == "pictures of the user"
    assert auto["values"] + round(auto["atoms"]["share"] * ENOUGH * TOKENS * CODE_DIM) == 1200
    assert open_half(bundle, "client").manifest.cut.levels == auto["levels"]
    assert main(args) == 0
    first = capsys.readouterr().out.splitlines()[0]
    assert first.startswith(f"--bits auto: {auto['because']}") and "pictures of the user" in first


def test_the_choice_is_of_the_features_at_the_cut(checkpoint: Path, album: Path) -> None:
    loaded = load_checkpoint(checkpoint)
    chosen = choose_levels(loaded, album, Progress())
    quantizer = loaded.model.vision_quantizer
    with torch.no_grad():
        z = quantizer.project(loaded.model.vision(torch.from_numpy(smooth(ENOUGH, 5))))
    # scaling = "image": each picture has a mean and a deviation of its own.
    scaled = (z - z.mean((1, 2), keepdim=True)) / z.std((1, 2), keepdim=True)
    assert chosen.entropy.mean == pytest.approx(feature_entropy(scaled.numpy(), 2).mean, abs=1e-3)


def test_features_do_not_depend_on_how_many_pass_together(checkpoint: Path) -> None:
    vision = load_checkpoint(checkpoint).model.vision
    pictures = smooth(37, 6)
    starts: list[int] = []

    def follow(walk: range) -> range:
        starts.extend(walk)
        return walk

    features = cut_features(vision, pictures, follow=follow)
    assert features.shape == (37, 16, 16) and features.dtype == np.float32
    assert starts == [0, 16, 32]
    np.testing.assert_allclose(features[33], cut_features(vision, pictures[33:34])[0], atol=1e-5)


def test_other_levels_have_no_reason_to_give(
    checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], traced: None
) -> None:
    args = [str(checkpoint), "--levels", "5", "-o", str(tmp_path / "b"), "--validate", "0", "--json"]
    assert main(args) == 0
    assert json.loads(capsys.readouterr().out)["auto"] is None


def test_too_few_pictures_say_how_many(
    checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The tiny checkpoint's own 12 held-out pictures have 240 features."""
    assert main([str(checkpoint), "--bits", "auto", "-o", str(tmp_path / "b")]) == 3
    line = error_line(capsys.readouterr().err)
    assert "2 batches need 500 features each, and one has 120" in line
    assert "12 pictures of 20 features; give 50 pictures or more" in line
    assert list(tmp_path.iterdir()) == []


def test_no_real_pictures(checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Made-up pictures do for comparing two runtimes, not for choosing levels."""
    bare = tmp_path / "checkpoint"
    shutil.copytree(checkpoint, bare)
    (bare / "held_out.npz").unlink()
    assert main([str(bare), "--bits", "auto", "-o", str(tmp_path / "b")]) == 3
    assert "--pictures" in error_line(capsys.readouterr().err)


def test_weights_that_give_nan(
    checkpoint: Path, album: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    loaded = load_checkpoint(checkpoint)
    with torch.no_grad():
        loaded.model.vision_quantizer.in_proj.bias[2] = torch.nan
    broken = tmp_path / "checkpoint"
    save_checkpoint(broken, loaded.llava, loaded.model, loaded.settings, loaded.tokenizer, loaded.processor)
    args = [str(broken), "--bits", "auto", "--pictures", str(album), "-o", str(tmp_path / "b")]
    assert main(args) == 3
    assert "NaN" in error_line(capsys.readouterr().err)


def test_the_same_picture_over_and_over(checkpoint: Path, tmp_path: Path) -> None:
    folder = tmp_path / "album"
    folder.mkdir()
    Image.fromarray(smooth(1, 7)[0]).save(folder / "0.png")
    for index in range(1, ENOUGH):
        shutil.copy(folder / "0.png", folder / f"{index}.png")
    with pytest.raises(InputError, match="exact repeats"):
        choose_levels(load_checkpoint(checkpoint), folder, Progress())


def test_auto_beside_levels(checkpoint: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(checkpoint), "--bits", "auto", "--levels", "4"]) == 2
    assert "either --bits" in capsys.readouterr().err
    with pytest.raises(InputError, match="chosen automatically"):
        ExportConfig(checkpoint=checkpoint, levels=4, auto=True)
