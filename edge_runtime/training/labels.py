"""Labels that stay at home: the loss, its gradient and the client's own head, in numpy.

The server returns what its model puts at the last question position. Scores s of the answers there are give
the loss -log softmax(s)[label], whose gradient with respect to s is softmax(s) - onehot(label). With the head
W on the client, s = h W^T of the hidden states h, and what goes back is that gradient times W.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from qtl_core.crossing import Row
from qtl_core.errors import MalformedMessage
from qtl_core.gradients import encode
from qtl_core.split_stage import SplitStage, schedule

Floats = NDArray[np.float32]

_STREAM: Final = 15
_BETAS: Final = (0.9, 0.98)
_EPSILON: Final = 1e-8
_CLIP_FLOOR: Final = 1e-6


@dataclass(frozen=True)
class Judged:
    """What a micro-batch's outputs came to.

    Attributes:
        loss: sum of the cross-entropies, in nats.
        right: questions whose right answer scored highest.
        turns: questions.
        data: the gradient of ``loss`` with respect to the outputs, as it crosses.
        gradient: the same as the server reads it, float32 [turns, columns].
    """

    loss: float
    right: int
    turns: int
    data: bytes
    gradient: Floats


class PrivateLabels:
    """The client's labels, and its head where it has one, through one stage.

    Args:
        stage: the recipe's settings, with private labels.
        seed: of the stage; decides the rounding of gradients.
        class_of: index of an answer among those that are scored.
        columns: values that the server returns for a question.
        head: float32 [answers, columns], trained here; None where the server returns scores.

    Attributes:
        columns: as given.
        head: trained in place.
    """

    def __init__(
        self,
        stage: SplitStage,
        seed: int,
        class_of: Callable[[str], int],
        columns: int,
        head: Floats | None = None,
    ) -> None:
        self._stage, self._seed, self._class_of = stage, seed, class_of
        self.columns = columns
        self.head = None if head is None else np.array(head, np.float32)
        shape = (0, 0) if self.head is None else self.head.shape
        self._summed: Floats = np.zeros(shape, np.float32)
        self._first: Floats = np.zeros(shape, np.float32)
        self._second: Floats = np.zeros(shape, np.float32)
        self._steps = 0

    def check(self, rows: Sequence[Row]) -> None:
        """Looks at the answers before anything is sent.

        Raises:
            InputError: one that cannot be scored at the last question position.
        """
        for row in rows:
            for _, answer in row.turns:
                self._class_of(answer)

    def judge(self, step: int, micro: int, outputs: Floats, rows: Sequence[Row]) -> Judged:
        """Loss and gradient of a micro-batch; the head's gradients add up over a step.

        Args:
            step: of the stage.
            micro: number in the step; they must come in order.
            outputs: float32 [turns, columns], as they crossed.
            rows: with their answers.

        Raises:
            MalformedMessage: outputs of another shape.
            InputError: an answer that cannot be scored, or a loss that is not finite.
        """
        labels = np.array([self._class_of(answer) for row in rows for _, answer in row.turns], np.int64)
        if outputs.shape != (len(labels), self.columns):
            raise MalformedMessage(
                f"the server returned outputs of shape {outputs.shape} for {len(labels)} questions with "
                f"{self.columns} values each; do both sides have the same recipe?"
            )
        scores = outputs if self.head is None else outputs @ self.head.T
        loss, gradient = cross_entropy(scores, labels)
        right = int((scores.argmax(1) == labels).sum())
        if self.head is not None:
            self._summed += gradient.T @ outputs
            gradient = gradient @ self.head
        random = np.random.default_rng([self._seed, step, micro, _STREAM])
        data, crossed = encode(gradient, self._stage.grad_bits, random)
        return Judged(loss, right, len(labels), data, crossed)

    def squared_norm(self, answers: int) -> float:
        """Ends the sums over the step's micro-batches and returns their squared norm; 0 without a head."""
        self._summed /= np.float32(answers)
        return float(np.square(self._summed, dtype=np.float64).sum())

    def apply(self, step: int, squared_norm: float) -> None:
        """Takes AdamW's step (arXiv 1711.05101), clipped by the squared norm of all gradients."""
        if self.head is None:
            return
        settings = self._stage.optimizer
        gradient = self._summed * np.float32(
            min(1.0, settings.clip / (math.sqrt(squared_norm) + _CLIP_FLOOR))
        )
        self._summed = np.zeros_like(self._summed)
        rate = self._stage.head_lr * schedule(settings, step, self._stage.steps)
        self._steps += 1
        one, two = _BETAS
        self._first = np.float32(one) * self._first + np.float32(1 - one) * gradient
        self._second = np.float32(two) * self._second + np.float32(1 - two) * np.square(gradient)
        first = self._first / np.float32(1 - one**self._steps)
        second = np.sqrt(self._second / np.float32(1 - two**self._steps)) + np.float32(_EPSILON)
        self.head *= np.float32(1 - rate * settings.weight_decay)
        self.head -= np.float32(rate) * first / second

    def state(self) -> dict[str, NDArray[np.float32]]:
        """Head and optimizer; empty without a head."""
        if self.head is None:
            return {}
        return {
            "labels.head": self.head.copy(),
            "labels.first": self._first,
            "labels.second": self._second,
            "labels.steps": np.array([self._steps], np.float32),
        }

    def load(self, state: Mapping[str, NDArray[np.float32]]) -> None:
        """Takes up a saved state, where it holds one."""
        if self.head is None or "labels.head" not in state:
            return
        self.head = np.array(state["labels.head"], np.float32)
        self._first, self._second = np.array(state["labels.first"]), np.array(state["labels.second"])
        self._steps = int(state["labels.steps"][0])


def cross_entropy(scores: Floats, labels: NDArray[np.int64]) -> tuple[float, Floats]:
    """The summed cross-entropy of scores [n, classes] in nats, and its gradient, float32 [n, classes]."""
    wide = scores.astype(np.float64)
    wide -= wide.max(axis=1, keepdims=True)
    shares = np.exp(wide)
    total = shares.sum(axis=1, keepdims=True)
    at = np.arange(len(labels))
    loss = float((np.log(total[:, 0]) - wide[at, labels]).sum())
    gradient = shares / total
    gradient[at, labels] -= 1
    return loss, gradient.astype(np.float32)
