"""Tables that a checkpoint brings: measured on scenes, written where the exporter looks."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner

from qtl_core.entropy_file import read_tables, tables_name
from qtl_core.errors import CheckpointError, InputError
from qtl_core.nn.checkpoint import (
    QUANTIZERS_FOLDER,
    Checkpoint,
    FurtherQuantizer,
    load_checkpoint,
    save_quantizer,
)
from qtl_training.digits.scenes import render, sample
from qtl_training.tables import add_tables, codes_of, scene_features
from qtl_training.train_cli import cli


@pytest.fixture
def folder(tiny_folder: Path, tmp_path: Path) -> Path:
    """A copy of the tiny checkpoint, to be written into."""
    shutil.copytree(tiny_folder, tmp_path / "checkpoint")
    return tmp_path / "checkpoint"


def test_tables_are_written_for_each_level_count(folder: Path) -> None:
    rows = add_tables(folder, (2, 5), scenes=30, progress=False)
    assert [row["levels"] for row in rows] == [2, 5]
    for row in rows:
        tables = read_tables(folder / tables_name(row["levels"]))
        assert (tables.levels, tables.channels, tables.classes) == (row["levels"], 8, row["classes"])
        assert 0 < row["coded_bytes"] <= row["fixed_bytes"]


def test_a_further_quantizers_tables_lie_beside_it(folder: Path) -> None:
    loaded = load_checkpoint(folder)
    save_quantizer(folder, "small", FurtherQuantizer(loaded.settings.vision, loaded.model.vision_quantizer))
    result = CliRunner().invoke(
        cli,
        ["tables", str(folder), "--quantizer", "small", "--scenes", "30", "--json"],
        standalone_mode=False,
    )
    assert result.exception is None
    (row,) = json.loads(result.output)
    assert row["levels"] == loaded.settings.vision.levels
    assert (folder / QUANTIZERS_FOLDER / "small" / tables_name(row["levels"])).is_file()
    assert not (folder / tables_name(row["levels"])).exists()


def test_codes_are_those_of_the_model(tiny: Checkpoint) -> None:
    import torch

    features = scene_features(tiny, "train", 3, progress=False)
    codes = codes_of(tiny, features, 16)
    assert codes.dtype == np.uint8 and codes.shape == (3, 9, 8)
    pictures = torch.from_numpy(render(sample("train", 3, 88_088), slice(None)))
    with torch.inference_mode():
        own = tiny.model.vision_quantizer.encode(tiny.model.vision(pictures), 16)
    # Features were kept in half precision on the way.
    assert (np.abs(codes.astype(int) - own.numpy()) <= 1).all()
    assert (codes == own.numpy()).mean() > 0.95


def test_what_cannot_be_measured(folder: Path) -> None:
    with pytest.raises(InputError, match="too few"):
        add_tables(folder, (4,), scenes=3, progress=False)
    with pytest.raises(CheckpointError, match="no quantizer 'other'"):
        add_tables(folder, (4,), quantizer="other", scenes=30, progress=False)
