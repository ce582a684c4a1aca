"""What is in the cells of a scene: the loss of a network that reads them, and how much it read right."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from qtl_training.audit.networks import CLASSES
from qtl_training.digits.scenes import Scenes

READINGS = ("digits", "colours", "positions", "scenes")
"""Percent: digits of occupied cells, their colours, cells known to be occupied or empty, whole scenes."""


@dataclass(frozen=True)
class Cells:
    """The truth about some scenes.

    Attributes:
        digits: int64 [n, 9], -1 where a cell is empty.
        colours: int64 [n, 9], likewise.
    """

    digits: Tensor
    colours: Tensor

    @classmethod
    def of(cls, scenes: Scenes) -> Cells:
        """What is in the scenes."""
        return cls(
            torch.from_numpy(scenes.digits.astype(np.int64)),
            torch.from_numpy(scenes.colours.astype(np.int64)),
        )

    def loss(self, scores: Tensor, chosen: Tensor) -> Tensor:
        """Cross-entropies of digit and colour (occupied cells) and of occupancy, summed.

        Args:
            scores: float [batch, 9, 17].
            chosen: int64 [batch], which scenes they are about.
        """
        digit, colour, occupied = scores.split(CLASSES, -1)
        digits, colours = self.digits[chosen], self.colours[chosen]
        there = digits >= 0
        total = functional.binary_cross_entropy_with_logits(occupied[..., 0], there.float())
        if there.any():
            total = total + functional.cross_entropy(digit[there], digits[there])
            total = total + functional.cross_entropy(colour[there], colours[there])
        return total

    def read_right(self, scores: Tensor) -> dict[str, float]:
        """Percent right for each of ``READINGS``, of scores [n, 9, 17] about all scenes."""
        digit, colour, occupied = scores.split(CLASSES, -1)
        return self.named_right(digit.argmax(-1), colour.argmax(-1), occupied[..., 0] > 0)

    def named_right(self, digit: Tensor, colour: Tensor, occupied: Tensor) -> dict[str, float]:
        """As ``read_right``, from the digit, colour and occupancy named for each cell, [n, 9] each."""
        there = self.digits >= 0
        right_place = occupied == there
        right_cell = right_place & (~there | ((digit == self.digits) & (colour == self.colours)))
        shares = {
            "digits": (digit == self.digits)[there],
            "colours": (colour == self.colours)[there],
            "positions": right_place,
            "scenes": right_cell.all(-1),
        }
        return {name: 100 * float(right.float().mean()) for name, right in shares.items()}

    def chance(self, learnt: Cells) -> dict[str, float]:
        """What always naming the most frequent value of ``learnt`` reads right here."""
        there = learnt.digits >= 0
        shape = self.digits.shape
        return self.named_right(
            learnt.digits[there].mode().values.expand(shape),
            learnt.colours[there].mode().values.expand(shape),
            (there.float().mean() > 0.5).expand(shape),
        )
