"""What client and server of a training run must have in common, as one fingerprint."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Final

import torch

from qtl_core import shipped
from qtl_core.crossing import Crossing
from qtl_core.nn.checkpoint import Checkpoint
from qtl_core.run_agreement import run_fingerprint
from qtl_core.split_stage import SplitStage
from qtl_training.recipe import Recipe, agreed_stages
from qtl_training.split.partition import client_tensors
from qtl_training.split.stages import stages_of

_HEADER: Final = 1 << 16


def start_folder(recipe: Recipe) -> Path | None:
    """The checkpoint that a run starts from; None where it builds a model."""
    if recipe.model is not None:
        return None
    return shipped.digits() if recipe.start == "shipped" else Path(recipe.start)


def crossing_of(recipe: Recipe, checkpoint: Checkpoint) -> Crossing:
    """How what crosses in a run is coded, with the tables of the checkpoint that it starts from."""
    quantizer, picture = checkpoint.model.vision_quantizer, checkpoint.picture
    with torch.inference_mode():
        blank = torch.zeros(1, picture.height, picture.width, 3, dtype=torch.uint8)
        tokens = checkpoint.model.vision.tower_features(blank).shape[1]
    levels = [count for stage in stages_of(recipe) for count in stage.levels]
    codes = (tokens // quantizer.merge**2, quantizer.code_dim)
    return Crossing.of(start_folder(recipe), levels, codes, (tokens, quantizer.width))


def largest_payload(stages: Sequence[SplitStage], crossing: Crossing, checkpoint: Checkpoint) -> int:
    """Bytes of the largest payload that a run has a use for, either way."""
    weights = sum(value.nbytes for value in client_tensors(checkpoint.model).values())
    # Safetensors put a header of some hundred bytes a tensor before them.
    return max(*(crossing.largest(stage.most_pictures) for stage in stages), 2 * weights + _HEADER)


def fingerprint(recipe: Recipe) -> bytes:
    """16 bytes that agree where stages, seed and the checkpoint to start from do.

    Name, log, times between snapshots and where data lies are each side's own.

    Raises:
        CheckpointError: a file of the checkpoint cannot be read.
    """
    return run_fingerprint(
        recipe.seed, agreed_stages(recipe), recipe.vision, recipe.model, start_folder(recipe)
    )
