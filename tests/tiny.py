"""A tiny model with random weights (exactness and plumbing, never accuracy), as fixtures for a conftest."""

from __future__ import annotations

from pathlib import Path

import pytest

from qtl_core.nn.checkpoint import Checkpoint, QuantizerSettings, load_checkpoint
from qtl_training.build import build_checkpoint
from qtl_training.recipe import ModelRecipe

TINY = ModelRecipe(
    image_size=96,
    patch_size=16,
    stem_widths=(4, 8, 8),
    stem_blocks=(0, 0, 1),
    tower_width=16,
    tower_layers=1,
    tower_heads=2,
    tower_mlp=24,
    width=16,
    layers=2,
    heads=2,
    mlp=24,
    vocabulary=300,
    vision=QuantizerSettings(code_dim=8, scaling="frozen", merge=2, k_levels=(2, 16, 256)),
    language=QuantizerSettings(code_dim=16, scaling="image"),
)


@pytest.fixture(scope="session")
def tiny_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tiny") / "checkpoint"
    build_checkpoint(folder, TINY, "tiny", seed=3)
    return folder


@pytest.fixture(scope="session")
def tiny(tiny_folder: Path) -> Checkpoint:
    return load_checkpoint(tiny_folder)
