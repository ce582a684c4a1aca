"""Adaptive feature-wise quantization (SplitFC, Oh et al. 2023, arXiv 2307.10805)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from qtl_core.errors import CodeError
from qtl_training.rivals import bits
from qtl_training.rivals.projection import Basis
from qtl_training.rivals.rival import Array, OneByOne

_STEPS = 128  # how finely bits can be traded for error
_MEAN_LEVELS = (1, 2, 4, 8, 16)
_MOST_LEVELS = 256
_FEWEST = 0.5  # (Q - 1)^3 / Q at Q = 2
_MOST = (_MOST_LEVELS - 1) ** 3 / _MOST_LEVELS
_TRADES = _FEWEST * (_MOST / _FEWEST) ** (np.arange(_STEPS) / (_STEPS - 1))
_HALF_SPAN = 1 << 16


@dataclass(frozen=True)
class Plan:
    """How one picture is sent; everything in it crosses.

    Attributes:
        step: index of the trade between bits and error.
        mean_choice: index into the level counts of the mean quantizer; 0 sends no means.
        ends: float16 [4]: smallest and largest feature, smallest and largest mean.
        chosen: the feature vectors that are quantized entry by entry, ascending.
        low, high: their quantized ends.
        means: quantized means of the others.
        entries: codes of the chosen, one row each.
    """

    step: int
    mean_choice: int
    ends: NDArray[np.float16]
    chosen: list[int]
    low: list[int]
    high: list[int]
    means: list[int]
    entries: list[list[int]]


class AdaptiveFeatureWise(OneByOne):
    """Feature vectors (one channel over all tokens) get levels by their range, within a budget of bytes.

    Vectors with a large range are quantized entry by entry between their own, quantized ends; of the
    others only the quantized mean crosses, or nothing: then their mean on training pictures stands in.
    Minimising the summed squared error r_j^2 / (Q_j - 1)^2 under a budget of sum log2 Q_j gives
    (Q_j - 1)^3 / Q_j proportional to r_j^2, a cubic with a closed form (the paper's section on optimal
    levels); how many vectors get levels, and which trade of bits for error, is searched. Ends, choice,
    means and trade are side information and part of the payload. SplitFC's other half, dropping
    feature vectors at random in training, saves bytes of training only and is left out.

    Args:
        width, tokens, levels, basis, code_dim, merge: as for every rival; the knob is the budget of a
            picture in bytes.
        end_levels: levels of the quantized ends.
    """

    centre: Tensor

    def __init__(
        self,
        width: int,
        tokens: int,
        levels: int,
        *,
        end_levels: int = 64,
        basis: Basis = "none",
        code_dim: int = 0,
        merge: int = 1,
    ) -> None:
        super().__init__(width, tokens, levels, basis=basis, code_dim=code_dim, merge=merge)
        self.end_levels = end_levels
        self.register_buffer("centre", torch.zeros(self.channels))

    def initialise(self, z: Tensor, seed: int) -> None:
        """Takes each channel's mean."""
        self.centre.copy_(z.mean((0, 1)))

    @torch.no_grad()
    def calibrate(self, x: Tensor, knobs: Sequence[int]) -> None:
        """Takes each channel's mean again, after training."""
        self.centre.copy_(self.projection(x).mean((0, 1)))

    def encode_one(self, z: Array, levels: int) -> bytes:
        """One number whose digits are the plan's."""
        plan, writer = self._plan(z, levels), bits.Writer()
        chosen, others = len(plan.chosen), self.channels - len(plan.chosen)
        writer.put(plan.step, _STEPS)
        writer.put(plan.mean_choice, len(_MEAN_LEVELS))
        writer.put(chosen, self.channels + 1)
        for end in plan.ends.view(np.uint16)[_sent(plan.mean_choice, others)].tolist():
            writer.put(end, _HALF_SPAN)
        writer.put(bits.subset_rank(plan.chosen, self.channels), math.comb(self.channels, chosen))
        for low, high in zip(plan.low, plan.high, strict=True):
            writer.put(low, self.end_levels)
            writer.put(high, self.end_levels)
        for mean in plan.means:
            writer.put(mean, _MEAN_LEVELS[plan.mean_choice])
        for count, row in zip(self._levels(plan), plan.entries, strict=True):
            writer.put(bits.joined(row, count), count**self.coded_tokens)
        return writer.bytes()

    def decode_one(self, payload: bytes, levels: int) -> Array:
        """The features again.

        Raises:
            CodeError: if the bytes hold no plan.
        """
        reader = bits.Reader(payload)
        step, mean_choice = reader.take(_STEPS), reader.take(len(_MEAN_LEVELS))
        count = reader.take(self.channels + 1)
        others = self.channels - count
        ends = np.zeros(4, np.uint16)
        for place in _sent(mean_choice, others):
            ends[place] = reader.take(_HALF_SPAN)
        chosen = bits.subset_of(reader.take(math.comb(self.channels, count)), self.channels, count)
        pairs = [(reader.take(self.end_levels), reader.take(self.end_levels)) for _ in chosen]
        means = [reader.take(_MEAN_LEVELS[mean_choice]) for _ in range(others if mean_choice else 0)]
        low, high = [pair[0] for pair in pairs], [pair[1] for pair in pairs]
        plan = Plan(step, mean_choice, ends.view(np.float16), chosen, low, high, means, [])
        if not np.isfinite(plan.ends).all():
            raise CodeError("the ends of the features are not finite")
        rows = [
            bits.parted(reader.take(count**self.coded_tokens), count, self.coded_tokens)
            for count in self._levels(plan)
        ]
        reader.close()
        plan.entries.extend(rows)
        return self._values(plan)

    def restored(self, z: Array, levels: int) -> Array:
        """By way of the plans, without their bytes."""
        return np.stack([self._values(self._plan(one, levels)) for one in z])

    def _plan(self, z: Array, budget: int) -> Plan:
        tokens, channels = z.shape
        mean = z.mean(0)
        edges = [z.min(), z.max(), mean.min(), mean.max()]
        ends = np.clip(edges, -65504, 65504).astype(np.float16)
        low, high = self._end_codes(z, ends)
        ranges = (high - low).astype(np.float64)
        order = np.argsort(-ranges, kind="stable")
        trade = _TRADES[:, None] * (ranges[order] / max(ranges.max(), 1)) ** 2
        counts = _levels_at(trade)
        width = _end_step(ends, self.end_levels)
        entry_bits = _before(tokens * np.log2(counts))
        entry_error = _before(tokens * (ranges[order] * width / (counts - 1)) ** 2 / 12)
        best: tuple[float, int, int, int] = (math.inf, 0, 0, 0)
        for choice in range(len(_MEAN_LEVELS)):
            stand_in = self._means(self._mean_codes(mean, choice, ends), choice, ends)
            missed = ((z - stand_in) ** 2).sum(0)[order]
            others_error = np.concatenate([[0.0], np.cumsum(missed[::-1])])[::-1]
            cost = entry_bits + self._side_bits(choice)
            error = np.where(np.ceil(cost / 8) <= budget, entry_error + others_error, math.inf)
            step, count = divmod(int(error.argmin()), error.shape[1])
            best = min(best, (float(error[step, count]), step, count, choice))
        if math.isinf(best[0]):
            raise ValueError(f"a budget of {budget} bytes is too small for anything")
        _, step, count, choice = best
        chosen = np.sort(order[:count])
        others = np.setdiff1d(np.arange(channels), chosen)
        means = self._mean_codes(mean, choice, ends)[others].tolist() if choice else []
        plan = Plan(
            step, choice, ends, chosen.tolist(), low[chosen].tolist(), high[chosen].tolist(), means, []
        )
        bottom, span = self._ends_of(plan)
        scaled = (z[:, chosen] - bottom) / np.where(span > 0, span, 1)
        levels = np.array(self._levels(plan))
        codes = np.clip(np.rint(scaled * (levels - 1)), 0, levels - 1).astype(int)
        plan.entries.extend(codes.T.tolist())
        return plan

    def _values(self, plan: Plan) -> Array:
        stand_in = self.centre.numpy().astype(np.float32)
        out = np.repeat(stand_in[None], self.coded_tokens, 0)
        others = np.setdiff1d(np.arange(self.channels), plan.chosen)
        if plan.mean_choice:
            out[:, others] = self._means(np.array(plan.means), plan.mean_choice, plan.ends)
        if plan.chosen:
            bottom, span = self._ends_of(plan)
            levels = np.array(self._levels(plan))
            out[:, plan.chosen] = bottom + np.array(plan.entries).T / (levels - 1) * span
        return out

    def _levels(self, plan: Plan) -> list[int]:
        """Q of each chosen vector, as both ends find it from the quantized ends."""
        ranges = np.array(plan.high, float) - np.array(plan.low, float)
        trade = _TRADES[plan.step] * (ranges / max(ranges.max(initial=0), 1)) ** 2
        return [int(count) for count in _levels_at(trade)]

    def _side_bits(self, choice: int) -> NDArray[np.float64]:
        """Bits of everything but the entries, for 0 to all vectors chosen."""
        count = np.arange(self.channels + 1)
        which = np.array([math.log2(math.comb(self.channels, int(n))) for n in count])
        fixed = math.log2(_STEPS * len(_MEAN_LEVELS) * (self.channels + 1)) + 32
        means = (self.channels - count) * math.log2(_MEAN_LEVELS[choice])
        return fixed + which + 2 * count * math.log2(self.end_levels) + means + (32 if choice else 0)

    def _end_codes(self, z: Array, ends: NDArray[np.float16]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Ends of each vector, rounded outwards."""
        step = _end_step(ends, self.end_levels)
        place = (np.stack([z.min(0), z.max(0)]).astype(np.float64) - float(ends[0])) / (step or 1)
        last = self.end_levels - 1
        low, high = np.floor(place[0]), np.ceil(place[1])
        return np.clip(low, 0, last).astype(np.int64), np.clip(high, 0, last).astype(np.int64)

    def _ends_of(self, plan: Plan) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        step = _end_step(plan.ends, self.end_levels)
        low = np.array(plan.low, float)
        return float(plan.ends[0]) + low * step, (np.array(plan.high, float) - low) * step

    def _mean_codes(self, mean: Array, choice: int, ends: NDArray[np.float16]) -> NDArray[np.int64]:
        step = _end_step(ends[2:], _MEAN_LEVELS[choice])
        place = np.rint((mean.astype(np.float64) - float(ends[2])) / (step or 1))
        return np.clip(place, 0, _MEAN_LEVELS[choice] - 1).astype(np.int64)

    def _means(self, codes: NDArray[np.int64], choice: int, ends: NDArray[np.float16]) -> Array:
        if choice == 0:
            return self.centre.numpy()
        return np.asarray(float(ends[2]) + codes * _end_step(ends[2:], _MEAN_LEVELS[choice]), np.float32)


def _levels_at(trade: NDArray[np.float64]) -> NDArray[np.float64]:
    """The largest whole Q with (Q - 1)^3 / Q at most ``trade``, from 2 to 256.

    With u = Q - 1 that is the positive root of u^3 - a u - a = 0: by Cardano's formula up to a = 27/4,
    by the trigonometric one beyond.
    """
    a = np.maximum(trade, 1e-12)
    root = np.sqrt(np.maximum(a * a / 4 - a**3 / 27, 0))
    small = np.cbrt(a / 2 + root) + np.cbrt(a / 2 - root)
    angle = np.arccos(np.clip(1.5 * np.sqrt(3 / a), -1, 1)) / 3
    large = 2 * np.sqrt(a / 3) * np.cos(angle)
    return np.clip(np.floor(np.where(a < 6.75, small, large) + 1 + 1e-9), 2, _MOST_LEVELS)


def _before(per_vector: NDArray[np.float64]) -> NDArray[np.float64]:
    """Sums over the first 0, 1, ... all vectors, for every trade."""
    return np.pad(np.cumsum(per_vector, 1), ((0, 0), (1, 0)))


def _end_step(ends: NDArray[np.float16], levels: int) -> float:
    return (float(ends[1]) - float(ends[0])) / max(levels - 1, 1)


def _sent(mean_choice: int, others: int) -> list[int]:
    """Which of the four ends cross."""
    return [0, 1, 2, 3] if mean_choice and others else [0, 1]
