"""Attributes: a probe names digit, colour and occupancy of each cell straight from what crossed.

Nothing read off a reconstruction can be more than what the same effort reads off the codes, so these
numbers bound the leakage from above, as far as the attacker's strength goes.
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from qtl_training.audit.cells import Cells
from qtl_training.audit.fitting import fit
from qtl_training.audit.networks import Probe
from qtl_training.audit.settings import Effort
from qtl_training.audit.target import Piece, Target

THRESHOLD_POINTS = 20.0
"""How many points above chance the attacker must read digits off 16-bit features."""

CHANCE = "chance"
"""Always naming what was most frequent in training."""

_LR = 1e-3
_BATCH = 256


class Attributes:
    """The attack on one target.

    Args:
        target: what is attacked.
    """

    def __init__(self, target: Target) -> None:
        self._target, self.key = target, "attributes"
        self._learnt = Cells.of(target.gallery.train.scenes)
        self._truth = Cells.of(target.gallery.test.scenes)
        self.subjects = (CHANCE, *(one.name for one in target.representations))

    def make(self, subject: str, seed: int) -> Piece:
        """Reads the test scenes from one representation."""
        if subject == CHANCE:
            return Piece(dict(self._truth.chance(self._learnt)))
        target = self._target
        read = probe(
            *target.seen(subject),
            self._learnt,
            self._truth,
            target.cut.tokens,
            target.effort,
            seed,
            what=f"attributes of {subject}",
            progress=target.progress,
        )
        return Piece(dict(read))


def probe(
    seen: Tensor,
    seen_test: Tensor,
    learnt: Cells,
    truth: Cells,
    tokens: int,
    effort: Effort,
    seed: int,
    *,
    what: str = "attributes",
    progress: bool = True,
) -> dict[str, float]:
    """Trains a probe on one representation and reads the test scenes with it.

    Args:
        seen: what the server had of the training pictures, float [n, tokens, channels].
        seen_test: what it has of the test pictures.
        learnt: what is in the training pictures.
        truth: what is in the test pictures.
        tokens: picture tokens of the tower, a square number.
        effort: steps and batch.
        seed: of weights and order.
        what: names the bar.
        progress: whether to show it.

    Returns:
        Percent read right, by ``READINGS``.
    """
    torch.manual_seed(seed)
    network = Probe(seen, round(tokens**0.5))

    def loss(chosen: NDArray[np.int64], generator: torch.Generator) -> Tensor:
        index = torch.from_numpy(chosen)
        return learnt.loss(network(seen[index]), index)

    fit(
        network,
        loss,
        examples=len(seen),
        steps=effort.attribute_steps,
        batch=effort.batch,
        lr=_LR,
        seed=seed,
        what=what,
        progress=progress,
    )
    with torch.no_grad():
        return truth.read_right(torch.cat([network(part) for part in seen_test.split(_BATCH)]))
