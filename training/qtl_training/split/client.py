"""``qtl-train client``: the client partition in PyTorch, with its snapshots."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import save
from torch import Tensor
from tqdm import tqdm

from edge_runtime.training.evaluation import Evaluation
from edge_runtime.training.labels import PrivateLabels
from edge_runtime.training.partition import StageSide
from qtl_core.crossing import Crossed, MicroBatch
from qtl_core.split_stage import SplitStage
from qtl_training.local import begun, stage_seed
from qtl_training.recipe import Recipe
from qtl_training.run_folder import RunFolder
from qtl_training.split.agreement import crossing_of, fingerprint, largest_payload
from qtl_training.split.client_side import ClientSide
from qtl_training.split.data import StageData, record_of, stage_data
from qtl_training.split.held_out import ClientEvaluation, HeldOut
from qtl_training.split.partition import client_tensors
from qtl_training.split.picture_features import PictureFeatures
from qtl_training.split.private import HEAD, HeldLabels, check_answers, head_of, scored_tokens
from qtl_training.split.stages import stages_of


class _Stage:
    """One stage: its data, the tower's features of it, and the side that learns."""

    def __init__(self, side: ClientSide, data: StageData, seed: int, held: HeldLabels | None) -> None:
        self.side, self._data, self._seed, self.held = side, data, seed, held
        self.labels: PrivateLabels | None = None if held is None else held.labels

    def fit(self) -> bytes:
        fitted = self.side.fit(self._data.to_fit(), self._seed)
        return save({name: value.contiguous() for name, value in fitted.items()})

    def micro_batches(self, step: int) -> Sequence[MicroBatch]:
        return self._data.samples.micro_batches(step)

    def forward(self, micro: int, pictures: Sequence[int], levels: int) -> Crossed:
        return self.side.forward(micro, self._data.features[list(pictures)], levels)

    def backward(self, micro: int, gradient: NDArray[np.float32]) -> None:
        self.side.backward(micro, gradient)

    def squared_norm(self, answer_tokens: int) -> float:
        return self.side.squared_norm(answer_tokens)

    def apply(self, step: int, squared_norm: float) -> None:
        self.side.apply(step, squared_norm)


class TorchRun:
    """A run whose client partition PyTorch trains; see ``edge_runtime.training.partition.ClientRun``.

    Args:
        recipe: what is trained; the server's has the same stages.
        folder: the run's folder.
        progress: whether to show a bar while features are computed.

    Raises:
        RecipeError: a stage that is no split stage, or a folder that was begun with other settings.
        CheckpointError: the checkpoint to start from.
        StorageError: the folder cannot be written.

    ``enter`` raises what ``stage_data`` does.
    """

    def __init__(self, recipe: Recipe, folder: Path, *, progress: bool = True) -> None:
        self.name, self.log_every = recipe.name, recipe.log_every
        self.stages: Sequence[SplitStage] = stages_of(recipe)
        self.seeds: Sequence[int] = [stage_seed(recipe, number) for number in range(len(self.stages))]
        self._folder, self._head_seed = RunFolder(folder, recipe), recipe.head_seed
        self._progress = progress
        self._recipe = recipe
        self._held_out: HeldOut | None = None
        self._checkpoint = begun(self._folder, recipe).checkpoint
        self.crossing = crossing_of(recipe, self._checkpoint)
        self.largest = largest_payload(self.stages, self.crossing, self._checkpoint)
        self.fingerprint = fingerprint(recipe)
        self._state: dict[str, Tensor] = {}
        self._stage: _Stage | None = None
        self._data: dict[int, StageData] = {}

    def points(self) -> list[tuple[int, int]]:
        return self._folder.points()

    def back_to(self, stage: int, step: int) -> None:
        snapshot = self._folder.back_to(stage, step)
        self._checkpoint, self._state, self._stage = snapshot.checkpoint, snapshot.state, None

    def enter(self, stage: int) -> _Stage:
        settings, seed, model = self.stages[stage], self.seeds[stage], self._checkpoint.model
        torch.manual_seed(seed)
        if stage not in self._data:
            record = record_of(self._folder.path, stage)
            data = stage_data(self._checkpoint, settings, seed, record=record, progress=self._progress)
            self._data = {stage: data}
        held = None
        if settings.private:
            held = HeldLabels(self._checkpoint, self.stages, stage, seed, self._head_seed)
            check_answers(settings, held.labels, self._data[stage].samples)
            held.load(self._state)
        if isinstance(features := self._data[stage].features, PictureFeatures):
            features.vision = model.vision  # and let go of the one before this snapshot
        model.train()
        model.vision.tower.eval()
        side = ClientSide(model, settings)
        side.load({k.removeprefix("client."): v for k, v in self._state.items() if k.startswith("client.")})
        self._state = {}
        self._stage = _Stage(side, self._data[stage], seed, held)
        return self._stage

    def evaluation(self, side: StageSide) -> Evaluation | None:
        """Held-out data for the stage at hand, where the recipe evaluates."""
        if not self._recipe.evaluate_every or self._stage is None:
            return None
        if self._held_out is None:
            self._held_out = HeldOut(self._recipe, progress=self._progress)
        return ClientEvaluation(self._held_out, self._checkpoint.model, self._stage.side)

    def save(self, stage: int, step: int) -> None:
        held: dict[str, Tensor] = {}
        labels = None if self._stage is None else self._stage.held
        if labels is not None:
            labels.store()
        if step and self._stage is not None:
            held = {f"client.{name}": value for name, value in self._stage.side.state().items()}
            held |= {} if labels is None else labels.state()
        if not step:
            self._checkpoint.model.eval()
        self._folder.save(self._checkpoint, stage, step, held)

    def log(self, record: dict[str, Any]) -> None:
        self._folder.log(record)

    def weights(self) -> bytes:
        tensors = client_tensors(self._checkpoint.model)
        last = self.stages[-1]
        if last.return_head:
            tensors[HEAD] = torch.from_numpy(head_of(self._checkpoint, scored_tokens(last, self._checkpoint)))
        return save({name: value.contiguous() for name, value in tensors.items()})

    def finish(self) -> Path:
        return self._folder.finish(self._checkpoint)


class Bars:
    """A progress bar for each stage.

    Args:
        name: of the run.
        stages: how many there are.
        shown: whether at all.
    """

    def __init__(self, name: str, stages: int, *, shown: bool) -> None:
        self._name, self._stages, self._shown = name, stages, shown
        self._bar: tqdm[None] | None = None

    def stage(self, number: int, steps: int, first: int) -> None:
        self.close()
        label = f"{self._name} stage {number + 1}/{self._stages}"
        self._bar = tqdm(total=steps, initial=first, desc=label, disable=not self._shown or None)

    def step(self, metrics: dict[str, float]) -> None:
        if self._bar is not None:
            self._bar.set_postfix({k: f"{v:.3g}" for k, v in metrics.items()}, refresh=False)
            self._bar.update()

    def close(self) -> None:
        """Ends the bar that is shown."""
        if self._bar is not None:
            self._bar.close()
