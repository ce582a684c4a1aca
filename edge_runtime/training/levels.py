"""A level count as the training graphs take it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True, eq=False)
class LevelInputs:
    """Inputs of the graphs that say which level count is meant.

    Attributes:
        half: (L - 1) / 2, float32 [].
        offset: 0.5 where L is even, float32 [].
        mix: float32 [rows], how k is mixed from those of the level counts that have one of their own.
    """

    half: NDArray[np.float32]
    offset: NDArray[np.float32]
    mix: NDArray[np.float32]


def of(levels: int, k_levels: Sequence[int]) -> LevelInputs:
    """The inputs for L levels.

    Args:
        levels: L, 2 to 256.
        k_levels: level counts that have a k of their own, ascending; empty for one k. Between them k is
            interpolated over log2 L, beyond them the nearest holds.
    """
    mix = np.zeros(max(1, len(k_levels)), np.float32)
    anchors = [math.log2(count) for count in k_levels] or [0.0]
    at = min(max(math.log2(levels), anchors[0]), anchors[-1])
    upper = next(index for index, anchor in enumerate(anchors) if anchor >= at)
    share = 1.0
    if upper:
        share = (at - anchors[upper - 1]) / (anchors[upper] - anchors[upper - 1])
        mix[upper - 1] = 1 - share
    mix[upper] = share
    return LevelInputs(
        np.array((levels - 1) / 2, np.float32), np.array(0.0 if levels % 2 else 0.5, np.float32), mix
    )
