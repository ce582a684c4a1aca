"""A run's folder: what a training run has done so far, so that it can go on after a kill.

    RUN/
      000001-0001200/        newest snapshot: stage 1 (from 0), step 1200 is next
        checkpoint/          the model, as any other checkpoint
        state.safetensors    optimizer, probes, running accuracies
        run.json             stage, step, and the settings it was trained with
      log.jsonl              a line for every few steps
      checkpoint/            the finished model

A kill leaves the last snapshot whole, and the two newest are kept.
"""

from __future__ import annotations

import os
import re
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor

from qtl_core.errors import InputError, RecipeError
from qtl_core.nn.checkpoint import Checkpoint, load_checkpoint, save_checkpoint
from qtl_core.snapshots import RUN_FILE, Snapshots
from qtl_training.event_files import EventFiles
from qtl_training.recipe import Recipe, agreed_stages
from qtl_training.split.adapters import without_adapters


class _Progress(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    stage: int
    step: int
    seed: int
    start: str
    stages: list[Any]
    vision: Any = None


@dataclass(frozen=True)
class Snapshot:
    """Where a run stands.

    Attributes:
        checkpoint: the model.
        stage: index of the stage to go on with.
        step: its next step.
        state: what the stage needs beyond the model; empty at its start.
    """

    checkpoint: Checkpoint
    stage: int
    step: int
    state: dict[str, Tensor]


class RunFolder:
    """Snapshots and log of one run.

    Args:
        path: created if it is not there.
        recipe: what is trained; a run can go on with a recipe that only adds stages.

    Raises:
        StorageError: if the folder cannot be written.
        MissingExtra: if the recipe wants event files and TensorBoard is not installed.
    """

    def __init__(self, path: Path, recipe: Recipe) -> None:
        self.path, self._recipe, self._snapshots = path, recipe, Snapshots(path)
        self._events: EventFiles | None = None
        if recipe.tensorboard:
            steps = [getattr(stage, "stop", 0) or stage.steps for stage in recipe.stages]
            self._events = EventFiles(path / "tensorboard", steps)

    @property
    def finished(self) -> Path:
        """Where the finished checkpoint is, or will be."""
        return self.path / "checkpoint"

    def newest(self) -> Snapshot | None:
        """The newest whole snapshot, or None in a new run.

        Raises:
            RecipeError: if it was trained with other settings than the recipe's.
        """
        folder = self._snapshots.newest()
        return None if folder is None else self._read(folder)

    def points(self) -> list[tuple[int, int]]:
        """Stage and next step of every snapshot, oldest first."""
        return self._snapshots.points()

    def back_to(self, stage: int, step: int) -> Snapshot:
        """The snapshot of that moment; those after it are dropped.

        Raises:
            RecipeError: as ``newest``; or there is none of that moment.
        """
        folder = self._snapshots.back_to(stage, step)
        if folder is None:
            raise RecipeError(f"run folder {self.path} has no snapshot of stage {stage}, step {step}")
        return self._read(folder)

    def _read(self, folder: Path) -> Snapshot:
        progress = msgspec.json.decode((folder / RUN_FILE).read_bytes(), type=_Progress)
        ours = self._progress(progress.stage, progress.step)
        begun = progress.stage + (progress.step > 0)
        same = (ours.seed, ours.start, ours.vision) == (progress.seed, progress.start, progress.vision)
        if not same or ours.stages[:begun] != progress.stages[:begun]:
            raise RecipeError(
                f"run folder {self.path} was begun with other settings than {self._recipe.name!r} has; "
                "start anew with --fresh, or name another folder with --run"
            )
        state = folder / "state.safetensors"
        return Snapshot(
            load_checkpoint(folder / "checkpoint"),
            progress.stage,
            progress.step,
            load_file(state) if state.is_file() else {},
        )

    def save(self, checkpoint: Checkpoint, stage: int, step: int, state: dict[str, Tensor]) -> None:
        """Writes a snapshot, then drops all but the two newest.

        Raises:
            InputError: a weight that is no number; older snapshots stay.
            StorageError: if the disk is full or the folder cannot be written; older snapshots stay.
        """
        for name, value in checkpoint.model.state_dict().items():
            if value.is_floating_point() and not value.isfinite().all():
                raise InputError(
                    f"training diverged before stage {stage}, step {step}: {name} is not finite; lower the "
                    "learning rate; the snapshots before it stay"
                )

        def fill(folder: Path) -> None:
            write(folder / "checkpoint", checkpoint)
            if state:
                (folder / "state.safetensors").write_bytes(
                    save({k: v.contiguous() for k, v in state.items()})
                )
            (folder / RUN_FILE).write_bytes(msgspec.json.encode(self._progress(stage, step)))

        self._snapshots.save(stage, step, fill)

    def finish(self, checkpoint: Checkpoint) -> Path:
        """Writes the finished checkpoint, whole or not at all, and returns its folder."""
        fresh = self.path / ".checkpoint.part"
        shutil.rmtree(fresh, ignore_errors=True)
        try:
            write(fresh, checkpoint)
            shutil.rmtree(self.finished, ignore_errors=True)
            os.replace(fresh, self.finished)
        except OSError:
            shutil.rmtree(fresh, ignore_errors=True)
            raise
        return self.finished

    def log(self, record: dict[str, Any]) -> None:
        """Appends a line to the log, and to TensorBoard's files where the recipe wants them."""
        self._snapshots.log(record)
        if self._events is not None:
            self._events.write(record)

    def _progress(self, stage: int, step: int) -> _Progress:
        # Through JSON, so that it compares with what was read from JSON.
        recipe = self._recipe
        stages, vision = msgspec.json.decode(msgspec.json.encode([agreed_stages(recipe), recipe.vision]))
        return _Progress(stage, step, recipe.seed, recipe.start, stages, vision)


def write(folder: Path, checkpoint: Checkpoint) -> None:
    """Writes a checkpoint that was read and then trained; a decoder's adapters are not part of it.

    Raises:
        OSError: the disk is full, or the folder cannot be written.
    """
    try:
        with without_adapters(checkpoint.model.decoder):
            save_checkpoint(
                folder,
                checkpoint.llava,
                checkpoint.model,
                checkpoint.settings,
                checkpoint.tokenizer,
                checkpoint.processor,
                checkpoint.further,
            )
    except SafetensorError as error:
        # What the system says reaches us as text only.
        number = re.search(r"\(os error (\d+)\)", str(error))
        if number is None:
            raise
        raise OSError(int(number[1]), os.strerror(int(number[1])), str(folder)) from error
