"""``qtl-train local``: runs a recipe's stages in this process, both sides of the cut together."""

from __future__ import annotations

import dataclasses
import shutil
import time
from collections.abc import Callable
from pathlib import Path

import torch

from qtl_core import shipped
from qtl_core.nn.checkpoint import Checkpoint, load_checkpoint
from qtl_core.nn.requantizing import requantized
from qtl_core.run_agreement import stage_seed as seed_of_stage
from qtl_core.split_stage import SplitStage
from qtl_training.build import build_checkpoint
from qtl_training.recipe import Recipe, TowerStage
from qtl_training.run_folder import RunFolder, Snapshot
from qtl_training.split.data import record_of
from qtl_training.split.held_out import HeldOut
from qtl_training.split.private import HeldLabels
from qtl_training.stages.language import LanguageTraining
from qtl_training.stages.split import SplitTraining
from qtl_training.stages.tower import TowerTraining
from qtl_training.stepping import Training, run_steps


def train(
    recipe: Recipe,
    folder: Path,
    *,
    fresh: bool = False,
    progress: bool = True,
    clock: Callable[[], float] = time.monotonic,
) -> Path:
    """Trains, or goes on training, and returns the folder of the finished checkpoint.

    The weights it ends with depend on the recipe alone (on one machine type and thread count), not
    on how often the run was killed in between.

    Args:
        recipe: what to train.
        folder: the run's folder.
        fresh: whether to forget what the folder holds.
        progress: whether to show a bar.
        clock: seconds, for the time between snapshots.

    Raises:
        RecipeError: if the folder was begun with other settings.
        CheckpointError: if the checkpoint to start from cannot be read.
        StorageError: if the folder cannot be written.
        SampleError: a sample that cannot be trained on, where the recipe does not skip those.
    """
    if fresh:
        shutil.rmtree(folder, ignore_errors=True)
    run = RunFolder(folder, recipe)
    snapshot = begun(run, recipe)
    checkpoint, first_step, state = snapshot.checkpoint, snapshot.step, snapshot.state
    for number in range(snapshot.stage, len(recipe.stages)):
        record = record_of(run.path, number)
        stage = _stage(checkpoint, recipe, number, resumed=first_step > 0, record=record, progress=progress)
        if first_step > 0:
            stage.load(state)
        _run_stage(run, recipe, checkpoint, stage, number, first_step, progress, clock)
        stage.finish()
        run.save(checkpoint, number + 1, 0, {})
        first_step, state = 0, {}
    return run.finish(checkpoint)


def begun(run: RunFolder, recipe: Recipe) -> Snapshot:
    """Where a run stands; a new one gets a snapshot of what it starts from.

    Raises:
        RecipeError: if the folder was begun with other settings.
        CheckpointError: if the checkpoint to start from cannot be read.
        StorageError: if the folder cannot be written.
    """
    snapshot = run.newest()
    if snapshot is None:
        run.save(start_of(recipe, run.path), 0, 0, {})
        snapshot = run.newest()
    if snapshot is None:
        raise RuntimeError(f"the snapshot just written to {run.path} is gone")
    return snapshot


def stage_seed(recipe: Recipe, number: int) -> int:
    """The seed of a recipe's stage."""
    return seed_of_stage(recipe.seed, number)


def _run_stage(
    run: RunFolder,
    recipe: Recipe,
    checkpoint: Checkpoint,
    stage: Training,
    number: int,
    first_step: int,
    progress: bool,
    clock: Callable[[], float],
) -> None:
    checkpoint.model.train()
    held_out = HeldOut(recipe, progress=progress) if isinstance(stage, SplitTraining) else None

    def evaluated(done: int) -> None:
        if held_out is not None and isinstance(stage, SplitTraining) and held_out.due(number, done):
            for found in stage.evaluate(held_out, number):
                run.log({"stage": number, "step": done - 1, "evaluation": found})

    run_steps(
        stage,
        first_step,
        f"{recipe.name} stage {number + 1}/{len(recipe.stages)}",
        log=lambda record: run.log({"stage": number, **record}),
        log_every=recipe.log_every,
        save=lambda step: run.save(checkpoint, number, step, stage.state()),
        save_every=recipe.checkpoint_every,
        progress=progress,
        clock=clock,
        after=evaluated,
    )
    checkpoint.model.eval()


def _stage(
    checkpoint: Checkpoint, recipe: Recipe, number: int, *, resumed: bool, record: Path, progress: bool
) -> Training:
    stage, seed = recipe.stages[number], stage_seed(recipe, number)
    torch.manual_seed(seed)
    if isinstance(stage, TowerStage):
        return TowerTraining(checkpoint.model, stage, seed)
    if isinstance(stage, SplitStage):
        held = _labels(checkpoint, recipe, number) if stage.private else None
        return SplitTraining(
            checkpoint, stage, seed, resumed=resumed, progress=progress, record=record, held=held
        )
    return LanguageTraining(checkpoint, stage, seed, resumed=resumed, progress=progress)


def _labels(checkpoint: Checkpoint, recipe: Recipe, number: int) -> HeldLabels:
    # Other kinds of stages have no head on the client; they only keep the numbers in order.
    split = [stage for stage in recipe.stages[: number + 1] if isinstance(stage, SplitStage)]
    return HeldLabels(checkpoint, split, len(split) - 1, stage_seed(recipe, number), recipe.head_seed)


def start_of(recipe: Recipe, folder: Path) -> Checkpoint:
    """What a recipe starts from; a model that is built passes through ``folder``.

    Raises:
        CheckpointError: if the checkpoint to start from cannot be read.
    """
    if recipe.model is None:
        checkpoint = load_checkpoint(shipped.digits() if recipe.start == "shipped" else recipe.start)
        if recipe.vision is not None:
            first = recipe.stages[0]
            anew = isinstance(first, SplitStage) and first.fit_quantizer
            return requantized(checkpoint, recipe.vision, recipe.seed, anew=anew)
        # Further quantizers fit the features that they were fitted to.
        moves = any(isinstance(stage, TowerStage) or "connector" in stage.train for stage in recipe.stages)
        return dataclasses.replace(checkpoint, further={}) if moves else checkpoint
    place = folder / ".new"
    shutil.rmtree(place, ignore_errors=True)
    build_checkpoint(place, recipe.model, recipe.name, recipe.seed)
    checkpoint = load_checkpoint(place)
    shutil.rmtree(place)
    return checkpoint
