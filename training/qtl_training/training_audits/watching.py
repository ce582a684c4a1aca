"""What a client can notice of a server that steers it: numbers of its own, and of what comes back."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from qtl_core.crossing import MicroBatch, Row
from qtl_core.nn.checkpoint import Checkpoint
from qtl_core.nn.quantizer import distortion
from qtl_training.split.server_side import ServerSide
from qtl_training.training_audits.observed import kind_of

Floats = NDArray[np.float32]
Codes = NDArray[np.uint8]

SIGNS: Final = {
    "right": "held-out questions answered right, %",
    "loss": "loss of held-out questions, nats a token",
    "distortion": "own distortion loss",
    "changed": "codes changed since the start, %",
    "entropy": "entropy of a code, bits",
    "gradient_norm": "norm of a picture's gradient",
    "answers_matter": "cosine of the gradients for right and for wrong answers",
}
"""What is watched, and what it is called."""


class Watch:
    """One client's own check on pictures that it does not train on.

    Args:
        checkpoint: in training; looked at, and left as it is.
        server: the model that a server should be running, for questions asked in between.
        features: the tower's, of the held-out pictures.
        micro: the questions about them.
        levels: L.
    """

    def __init__(
        self, checkpoint: Checkpoint, server: ServerSide, features: Tensor, micro: MicroBatch, levels: int
    ) -> None:
        self._model, self._server, self._levels = checkpoint.model, server, levels
        self._features, self._micro = features, micro
        self._start = self._look()[0]

    def look(self, returned: Callable[[Codes, Sequence[Row]], Floats]) -> dict[str, float]:
        """Everything there is to see now.

        Args:
            returned: asks the server in question for a micro-batch's gradient.
        """
        codes, lost = self._look()
        counts = np.bincount(codes.ravel(), minlength=self._levels) / codes.size
        told = counts[counts > 0]
        result = self._server.run(codes, self._levels, self._micro.rows)
        self._server.forget()
        right = returned(codes, self._micro.rows)
        wrong = returned(codes, swapped(self._micro.rows))
        return {
            "right": 100 * result.right / result.turns,
            "loss": result.loss / result.tokens,
            "distortion": lost,
            "changed": 100 * float((codes != self._start).mean()),
            "entropy": float(-(told * np.log2(told)).sum()),
            "gradient_norm": float(np.linalg.norm(right.reshape(len(right), -1), axis=1).mean()),
            "answers_matter": cosine(right, wrong),
        }

    @torch.no_grad()
    def _look(self) -> tuple[Codes, float]:
        quantizer = self._model.vision_quantizer
        training = quantizer.training
        quantizer.eval()  # a look must not move its statistics
        scaled = quantizer.scale(
            quantizer.project(self._model.vision.connector(self._features.float())), self._levels
        )
        quantizer.train(training)
        codes = quantizer.to_codes(scaled, self._levels)
        found: Codes = codes.to(torch.uint8).numpy()
        return found, float(distortion(scaled, quantizer.values(codes, self._levels)))


def swapped(rows: Sequence[Row]) -> list[Row]:
    """The same questions, each with an answer that was right for another one of its kind."""
    given: dict[str, list[str]] = {}
    for row in rows:
        for question, answer in row.turns:
            known = given.setdefault(kind_of(question), [])
            if answer not in known:
                known.append(answer)

    def other(question: str, answer: str) -> str:
        known = given[kind_of(question)]
        return known[(known.index(answer) + 1) % len(known)]

    return [Row(row.pictures, tuple((q, other(q, a)) for q, a in row.turns)) for row in rows]


def cosine(one: Floats, other: Floats) -> float:
    """Of two gradients as vectors."""
    return float((one * other).sum() / (np.linalg.norm(one) * np.linalg.norm(other) + 1e-30))


def told_apart(honest: Sequence[float], malicious: Sequence[float]) -> float:
    """How well one number tells two servers apart: 0.5 not at all, 1 always (area under the ROC curve)."""
    pairs = [0.5 if a == b else float(b > a) for a in honest for b in malicious]
    area = sum(pairs) / len(pairs)
    return max(area, 1 - area)
