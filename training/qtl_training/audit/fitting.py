"""Training of any attacker: the same optimizer and schedule for all of them."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from tqdm import tqdm

from qtl_core.split_stage import Optimizer
from qtl_training.stages.optimizing import ScheduledAdamW


def fit(
    network: nn.Module,
    loss: Callable[[NDArray[np.int64], torch.Generator], Tensor],
    *,
    examples: int,
    steps: int,
    batch: int,
    lr: float,
    seed: int,
    what: str,
    progress: bool,
) -> None:
    """Trains a network in place, and leaves it in evaluation mode.

    Args:
        network: the attacker.
        loss: of some examples, given by their indices and a source of randomness.
        examples: how many there are.
        steps: optimizer steps; 0 leaves the network as it was built.
        batch: examples a step.
        lr: highest learning rate.
        seed: of the order and of ``loss``'s randomness.
        what: names the bar.
        progress: whether to show it.
    """
    optimizer = ScheduledAdamW(Optimizer(lr=lr), steps, [(list(network.named_parameters()), lr)])
    order = np.random.default_rng([seed, 31])
    generator = torch.Generator().manual_seed(seed)
    network.train()
    with tqdm(total=steps, desc=what, unit="step", leave=False, disable=not progress or None) as bar:
        for step in range(steps):
            chosen = order.choice(examples, batch, replace=False)
            value = loss(chosen, generator)
            optimizer.step(value, step)
            bar.update()
    network.eval()
