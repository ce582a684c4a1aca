"""The server's side of a training step: what crossed and the questions to a loss, and its gradients."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from qtl_core.crossing import Row
from qtl_core.nn.checkpoint import Checkpoint
from qtl_core.split_stage import SplitStage
from qtl_training.packing import Packed, embed, turns_right
from qtl_training.row_packing import RowPacking
from qtl_training.split.adapters import Adapters
from qtl_training.split.precision import LossScale, autocast, seeded
from qtl_training.split.recomputing import recompute
from qtl_training.split.stillness import held_still
from qtl_training.stages.optimizing import ScheduledAdamW
from qtl_training.stages.parts import server_groups

_STREAM = 16


@dataclass(frozen=True)
class Work:
    """A micro-batch as the server's side takes it; see ``ServerSide.run``."""

    crossed: NDArray[np.uint8] | NDArray[np.float16]
    levels: int
    rows: Sequence[Row]
    place: tuple[int, int]


@dataclass(frozen=True)
class MicroResult:
    """What a micro-batch came to.

    Attributes:
        loss: sum of the answer tokens' cross-entropies, in nats.
        tokens: answer tokens, ends included.
        right: turns whose every answer token was the likeliest.
        turns: all of them.
        gradient: of ``loss`` with respect to what crossed, float32 of its shape.
    """

    loss: float
    tokens: int
    right: int
    turns: int
    gradient: NDArray[np.float32]


class ServerSide:
    """The decoder half of the quantizer, and the language model.

    Args:
        checkpoint: its model is trained in place.
        stage: the recipe's settings.
        seed: of the stage; of adapters and of what a step drops out.
        device: where to compute; the server partition's weights go there.

    Attributes:
        width: micro-batches that are computed side by side.

    Raises:
        MissingExtra: the stage trains adapters and peft is not installed.
        RecipeError: adapters of layers that the decoder does not have, or a decoder without checkpointing.
    """

    width = 1

    def __init__(self, checkpoint: Checkpoint, stage: SplitStage, seed: int = 0, device: str = "cpu") -> None:
        self._model, self._stage, self._seed = checkpoint.model, stage, seed
        self._device = torch.device(device)
        self._scale = LossScale() if stage.precision == "fp16" else None
        self._model.decoder.to(self._device)
        if self._model.quantized:
            self._model.vision_quantizer.to(self._device)
        if stage.checkpointing:
            recompute(self._model.decoder, True)
        self._packing = RowPacking(checkpoint, 0 if stage.data is None else stage.data.max_tokens)
        self._adapters = None if stage.lora is None else Adapters(self._model.decoder, stage.lora, seed)
        self._optimizer = ScheduledAdamW(stage.optimizer, stage.steps, server_groups(checkpoint.model, stage))

    def run(
        self,
        crossed: NDArray[np.uint8] | NDArray[np.float16],
        levels: int,
        rows: Sequence[Row],
        place: tuple[int, int] = (0, 0),
    ) -> MicroResult:
        """Forward and backward of one micro-batch; the weights' gradients add up over a step.

        Args:
            crossed: what the client's ``forward`` returned.
            levels: L; 0 for features.
            rows: what is asked about them.
            place: step and micro-batch; what is dropped out depends on the seed and these only.

        Raises:
            RequestRefused: rows that are too long.
        """
        found: list[tuple[Packed, Tensor, Tensor]] = []

        def compute(scale: float) -> tuple[Tensor, Tensor]:
            values = self._values(crossed, levels).requires_grad_()
            with seeded(self._device, self._seed, *place, _STREAM):
                found[:] = [self._scores(values, levels, rows)]
                _, scores, target = found[0]
                loss = functional.cross_entropy(scores, target, reduction="sum")
                if loss.requires_grad:  # where nothing learns here, texts alone have nothing to teach
                    (loss if scale == 1 else loss * scale).backward()
            if values.grad is None and not len(values):
                values.grad = torch.zeros_like(values)
            return loss, values

        if self._scale is None:
            loss, values = compute(1)
            gradient = values.grad
        else:
            loss, gradient = self._scale.backward(self._optimizer.parameters, compute)
        if gradient is None:
            raise RuntimeError("no gradient reached what crossed the cut")
        return _result(loss, *found[0], gradient.cpu().numpy())

    def run_one(self, work: Work) -> MicroResult:
        """``run`` with a micro-batch in one piece."""
        return self.run(work.crossed, work.levels, work.rows, work.place)

    def run_many(self, works: Sequence[Work]) -> list[MicroResult]:
        """Up to ``width`` micro-batches, in order."""
        return [self.run_one(work) for work in works]

    def check(self, rows: Sequence[Row], picture: int) -> None:
        """Looks whether rows can be computed, before any rank begins with them.

        Args:
            rows: of a micro-batch.
            picture: tokens of a picture.

        Raises:
            RequestRefused: rows that are too long.
        """
        self._packing.pack(rows, picture)

    def score(
        self, crossed: NDArray[np.uint8] | NDArray[np.float16], levels: int, rows: Sequence[Row]
    ) -> MicroResult:
        """As ``run``, forward only: nothing learns, and ``gradient`` is empty."""
        with held_still(self._model.decoder, self._model.vision_quantizer):
            packed, scores, target = self._scores(self._values(crossed, levels), levels, rows)
            loss = functional.cross_entropy(scores, target, reduction="sum")
            return _result(loss, packed, scores, target, np.empty(0, np.float32))

    def _values(self, crossed: NDArray[np.uint8] | NDArray[np.float16], levels: int) -> Tensor:
        given = torch.from_numpy(crossed).to(self._device)
        return self._model.vision_quantizer.values(given, levels) if levels else given.float()

    def _scores(self, values: Tensor, levels: int, rows: Sequence[Row]) -> tuple[Packed, Tensor, Tensor]:
        """The rows as packed, scores [answer tokens, vocabulary] and the ids that are due."""
        packed, hidden = self._hidden(values, levels, rows, answers=True)
        row, place, target = packed.targets.T
        return packed, self._logits(hidden[row, place]), target

    def _hidden(
        self, values: Tensor, levels: int, rows: Sequence[Row], *, answers: bool
    ) -> tuple[Packed, Tensor]:
        """The rows as packed, with answers or up to them, and the last hidden states [rows, n, width]."""
        model = self._model
        features = model.vision_quantizer.restore(values) if levels else values
        packed, shown = self._packing.pack(rows, features.shape[1], answers=answers)
        packed = packed.to(self._device)
        embeddings, _ = embed(packed, features[shown.to(self._device)], model.decoder, None, None)
        with autocast(self._stage.precision, self._device):
            hidden, _ = model.decoder(embeddings, packed.allowed, packed.positions)
        return packed, hidden

    def _logits(self, hidden: Tensor) -> Tensor:
        with autocast(self._stage.precision, self._device):
            scores: Tensor = self._model.decoder.logits(hidden)
        return scores.float()

    def forget(self) -> None:
        """Drops the gradients of a micro-batch that nothing is to learn from."""
        self._model.zero_grad(set_to_none=True)

    @property
    def parameters(self) -> list[nn.Parameter]:
        """What learns, in a fixed order."""
        return self._optimizer.parameters

    def squared_norm(self, answer_tokens: int) -> float:
        """Ends the sums over the step's micro-batches and returns their squared norm."""
        with torch.no_grad():
            for parameter in self._optimizer.parameters:
                if parameter.grad is not None:
                    parameter.grad.div_(answer_tokens)
        return self._optimizer.squared_norm()

    def apply(self, step: int, squared_norm: float) -> None:
        """Takes the optimizer step, clipped by the squared norm of both partitions' gradients."""
        self._optimizer.apply(step, squared_norm)

    def finish(self) -> None:
        """Ends the stage: what adapters learnt becomes the decoder's own."""
        if self._stage.checkpointing:
            recompute(self._model.decoder, False)
        if self._adapters is not None:
            self._adapters.merge()
            self._adapters = None

    def state(self) -> dict[str, Tensor]:
        """The optimizer's, the adapters and the loss's scale, where there are any."""
        further = [part.state() for part in (self._adapters, self._scale) if part is not None]
        return self._optimizer.state() | {name: value for part in further for name, value in part.items()}

    def load(self, state: dict[str, Tensor]) -> None:
        """Takes up a saved state."""
        self._optimizer.load(state)
        for part in (self._adapters, self._scale):
            if part is not None:
                part.load(state)


def _result(
    loss: Tensor, packed: Packed, scores: Tensor, target: Tensor, gradient: NDArray[np.float32]
) -> MicroResult:
    right = turns_right(packed, scores, target)
    return MicroResult(loss.item(), len(target), int(right.sum()), len(right), gradient)
