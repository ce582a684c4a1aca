"""The types that the server's decoder computes in, and the scale that half precision's gradients need."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Final

import numpy as np
import torch
from torch import Tensor, nn

_DTYPES: Final = {"bf16": torch.bfloat16, "fp16": torch.float16}
_FIRST: Final = 2.0**16
_MOST: Final = 2.0**24
_PATIENCE: Final = 2000


def autocast(precision: str, device: torch.device) -> torch.autocast:
    """Matrices multiplied in ``precision`` for a ``with`` block; weights and their gradients stay float32."""
    return torch.autocast(device.type, _DTYPES.get(precision), enabled=precision in _DTYPES)


@contextmanager
def seeded(device: torch.device, *seed: int) -> Iterator[None]:
    """PyTorch's generators, seeded for a ``with`` block and as they were after it."""
    with torch.random.fork_rng(devices=[] if device.type == "cpu" else [device], device_type=device.type):
        torch.manual_seed(int(np.random.SeedSequence(seed).generate_state(1)[0]))
        yield


class LossScale:
    """Float16's small numbers kept from vanishing: the loss grows before backward, gradients shrink after.

    A micro-batch whose gradients overflow is computed again at half the scale. PyTorch's ``GradScaler``
    leaves out the step instead, which the other side of the cut would have to leave out too.

    Attributes:
        value: by which the loss is multiplied.
    """

    def __init__(self) -> None:
        self.value = _FIRST
        self._good = 0

    def backward(
        self, parameters: Sequence[nn.Parameter], compute: Callable[[float], tuple[Tensor, Tensor]]
    ) -> tuple[Tensor, Tensor]:
        """Adds a micro-batch's gradients to the parameters'.

        Args:
            parameters: that learn.
            compute: forward and backward with a scaled loss; returns the loss as it is, and what crossed,
                with its gradient.

        Returns:
            The loss, NaN where no scale keeps the gradients finite, and the gradient of what crossed.
        """
        before = [parameter.grad for parameter in parameters]
        while True:
            for parameter in parameters:
                parameter.grad = None
            loss, values = compute(self.value)
            found = [values.grad, *(parameter.grad for parameter in parameters)]
            finite = all(bool(torch.isfinite(one).all()) for one in found if one is not None)
            if finite or self.value <= 1 or not bool(torch.isfinite(loss)):
                break
            self.value, self._good = self.value / 2, 0
        if values.grad is None:
            raise RuntimeError("no gradient reached what crossed the cut")
        for parameter, old in zip(parameters, before, strict=True):
            if parameter.grad is not None:
                parameter.grad.div_(self.value)
            if old is not None:
                parameter.grad = old if parameter.grad is None else old.add_(parameter.grad)
        gradient = values.grad / self.value
        if not finite:
            return torch.full_like(loss, torch.nan), gradient
        self._good += 1
        if self._good == _PATIENCE:
            self.value, self._good = min(2 * self.value, _MOST), 0
        return loss, gradient

    def state(self) -> dict[str, Tensor]:
        """The scale, and for how long it has served."""
        return {"loss_scale": torch.tensor([self.value, self._good], dtype=torch.float64)}

    def load(self, state: dict[str, Tensor]) -> None:
        """Takes up a saved scale, where there is one."""
        if "loss_scale" in state:
            value, good = state["loss_scale"].tolist()
            self.value, self._good = value, int(good)
