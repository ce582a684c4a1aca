"""Tables measured on calibration codes: classes by hard expectation maximisation, frequencies smoothed.

Calibration sets are small (two dozen pictures come with a checkpoint), so every table is its counts and a
little of what is known without them: a discretised logistic density at the class's mean and deviation, and
for a class the whole channel's table. How many classes pay is found on a part of the codes kept aside.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt

from .codes import Codes, bits_of
from .entropy_tables import MAX_CLASSES, Tables
from .errors import CodeError, InputError
from .range_coder import TOTAL

MIN_TOKENS: Final = 64
"""Coded tokens, each a sample of every channel, that tables are measured on at least."""
MIN_SAVING: Final = 0.08
"""What classes must save beyond plain tables of channels, on codes they were not measured on."""

_NEARLY: Final = 0.01
_TRIED: Final = (8, 16, 32, 64, 128, 256)
_KEPT_ASIDE: Final = 4
_MOST_TOKENS: Final = 32768
_MOST_CODES: Final = 1 << 23
_MOST_ENTRIES: Final = 1 << 20
_ROUNDS: Final = 20

# Chosen on codes of the digits checkpoint at 1 to 5 bits, 24 to 3000 pictures; the results are flat around.
_PSEUDO_TOKENS: Final = 1.5
_LOGISTIC_SHARE: Final = 0.9
_PSEUDO_MOMENTS: Final = 2.0

Floats = npt.NDArray[np.float64]
Choice = npt.NDArray[np.intp]


def fit(
    codes: npt.ArrayLike,
    levels: int,
    *,
    classes: int | None = None,
    most_entries: int | None = None,
    seed: int = 0,
) -> Tables:
    """See ``Tables.fit``; ``seed`` starts the search for classes."""
    bits_of(levels)
    array = np.asarray(codes)
    if array.dtype.kind not in "ui":
        raise CodeError(f"codes must be integers, not {array.dtype}")
    channels = array.shape[-1] if array.ndim > 1 else 1
    rows = array.size // channels if channels else 0
    if rows < MIN_TOKENS:
        raise InputError(
            f"{rows} coded tokens are too few to measure the entropy coder's tables on: give at least "
            f"{MIN_TOKENS} ({-(-MIN_TOKENS // _tokens(array))} pictures of {_tokens(array)} tokens)"
        )
    low, high = int(array.min()), int(array.max())
    if low < 0 or high >= levels:
        raise CodeError(f"codes must lie in 0..{levels - 1}, found {low if low < 0 else high}")
    if classes is not None and not 1 <= classes <= min(MAX_CLASSES, rows):
        raise InputError(
            f"tables of {classes} classes cannot be measured on {rows} coded tokens; give 1 to "
            f"{min(MAX_CLASSES, rows)}"
        )
    flat = array.reshape(rows, channels).astype(np.uint8)
    # More would take minutes, and change little.
    most = max(MIN_TOKENS, min(_MOST_TOKENS, _MOST_CODES // channels))
    if rows > most:
        flat = flat[np.linspace(0, rows - 1, most).astype(np.intp)]
    if classes is None:
        classes = _paying(flat, levels, seed)
        if most_entries is not None:
            classes = min(classes, max(1, most_entries // (channels * levels)))
    return _measured(flat, levels, classes, seed)


def _tokens(codes: npt.NDArray[np.integer[npt.NBitBase]]) -> int:
    """Tokens of one picture, as far as the shape tells."""
    return max(1, codes.shape[-2]) if codes.ndim > 2 else 1


def _paying(rows: Codes, levels: int, seed: int) -> int:
    """The number of classes to take: few, unless more save bits on tokens kept aside."""
    kept = len(rows) // _KEPT_ASIDE
    known, aside = rows[kept:], rows[:kept]
    plain = _measured(known, levels, 1, seed).bits(aside)
    cost = {
        count: _measured(known, levels, count, seed).bits(aside)
        for count in _TRIED
        if count <= len(known) // 2 and count * rows.shape[1] * levels <= _MOST_ENTRIES
    }
    best = min(cost.values(), default=plain)
    if best > (1 - MIN_SAVING) * plain:
        return 1
    return min(count for count, bits in cost.items() if bits <= (1 + _NEARLY) * best)


def _measured(rows: Codes, levels: int, classes: int, seed: int) -> Tables:
    """Tables with ``classes`` classes."""
    whole = _Counted.of(rows, np.zeros(len(rows), np.intp), levels, 1)
    plain = whole.shares(np.full(levels, 1 / levels))
    if classes == 1:
        return Tables(levels, np.array([TOTAL]), _whole_numbers(plain))
    choice = _first_choice(rows, classes, np.random.default_rng(seed))
    for _ in range(_ROUNDS):
        counted = _Counted.of(rows, choice, levels, classes)
        shares = (counted.tokens + 0.5) / (len(rows) + 0.5 * classes)
        tables = Tables(levels, _whole_numbers(shares), _whole_numbers(counted.shares(plain[0])))
        again = tables.choose(rows)
        if (again == choice).all():
            break
        choice = again
    return tables


@dataclass(frozen=True)
class _Counted:
    """How often each code occurs.

    Attributes:
        codes: [classes, channels, levels].
        tokens: [classes].
    """

    codes: Floats
    tokens: Floats

    @classmethod
    def of(cls, rows: Codes, choice: Choice, levels: int, classes: int) -> _Counted:
        channels = rows.shape[1]
        index = (choice[:, None] * channels + np.arange(channels)) * levels + rows
        codes = np.bincount(index.ravel(), minlength=classes * channels * levels)
        tokens = np.bincount(choice, minlength=classes)
        return cls(codes.reshape(classes, channels, levels).astype(np.float64), tokens.astype(np.float64))

    def shares(self, known: Floats) -> Floats:
        """Smoothed shares, [classes, channels, levels], that fall back on ``known`` [..., levels]."""
        level = np.arange(self.codes.shape[-1])
        tokens = self.tokens[:, None]
        # A class of few tokens keeps near its channel's mean, and its deviation near that of all classes.
        overall = np.broadcast_to((known * level).sum(-1), self.codes.shape[1:2])
        mean = ((self.codes * level).sum(-1) + _PSEUDO_MOMENTS * overall) / (tokens + _PSEUDO_MOMENTS)
        squares = (self.codes * (level - mean[..., None]) ** 2).sum(-1)
        within = squares.sum(0) / tokens.sum() + 0.05
        variance = (squares + _PSEUDO_MOMENTS * within) / (tokens + _PSEUDO_MOMENTS) + 1 / 12
        prior = (1 - _LOGISTIC_SHARE) * known + _LOGISTIC_SHARE * _logistic(mean, variance, len(level))
        return (self.codes + _PSEUDO_TOKENS * prior) / (tokens[..., None] + _PSEUDO_TOKENS)


def _logistic(mean: Floats, variance: Floats, levels: int) -> Floats:
    """Shares of the levels under a logistic density, the tails counted to the outermost, [..., levels]."""
    scale = np.sqrt(3 * variance) / np.pi
    edges = (np.arange(1, levels) - 0.5 - mean[..., None]) / scale[..., None]
    below = 0.5 * (1 + np.tanh(edges / 2))
    ends = [np.zeros_like(below[..., :1]), below, np.ones_like(below[..., :1])]
    return np.diff(np.concatenate(ends, axis=-1), axis=-1)


def _first_choice(rows: Codes, classes: int, rng: np.random.Generator) -> Choice:
    """Classes to begin with: tokens far from each other (k-means++), and whoever is near them."""
    points = rows.astype(np.float32)
    lengths = (points**2).sum(1)
    centres = [int(rng.integers(len(points)))]
    nearest = np.full(len(points), np.inf)
    while len(centres) < classes:
        last = points[centres[-1]]
        away = np.maximum(lengths - 2 * (points @ last) + last @ last, 0)
        nearest = np.minimum(nearest, away)
        total = nearest.sum()
        chance = nearest / total if total > 0 else None
        centres.append(int(rng.choice(len(points), p=chance)))
    middle = points[centres]
    found: Choice = ((middle**2).sum(1) - 2 * (points @ middle.T)).argmin(1)
    return found


def _whole_numbers(shares: Floats) -> npt.NDArray[np.int64]:
    """Shares along the last axis as frequencies that sum to ``TOTAL``, none below 1."""
    count = shares.shape[-1]
    wanted = shares / shares.sum(-1, keepdims=True) * (TOTAL - count)
    floor = np.floor(wanted).astype(np.int64)
    left = TOTAL - count - floor.sum(-1, keepdims=True)
    rank = np.argsort(np.argsort(floor - wanted, axis=-1, kind="stable"), axis=-1, kind="stable")
    whole: npt.NDArray[np.int64] = floor + 1 + (rank < left)
    return whole
