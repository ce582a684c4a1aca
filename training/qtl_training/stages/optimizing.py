"""AdamW, its schedule and its state as named tensors."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from qtl_core.split_stage import Optimizer, schedule

_CLIP_FLOOR = 1e-6  # torch.nn.utils.clip_grad_norm_'s

Group = tuple[Sequence[tuple[str, nn.Parameter]], float]


class ScheduledAdamW:
    """AdamW over named parameters with warm-up, cosine and clipping by global norm.

    Args:
        settings: the recipe's.
        steps: steps of the whole stage.
        groups: named parameters and the highest learning rate of each group.
    """

    def __init__(self, settings: Optimizer, steps: int, groups: Iterable[Group]) -> None:
        self._settings, self._steps = settings, steps
        self._named: list[tuple[str, nn.Parameter]] = []
        options: list[dict[str, Any]] = []
        for named, lr in groups:
            trained = [(name, parameter) for name, parameter in named if parameter.requires_grad]
            self._named += trained
            for matrices in (True, False):
                chosen = [p for name, p in trained if (p.ndim > 1 and not name.endswith(".k")) == matrices]
                if chosen:
                    decay = settings.weight_decay if matrices else 0.0
                    options.append({"params": chosen, "lr": lr, "highest": lr, "weight_decay": decay})
        if not options:  # a frozen partition; torch wants a parameter, and leaves one without gradient alone
            options.append({"params": [nn.Parameter(torch.zeros(()))], "lr": 0.0, "highest": 0.0})
        self._adamw = torch.optim.AdamW(options, betas=(0.9, 0.98))

    def step(self, loss: Tensor, step: int) -> float:
        """Takes optimizer step number ``step`` (from 0) and returns its share of the highest rate."""
        share = schedule(self._settings, step, self._steps)
        for group in self._adamw.param_groups:
            group["lr"] = group["highest"] * share
        self._adamw.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_([parameter for _, parameter in self._named], self._settings.clip)
        self._adamw.step()
        return share

    def squared_norm(self) -> float:
        """Squared global norm of the gradients: one of the summands that clipping across a cut needs."""
        return sum(
            float(parameter.grad.double().square().sum())
            for _, parameter in self._named
            if parameter.grad is not None
        )

    def apply(self, step: int, squared_norm: float) -> float:
        """Takes step number ``step`` with the gradients that are there, and clears them.

        Args:
            step: from 0.
            squared_norm: of all gradients, those of other partitions too; clipping goes by it.

        Returns:
            The step's share of the highest rate.
        """
        share = schedule(self._settings, step, self._steps)
        factor = min(1.0, self._settings.clip / (math.sqrt(squared_norm) + _CLIP_FLOOR))
        for group in self._adamw.param_groups:
            group["lr"] = group["highest"] * share
        for _, parameter in self._named:
            if parameter.grad is not None:
                parameter.grad.mul_(factor)
        self._adamw.step()
        self._adamw.zero_grad(set_to_none=True)
        return share

    @property
    def parameters(self) -> list[nn.Parameter]:
        """What is trained, in a fixed order."""
        return [parameter for _, parameter in self._named]

    def state(self) -> dict[str, Tensor]:
        """Moments and step counts, named after their parameters."""
        named = {}
        for name, parameter in self._named:
            for key, value in self._adamw.state.get(parameter, {}).items():
                named[f"{name}/{key}"] = torch.as_tensor(value).detach().clone()
        return named

    def load(self, named: dict[str, Tensor]) -> None:
        """Takes up a saved state."""
        for name, parameter in self._named:
            found = {
                # Counts of steps stay on the CPU, where AdamW has them.
                key.rpartition("/")[2]: value.to(parameter.device if value.ndim else "cpu", copy=True)
                for key, value in named.items()
                if key.rpartition("/")[0] == name
            }
            if found:
                self._adamw.state[parameter] = found
