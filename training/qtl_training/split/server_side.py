"""The server's side of a training step: what crossed and the questions to a loss, and its gradients."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from qtl_core.crossing import Row
from qtl_core.nn.checkpoint import Checkpoint
from qtl_core.split_stage import SplitStage
from qtl_training.packing import Packed, Turn, Vocabulary, embed, pack, turns_right
from qtl_training.stages.optimizing import ScheduledAdamW
from qtl_training.stages.parts import server_groups


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
    """

    def __init__(self, checkpoint: Checkpoint, stage: SplitStage) -> None:
        self._model = checkpoint.model
        self._vocabulary = Vocabulary(checkpoint)
        self._optimizer = ScheduledAdamW(stage.optimizer, stage.steps, server_groups(checkpoint.model, stage))

    def run(
        self,
        crossed: NDArray[np.uint8] | NDArray[np.float16],
        levels: int,
        rows: Sequence[Row],
    ) -> MicroResult:
        """Forward and backward of one micro-batch; the weights' gradients add up over a step.

        Args:
            crossed: what the client's ``forward`` returned.
            levels: L; 0 for features.
            rows: one for each picture, in their order.
        """
        values, packed, hidden = self._read(crossed, levels, rows, answers=True)
        row, place, target = packed.targets.T
        scores = self._model.decoder.logits(hidden[row, place])
        loss = functional.cross_entropy(scores, target, reduction="sum")
        loss.backward()
        if values.grad is None:
            raise RuntimeError("no gradient reached what crossed the cut")
        right = turns_right(packed, scores, target)
        return MicroResult(loss.item(), len(target), int(right.sum()), len(right), values.grad.numpy())

    def _read(
        self,
        crossed: NDArray[np.uint8] | NDArray[np.float16],
        levels: int,
        rows: Sequence[Row],
        *,
        answers: bool,
    ) -> tuple[Tensor, Packed, Tensor]:
        """Values that crossed (a leaf), the packed rows, and the last hidden states [rows, n, width]."""
        model, words = self._model, self._vocabulary
        given = torch.from_numpy(crossed)
        values = model.vision_quantizer.values(given, levels) if levels else given.float()
        values.requires_grad_()
        features = model.vision_quantizer.restore(values) if levels else values
        turns = [
            [
                Turn(words.ids(question), (*words.ids(answer), words.end) if answers else ())
                for question, answer in row.turns
            ]
            for row in rows
        ]
        packed = pack(turns, words, model.decoder, features.shape[1])
        embeddings, _ = embed(packed, features, model.decoder, None, None)
        hidden, _ = model.decoder(embeddings, packed.allowed, packed.positions)
        return values, packed, hidden

    def forget(self) -> None:
        """Drops the gradients of a micro-batch that nothing is to learn from."""
        self._model.zero_grad(set_to_none=True)

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

    def state(self) -> dict[str, Tensor]:
        """The optimizer's."""
        return self._optimizer.state()

    def load(self, state: dict[str, Tensor]) -> None:
        """Takes up a saved state."""
        self._optimizer.load(state)
