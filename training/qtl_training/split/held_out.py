"""Held-out data of a split run, and both ways to evaluate on it: across the cut and in one process."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

import numpy as np
from torch import Tensor

from edge_runtime.training.evaluation import scores
from qtl_core.crossing import Crossed, MicroBatch, Row
from qtl_core.nn.model import SplitModel
from qtl_core.split_stage import SplitStage
from qtl_training.digits import questions as q
from qtl_training.digits.scenes import sample
from qtl_training.features import tower_features
from qtl_training.recipe import Recipe
from qtl_training.split.client_side import ClientSide
from qtl_training.split.server_side import ServerSide
from qtl_training.split.stillness import held_still
from qtl_training.stages.asking import ask

_SEED: Final = 20_252


class HeldOut:
    """Digit scenes of the validation split, with questions about them.

    Args:
        recipe: says how many and how often.
        progress: whether to show a bar while features are computed.
    """

    def __init__(self, recipe: Recipe, *, progress: bool) -> None:
        self._recipe, self._progress = recipe, progress
        self._features: Tensor | None = None

    def due(self, stage: int, done: int) -> bool:
        """Whether to evaluate after so many steps of a stage."""
        settings, every = self._stage(stage), self._recipe.evaluate_every
        return every > 0 and (done % every == 0 or done == (settings.stop or settings.steps))

    def micro_batches(self, stage: int) -> list[MicroBatch]:
        """All of it, as many pictures at a time as in training; the same whenever it is asked for."""
        settings = self._stage(stage)
        scenes = sample("validation", self._recipe.evaluate_pictures, _SEED)
        weights = np.full(len(q.TYPES), 1 / len(q.TYPES))
        rng = np.random.default_rng([_SEED, len(scenes)])
        found = []
        for first in range(0, len(scenes), settings.pictures):
            pictures = tuple(range(first, min(first + settings.pictures, len(scenes))))
            asked = ask(scenes, pictures, settings.questions, weights, rng)
            rows = tuple(
                Row((place,), tuple((one.text, one.answer) for one in about))
                for place, about in enumerate(asked)
            )
            found.append(MicroBatch(pictures, rows))
        return found

    def features(self, model: SplitModel, pictures: Sequence[int]) -> Tensor:
        """The tower's features of some of its pictures; computed once, since towers do not learn here."""
        if self._features is None:
            scenes = sample("validation", self._recipe.evaluate_pictures, _SEED)
            with held_still(model):
                self._features = tower_features(model.vision, scenes, progress=self._progress)
        return self._features[list(pictures)]

    def evaluate(
        self, stage: int, model: SplitModel, client: ClientSide, server: ServerSide
    ) -> list[dict[str, Any]]:
        """As ``edge_runtime.training.evaluation.evaluate``, with both sides in this process."""
        found = []
        for levels in dict.fromkeys(self._stage(stage).levels):
            results = [
                server.score(
                    client.held_out(self.features(model, micro.pictures), levels), levels, micro.rows
                )
                for micro in self.micro_batches(stage)
            ]
            found.append(
                scores(
                    levels,
                    sum(one.loss for one in results),
                    sum(one.tokens for one in results),
                    sum(one.right for one in results),
                    sum(one.turns for one in results),
                )
            )
        return found

    def _stage(self, number: int) -> SplitStage:
        stage = self._recipe.stages[number]
        if not isinstance(stage, SplitStage):
            raise ValueError(f"stage {number} is no split stage")
        return stage


class ClientEvaluation:
    """Held-out data and a client in PyTorch; see ``edge_runtime.training.evaluation.Evaluation``.

    Args:
        data: the data.
        model: whose tower it passes.
        side: the client's side of the stage at hand.
    """

    def __init__(self, data: HeldOut, model: SplitModel, side: ClientSide) -> None:
        self._data, self._model, self._side = data, model, side

    def due(self, stage: int, done: int) -> bool:
        return self._data.due(stage, done)

    def micro_batches(self, stage: int) -> list[MicroBatch]:
        return self._data.micro_batches(stage)

    def forward(self, stage: int, pictures: Sequence[int], levels: int) -> Crossed:
        return self._side.held_out(self._data.features(self._model, pictures), levels)
