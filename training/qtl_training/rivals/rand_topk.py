"""Randomised top-k sparsification (Zheng et al. 2023, arXiv 2305.18469)."""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor

from qtl_training.rivals import bits
from qtl_training.rivals.projection import Basis
from qtl_training.rivals.rival import Array, OneByOne, exactly

_ALPHA = 0.1


class RandTopk(OneByOne):
    """Only the ``levels`` largest features of a picture cross; in training some others instead.

    In training each of the k places goes to a feature outside the top k with probability alpha, drawn
    evenly, so that features that are never large learn too; gradients flow through what crossed. What
    crosses is half precision; which features they are is told by the number of their subset, in
    log2 C(n, k) bits rounded up to whole bytes, less than k separate indices take.

    Args:
        width, tokens, levels, basis, code_dim, merge: as for every rival; the knob is k, the number
            of features of a picture that cross.
        alpha: the probability of a random place.
    """

    def __init__(
        self,
        width: int,
        tokens: int,
        levels: int,
        *,
        alpha: float = _ALPHA,
        basis: Basis = "none",
        code_dim: int = 0,
        merge: int = 1,
    ) -> None:
        super().__init__(width, tokens, levels, basis=basis, code_dim=code_dim, merge=merge)
        self.alpha = alpha
        self._features = self.coded_tokens * self.channels

    def quantize(self, z: Tensor, levels: int) -> tuple[Tensor, Tensor]:
        """What crosses, and zeros elsewhere."""
        if not self.training:
            return super().quantize(z, levels)
        flat = z.flatten(1)
        mask = self._random_mask(flat.detach().abs(), levels)
        sent = flat + (flat.detach().half().float() - flat.detach())
        return (sent * mask).view_as(z), z.new_zeros(())

    def encode_one(self, z: Array, levels: int) -> bytes:
        """The subset's number, then its values in the order of their places."""
        flat = z.reshape(-1)
        chosen = np.sort(np.argsort(-np.abs(flat), kind="stable")[:levels])
        rank = bits.subset_rank(chosen.tolist(), len(flat))
        return rank.to_bytes(self._rank_size(levels), "little") + flat[chosen].astype("<f2").tobytes()

    def decode_one(self, payload: bytes, levels: int) -> Array:
        """The features, zero where none crossed.

        Raises:
            CodeError: for a wrong length.
        """
        size = self._rank_size(levels)
        data = exactly(payload, size + 2 * levels)
        flat = np.zeros(self._features, np.float32)
        # A damaged number of a subset that does not exist names some other subset.
        rank = int.from_bytes(data[:size], "little") % math.comb(self._features, levels)
        flat[bits.subset_of(rank, self._features, levels)] = np.frombuffer(data[size:], "<f2")
        return flat.reshape(self.coded_tokens, self.channels)

    def _random_mask(self, magnitude: Tensor, k: int) -> Tensor:
        """1 for the k features of each row that cross, [pictures, features]."""
        top = torch.zeros_like(magnitude, dtype=torch.bool)
        top.scatter_(1, magnitude.topk(k, dim=1).indices, True)
        dropped = top & (torch.rand_like(magnitude) < self.alpha)
        # The places that were dropped go to the others that draw the largest numbers.
        order = torch.rand_like(magnitude).masked_fill(top, -1).argsort(1, descending=True).argsort(1)
        drawn = (order < dropped.sum(1, keepdim=True)) & ~top
        return ((top & ~dropped) | drawn).float()

    def _rank_size(self, k: int) -> int:
        return bits.size_of(math.comb(self._features, k))
