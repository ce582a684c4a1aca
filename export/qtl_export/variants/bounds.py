"""How far the codes of each variant may be from full precision, and what it may cost in right answers.

int8 and half precision add noise to the features. A code differs where noise carries a feature over a
rounding boundary, so the share that does grows with the number of boundaries, and with many levels by more
than one. Bounds are set for four levels and scale with the levels; the change in task accuracy is what
decides where there are questions with known answers.
"""

from __future__ import annotations

import math
from typing import Final

from edge_runtime.golden import Bounds
from qtl_core.bundle import Cut
from qtl_export.variants import FP16, INT8

SHARES: Final = {INT8: 0.1, FP16: 0.01}
"""Share of codes that may differ up to four levels."""
FEATURES: Final = {INT8: 0.1, FP16: 0.01}
"""Unquantized features: difference allowed over the largest feature."""
ACCURACY_LOSS: Final = 0.01
"""Share of the known answers that may be lost, at least one answer."""

_SCALED_FROM: Final = 4
# Of the range of codes: beyond one level, noise is bounded by what it is in features.
_FARTHEST: Final = {INT8: 0.15, FP16: 0.02}


def bounds_of(name: str, cut: Cut) -> Bounds:
    """The bounds of a variant at a cut; a fixed batch has those of full precision.

    With more than four levels the share grows in proportion to the boundaries, ``levels - 1``, up to all.
    """
    kind = INT8 if name.startswith(INT8) else name
    if kind not in SHARES:
        return Bounds.full(cut)
    if not cut.quantized:
        return Bounds(share=1.0, largest=FEATURES[kind])
    steps = cut.levels - 1
    share = SHARES[kind] * max(1.0, steps / (_SCALED_FROM - 1))
    return Bounds(share=min(share, 1.0), largest=max(1, math.ceil(_FARTHEST[kind] * steps)))


def answers_lost(known: int) -> int:
    """How many right answers of so many known ones may be lost."""
    return max(1, int(ACCURACY_LOSS * known))
