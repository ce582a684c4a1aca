"""Looking at a model without leaving a trace in it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn


@contextmanager
def held_still(*modules: nn.Module) -> Iterator[None]:
    """Modules in evaluation mode, no gradients, and PyTorch's generator as it was after a ``with`` block."""
    before = [(part, part.training) for module in modules for part in module.modules()]
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        for module in modules:
            module.eval()
        try:
            yield
        finally:
            for part, training in before:
                part.training = training
