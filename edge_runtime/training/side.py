"""The client's side of a stage in onnxruntime; see ``edge_runtime.training.partition.StageSide``."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from edge_runtime.training import levels as level_counts
from edge_runtime.training.features import Features
from edge_runtime.training.graphs import Arrays, Graphs
from edge_runtime.training.optimizer import ScheduledAdamW, rates_of
from qtl_core.crossing import Crossed, MicroBatch
from qtl_core.errors import RecipeError
from qtl_core.split_stage import SplitStage
from qtl_core.trainable import BACKWARD, BACKWARD_16, CONNECTOR, FORWARD, FORWARD_16, MEAN, STD, Training


class Samples(Protocol):
    """A stage's data."""

    def micro_batches(self, step: int) -> Sequence[MicroBatch]:
        """The step's; the same whenever it is asked for."""
        ...


class Pictures(Protocol):
    """The tower's features of a stage's pictures."""

    def of(self, pictures: Sequence[int]) -> Features:
        """Float16 [pictures, tokens, tower width]."""
        ...


@dataclass(frozen=True, eq=False)
class _Sent:
    """What of a micro-batch waits for its gradient: with the statistics that its codes were made with."""

    given: Arrays
    levels: int


class DeviceStage:
    """One stage.

    Args:
        training: what the client half can be trained with.
        number: of the stage, from 0.
        tensors: trained in place.
        graphs: of the client half.
        samples: the stage's data.
        features: of its pictures.
    """

    def __init__(
        self,
        training: Training,
        number: int,
        tensors: Arrays,
        graphs: Graphs,
        samples: Samples,
        features: Pictures,
    ) -> None:
        self._training, self._number = training, number
        self._stage: SplitStage = training.stages[number]
        self._tensors, self._graphs = tensors, graphs
        self._samples, self._features = samples, features
        rates = rates_of(self._stage, tensors)
        self._learns = list(rates)
        self.optimizer = ScheduledAdamW(
            graphs, self._stage.optimizer, self._stage.steps, rates, training.betas, training.eps
        )
        self._sent: dict[int, _Sent] = {}
        # Sums over micro-batches: of the answers' loss, and of the distortion loss, which is divided by
        # another number in the end.
        self._answers: Arrays = {}
        self._distortion: Arrays = {}
        self._step = 0

    def micro_batches(self, step: int) -> Sequence[MicroBatch]:
        self._step = step
        return self._samples.micro_batches(step)

    def forward(self, micro: int, pictures: Sequence[int], levels: int) -> Crossed:
        if not pictures:
            shape = self._training.codes if levels else self._training.features
            return np.empty((0, *shape), np.uint8) if levels else np.empty((0, *shape), np.float16)
        given: Arrays = {**self._tensors, "features": self._features.of(pictures)}
        if not levels:
            self._sent[micro] = _Sent(given, levels)
            half: NDArray[np.float16] = self._graphs.run(FORWARD_16, given)["features_at_cut"]
            self._check(bool(np.isfinite(half).all()))
            return half
        level = level_counts.of(levels, self._training.k_levels)
        given |= {"half": level.half, "offset": level.offset, "mix": level.mix}
        made = self._graphs.run(FORWARD, given)
        self._check(bool(np.isfinite(made["size"])))
        # A single coded token has no deviation, and moves nothing.
        if self._training.scaling == "frozen" and made["codes"][..., 0].size > 1:
            for name in (MEAN, STD):
                self._tensors[name] = given[name] = made[f"moved.{name}"]
        self._sent[micro] = _Sent(given, levels)
        codes: NDArray[np.uint8] = made["codes"]
        return codes

    def backward(self, micro: int, gradient: NDArray[np.float32]) -> None:
        sent = self._sent.pop(micro, None)
        # Features that cross unquantized pass no quantizer.
        learns = [name for name in self._learns if sent and (sent.levels or name.startswith(CONNECTOR))]
        if sent is None or not learns:
            return
        found = self._graphs.run(
            BACKWARD if sent.levels else BACKWARD_16, {**sent.given, "gradient": gradient}
        )
        for name in learns:
            for loss, sums in (("answers", self._answers), ("distortion", self._distortion)):
                new = found.get(f"{loss}.{name}")
                if new is not None:
                    sums[name] = sums[name] + new if name in sums else new

    def squared_norm(self, answer_tokens: int) -> float:
        for name in self._answers:
            self._answers[name] = self._answers[name] / np.float32(answer_tokens)
            if name in self._distortion:
                own = self._distortion[name] / np.float32(self._stage.micro_batches)
                self._answers[name] = self._answers[name] + own
        self._distortion = {}
        return sum(float(np.square(value, dtype=np.float64).sum()) for value in self._answers.values())

    def apply(self, step: int, squared_norm: float) -> None:
        gradients, self._answers = self._answers, {}
        self.optimizer.apply(step, squared_norm, self._tensors, gradients)

    def _check(self, finite: bool) -> None:
        if not finite:
            raise RecipeError(
                f"what crosses in stage {self._number}, step {self._step} is no number any more: lower the "
                "recipe's learning rates, and go on from the last good snapshot"
            )
