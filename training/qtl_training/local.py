"""``qtl-train local``: runs a recipe's stages in this process, both sides of the cut together."""

from __future__ import annotations

import dataclasses
import shutil
import time
from collections.abc import Callable
from pathlib import Path

import msgspec
import torch

from qtl_core import shipped
from qtl_core.nn.checkpoint import Checkpoint, QuantizerSettings, load_checkpoint
from qtl_core.split_stage import SplitStage
from qtl_training.build import build_checkpoint
from qtl_training.recipe import Recipe, Stage, TowerStage
from qtl_training.run_folder import RunFolder, Snapshot, write
from qtl_training.split.held_out import HeldOut
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
    """
    if fresh:
        shutil.rmtree(folder, ignore_errors=True)
    run = RunFolder(folder, recipe)
    snapshot = begun(run, recipe)
    checkpoint, first_step, state = snapshot.checkpoint, snapshot.step, snapshot.state
    for number in range(snapshot.stage, len(recipe.stages)):
        seed = stage_seed(recipe, number)
        stage = _stage(checkpoint, recipe.stages[number], seed, resumed=first_step > 0, progress=progress)
        if first_step > 0:
            stage.load(state)
        _run_stage(run, recipe, checkpoint, stage, number, first_step, progress, clock)
        stage.finish()
        run.save(checkpoint, number + 1, 0, {})
        first_step, state = 0, {}
    shutil.rmtree(run.finished, ignore_errors=True)
    write(run.finished, checkpoint)
    return run.finished


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
    return recipe.seed * 101 + number


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


def _stage(checkpoint: Checkpoint, stage: Stage, seed: int, *, resumed: bool, progress: bool) -> Training:
    torch.manual_seed(seed)
    if isinstance(stage, TowerStage):
        return TowerTraining(checkpoint.model, stage, seed)
    if isinstance(stage, SplitStage):
        return SplitTraining(checkpoint, stage, seed, progress=progress)
    return LanguageTraining(checkpoint, stage, seed, resumed=resumed, progress=progress)


def start_of(recipe: Recipe, folder: Path) -> Checkpoint:
    """What a recipe starts from; a model that is built passes through ``folder``.

    Raises:
        CheckpointError: if the checkpoint to start from cannot be read.
    """
    if recipe.model is None:
        checkpoint = load_checkpoint(shipped.digits() if recipe.start == "shipped" else recipe.start)
        if recipe.vision is not None:
            return requantized(checkpoint, recipe.vision, recipe.seed)
        # Further quantizers fit the features that they were fitted to.
        moves = any(isinstance(stage, TowerStage) or "connector" in stage.train for stage in recipe.stages)
        return dataclasses.replace(checkpoint, further={}) if moves else checkpoint
    place = folder / ".new"
    shutil.rmtree(place, ignore_errors=True)
    build_checkpoint(place, recipe.model, recipe.name, recipe.seed)
    checkpoint = load_checkpoint(place)
    shutil.rmtree(place)
    return checkpoint


def requantized(checkpoint: Checkpoint, vision: QuantizerSettings, seed: int) -> Checkpoint:
    """The checkpoint with another vision quantizer in place of its own, and no further ones.

    Of the same geometry it begins with the weights of the one before, and with its k at the new L.
    """
    torch.manual_seed(seed)
    before = checkpoint.model.vision_quantizer
    quantizer = vision.build(before.width)
    if (quantizer.code_dim, quantizer.merge) == (before.code_dim, before.merge):
        kept = {name: value for name, value in before.state_dict().items() if not name.startswith("k")}
        quantizer.load_state_dict(kept, strict=False)
        quantizer.k.data.copy_(before.k_for(vision.levels).detach().expand_as(quantizer.k))
    checkpoint.model.vision_quantizer = quantizer
    settings = msgspec.structs.replace(checkpoint.settings, vision=vision)
    return dataclasses.replace(checkpoint, settings=settings, further={})
