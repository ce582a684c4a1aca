"""Learnt one-bit codes: the sign of each channel against a learnt threshold."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from qtl_training.rivals.projection import Basis
from qtl_training.rivals.rival import CodedRival


class OneBit(CodedRival):
    """One bit a channel; what each bit stands for is learnt by the map that reads the signs.

    The gradient is the identity within one deviation of the threshold and 0 beyond (Courbariaux et
    al. 2016, arXiv 1602.02830).

    Args: as for every rival. The knob is always 2.
    """

    def __init__(
        self,
        width: int,
        tokens: int,
        levels: int = 2,
        *,
        code_dim: int,
        merge: int = 1,
        basis: Basis = "spread",
    ) -> None:
        super().__init__(width, tokens, levels, basis=basis, code_dim=code_dim, merge=merge)
        self.threshold = nn.Parameter(torch.zeros(code_dim))

    def level_counts(self, levels: int) -> tuple[int, ...]:
        """Two for each channel."""
        return (2,) * self.channels

    def codes(self, z: Tensor, levels: int) -> Tensor:
        """1 where a feature is above its threshold."""
        return (z > self.threshold).to(torch.uint8)

    def values(self, codes: Tensor, levels: int) -> Tensor:
        """-1 or 1."""
        return codes.float() * 2 - 1

    def quantize(self, z: Tensor, levels: int) -> tuple[Tensor, Tensor]:
        """Signs, straight-through within the clip."""
        v, none = self.values(self.codes(z, levels), levels), z.new_zeros(())
        if not self.training:
            return v, none
        soft = torch.clamp(z - self.threshold, -1, 1)
        return soft + (v - soft).detach(), none
