"""Finite scalar quantization with tanh bounds (Mentzer et al. 2023, arXiv 2309.15505)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from vector_quantize_pytorch import FSQ

from qtl_training.rivals.projection import Basis
from qtl_training.rivals.rival import CodedRival


class TanhFsq(CodedRival):
    """Each channel is bounded by tanh and rounded to its number of levels (equations 1 to 3 of the paper).

    The knob is L, the levels of every channel, unless ``counts`` fixes each channel's own, as the paper's
    tables do; then the knob has no effect. At fixed length a token is one number below the product of
    its levels.

    Args:
        width, tokens, basis, merge: as for every rival.
        code_dim: channels.
        counts: levels of each channel; empty: the knob's.
    """

    def __init__(
        self,
        width: int,
        tokens: int,
        levels: int,
        *,
        code_dim: int,
        merge: int = 1,
        basis: Basis = "spread",
        counts: Sequence[int] = (),
    ) -> None:
        super().__init__(width, tokens, levels, basis=basis, code_dim=code_dim, merge=merge)
        if counts and len(counts) != code_dim:
            raise ValueError(f"{len(counts)} level counts for {code_dim} channels")
        self._counts = tuple(counts)
        self._bounds: dict[tuple[int, ...], FSQ] = {}

    def level_counts(self, levels: int) -> tuple[int, ...]:
        """Levels of each channel."""
        return self._counts or (levels,) * self.channels

    def codes(self, z: Tensor, levels: int) -> Tensor:
        """Codes 0..L-1 of each channel."""
        half = self._half(levels)
        return torch.round(self._bounded(z, levels) * half + half)

    def values(self, codes: Tensor, levels: int) -> Tensor:
        """The bounded, rounded values of codes: about -1 to 1."""
        half = self._half(levels)
        return (codes.float() - half) / half

    def quantize(self, z: Tensor, levels: int) -> tuple[Tensor, Tensor]:
        """Straight-through rounding of the bounded features: the gradient is that of tanh."""
        if not self.training:
            return super().quantize(z, levels)
        return self._bounded(z, levels), z.new_zeros(())

    def _bounded(self, z: Tensor, levels: int) -> Tensor:
        counts = self.level_counts(levels)
        if counts not in self._bounds:
            # The library's plain bound has no middle for two levels; its symmetric one does.
            self._bounds[counts] = FSQ(list(counts), return_indices=False, preserve_symmetry=min(counts) == 2)
        bounded: Tensor = self._bounds[counts].quantize(z)
        return bounded

    def _half(self, levels: int) -> Tensor:
        """What values are divided by: half the levels, rounded down; (L - 1) / 2 in the symmetric form."""
        counts = torch.tensor(self.level_counts(levels))
        return (counts - 1) / 2 if int(counts.min()) == 2 else (counts // 2).float()
