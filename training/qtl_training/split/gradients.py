"""The gradients that a server sends: rounded by a seed of their own, with what is owed kept between steps."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from qtl_core.gradients import ErrorFeedback

_STREAM = 14


class GradientCoder:
    """Codes the gradients of a stage.

    Args:
        seed: of the rounding; with step and micro-batch it decides the bytes, so that a replayed step sends
            the same.
        bits: one of ``qtl_core.gradients.GRAD_BITS``.
    """

    def __init__(self, seed: int, bits: int) -> None:
        self._seed, self._bits = seed, bits
        # By the shape of a sample: codes and features may take turns.
        self._feedback: dict[tuple[int, ...], ErrorFeedback] = {}

    def encode(
        self, step: int, micro: int, gradient: NDArray[np.float32]
    ) -> tuple[bytes, NDArray[np.float32]]:
        """The bytes of a micro-batch's gradient [pictures, ...], and what the client will read in them.

        Raises:
            InputError: if it is not finite.
        """
        if not len(gradient):
            return b"", gradient
        shape = gradient.shape[1:]
        feedback = self._feedback.setdefault(shape, ErrorFeedback(shape, self._bits))
        return feedback.encode(gradient, np.random.default_rng([self._seed, step, micro, _STREAM]))

    def state(self) -> dict[str, Tensor]:
        """What is owed, named by shape."""
        return {
            f"feedback.{'x'.join(map(str, shape))}": torch.from_numpy(feedback.residual.copy())
            for shape, feedback in self._feedback.items()
        }

    def load(self, state: dict[str, Tensor]) -> None:
        """Takes up a saved state."""
        self._feedback = {}
        for name, residual in state.items():
            if not name.startswith("feedback."):
                continue
            shape = tuple(residual.shape)
            self._feedback[shape] = feedback = ErrorFeedback(shape, self._bits)
            feedback.residual = residual.numpy().copy()
