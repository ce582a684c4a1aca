"""AdamW over named arrays with warm-up, cosine and clipping, as ``torch.optim.AdamW`` takes its steps."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from edge_runtime.training.graphs import Arrays, Graphs
from qtl_core.split_stage import Optimizer, SplitStage, schedule
from qtl_core.trainable import ADAMW, CONNECTOR, QUANTIZER, K

_CLIP_FLOOR: Final = 1e-6
_MOMENTS: Final = {"first": "exp_avg", "second": "exp_avg_sq"}


def rates_of(stage: SplitStage, tensors: Mapping[str, NDArray[Any]]) -> dict[str, float]:
    """The highest learning rate of every tensor that a stage trains on the client's side."""
    in_proj = stage.quantizer_lr if stage.in_proj_lr is None else stage.in_proj_lr
    found = {}
    for name in tensors:
        if name.startswith(CONNECTOR) and "connector" in stage.train:
            found[name] = stage.optimizer.lr
        elif name.startswith(f"{QUANTIZER}in_proj.") and "vision_quantizer" in stage.train:
            found[name] = in_proj
        elif name == K and "vision_quantizer" in stage.train:
            found[name] = stage.k_lr
    return found


class ScheduledAdamW:
    """Steps of one stage.

    Args:
        graphs: with AdamW's.
        settings: the recipe's.
        steps: steps of the whole stage.
        rates: what is trained, and its highest learning rate.
        betas: decay of the moments, as the graph has it.
        eps: under the quotient.
    """

    def __init__(
        self,
        graphs: Graphs,
        settings: Optimizer,
        steps: int,
        rates: Mapping[str, float],
        betas: tuple[float, float],
        eps: float,
    ) -> None:
        self._graphs, self._settings, self._steps = graphs, settings, steps
        self._rates, self._betas, self._eps = rates, betas, eps
        self._state: dict[str, Arrays] = {}
        self._taken: dict[str, int] = {}

    def apply(
        self, step: int, squared_norm: float, tensors: Arrays, gradients: Mapping[str, NDArray[Any]]
    ) -> None:
        """Takes step number ``step`` (from 0); tensors without a gradient stay, and their moments too.

        Args:
            step: its number in the stage.
            squared_norm: of all gradients, those of the other partition too; clipping goes by it.
            tensors: replaced one by one.
            gradients: float32, by the tensors' names.
        """
        share = schedule(self._settings, step, self._steps)
        clip = min(1.0, self._settings.clip / (math.sqrt(squared_norm) + _CLIP_FLOOR))
        for name, gradient in gradients.items():
            shape, rate = tensors[name].shape, self._rates[name] * share
            flat = np.zeros(gradient.size, np.float32)
            state = self._state.setdefault(name, {"first": flat, "second": flat})
            self._taken[name] = taken = self._taken.get(name, 0) + 1
            # Matrices decay; k is one number a level count or channel, whatever its shape.
            decay = self._settings.weight_decay if len(shape) > 1 and name != K else 0.0
            moved = self._graphs.run(
                ADAMW,
                {
                    "tensor": tensors[name].reshape(-1),
                    "gradient": gradient.reshape(-1),
                    **state,
                    "clip": _number(clip),
                    "keep": _number(1 - rate * decay),
                    "rate": _number(rate / (1 - self._betas[0] ** taken)),
                    "root": _number(math.sqrt(1 - self._betas[1] ** taken)),
                    "eps": _number(self._eps),
                },
            )
            tensors[name] = moved["moved.tensor"].reshape(shape)
            self._state[name] = {part: moved[f"moved.{part}"] for part in state}

    def state(self, tensors: Mapping[str, NDArray[Any]]) -> Arrays:
        """Moments and step counts, under PyTorch's names."""
        found: Arrays = {}
        for name, moments in self._state.items():
            for part, value in moments.items():
                found[f"{name}/{_MOMENTS[part]}"] = value.reshape(tensors[name].shape)
            found[f"{name}/step"] = _number(self._taken[name])
        return found

    def load(self, state: Mapping[str, NDArray[Any]]) -> None:
        """Takes up what ``state`` returned."""
        for name in {key.rpartition("/")[0] for key in state}:
            self._state[name] = {
                part: state[f"{name}/{theirs}"].reshape(-1) for part, theirs in _MOMENTS.items()
            }
            self._taken[name] = int(state[f"{name}/step"])


def _number(value: float) -> NDArray[np.float32]:
    return np.array(value, np.float32)
