"""Gradients as bytes: what the server sends back in split training, at 32, 16, 8, 4 or 2 bits a value.

32 bits are the values themselves and change nothing. 16 bits are half-precision numbers after scaling by a
power of two, since gradients are far below what half precision reaches. From 8 bits on every block of 64
values has a scale of its own, values are rounded stochastically to ``2**bits - 1`` levels of it, so that the
mean of what is decoded is the gradient (QSGD, arXiv 1610.02132), and levels are entropy-coded under the one
of a few fixed Laplacian tables that makes them shortest. docs/protocol.md has the bytes.
"""

from __future__ import annotations

import math
from functools import cache
from typing import Final, TypeAlias

import numpy as np
import numpy.typing as npt

from . import entropy
from .entropy_tables import Tables
from .errors import CodeError, InputError
from .range_coder import TOTAL

Floats: TypeAlias = npt.NDArray[np.float32]

GRAD_BITS: Final = (32, 16, 8, 4, 2)
BLOCK: Final = 64
"""Values that share a scale."""
EMPTY: Final = 255
"""The scale of a block of zeros."""

_PER_OCTAVE: Final = 8
# 2 ** (-i / 8), written out so that every machine scales by the same numbers.
_FRACTIONS: Final = np.array(
    [1.0, 0.91700404, 0.8408964, 0.7711054, 0.70710677, 0.6484198, 0.59460354, 0.5452539], np.float32
)
_SCALES: Final = np.ldexp(_FRACTIONS[np.arange(EMPTY) % _PER_OCTAVE], -(np.arange(EMPTY) // _PER_OCTAVE))
# Widths of the Laplacian tables, in levels; the widest is next to uniform.
_WIDTHS: Final = tuple(0.08 * 1.35**i for i in range(24))
_HEAD: Final = 5
_HALF_LIMIT: Final = 15


def encode(gradient: npt.ArrayLike, bits: int, random: np.random.Generator) -> tuple[bytes, Floats]:
    """Codes a gradient.

    Args:
        gradient: float [...], finite.
        bits: one of ``GRAD_BITS``.
        random: of the rounding; its state decides the bytes, so that a repeated step sends the same.

    Returns:
        The bytes, and the gradient as the receiver will have it, float32 [...].

    Raises:
        InputError: a gradient that is not finite, or other bits.
    """
    values = np.ascontiguousarray(gradient, np.float32)
    if not np.isfinite(values).all():
        raise InputError(
            "the gradient is not finite: the loss has left what the numbers can hold; lower the learning rate"
        )
    _check_bits(bits)
    if bits == 32:
        return values.astype("<f4").tobytes(), values
    if not values.size:
        return b"", values
    if bits == 16:
        data = _as_half(values)
        return data, decode(data, bits, values.shape)
    data, decoded = _as_levels(values.reshape(-1), bits, random)
    return data, decoded.reshape(values.shape)


def decode(data: bytes, bits: int, shape: tuple[int, ...]) -> Floats:
    """The gradient that ``encode`` made these bytes of.

    Args:
        data: the bytes, all of them and nothing else.
        bits: the sender's.
        shape: the gradient's.

    Returns:
        float32 of that shape, finite, writable.

    Raises:
        CodeError: bytes that are no gradient of this shape.
    """
    _check_bits(bits)
    count = math.prod(shape)
    if bits == 32:
        found = np.frombuffer(_sized(data, 4 * count, bits), "<f4").astype(np.float32)
    elif not count:
        found = np.frombuffer(_sized(data, 0, bits), np.float32).copy()
    elif bits == 16:
        _sized(data, 1 + 2 * count, bits)
        with np.errstate(all="ignore"):  # what damaged data overflows to, or signals, is refused below
            halves = np.frombuffer(data, "<f2", offset=1).astype(np.float32)
            found = np.ldexp(halves, int.from_bytes(data[:1], "big", signed=True))
    else:
        found = _of_levels(data, bits, count)
    if not np.isfinite(found).all():
        raise CodeError("the gradient received is not finite; the data is damaged, or the sender's loss was")
    return found.reshape(shape)


class ErrorFeedback:
    """Carries what rounding left out into the next gradient (arXiv 1901.09847).

    Pictures differ from step to step, so what is carried is the mean over a batch: the part of the error that
    would move every parameter behind the cut the same way.

    Args:
        shape: of one sample's gradient.
        bits: one of ``GRAD_BITS``.

    Attributes:
        residual: float32 of that shape, what is still owed to each sample.
    """

    def __init__(self, shape: tuple[int, ...], bits: int) -> None:
        _check_bits(bits)
        self.bits = bits
        self.residual: Floats = np.zeros(shape, np.float32)

    def encode(self, gradient: npt.ArrayLike, random: np.random.Generator) -> tuple[bytes, Floats]:
        """As ``encode``, of a batch [samples, *shape], with what the last ones left out added.

        Raises:
            InputError: as ``encode``, or samples of another shape.
        """
        values = np.asarray(gradient, np.float32)
        if values.shape[1:] != self.residual.shape or not len(values):
            raise InputError(
                f"gradients of shape {values.shape} are no batch of {self.residual.shape}; "
                "another model or cut needs an error feedback of its own"
            )
        if self.bits == 32:
            return encode(values, 32, random)
        owed = values + self.residual
        data, decoded = encode(owed, self.bits, random)
        self.residual = (owed - decoded).mean(axis=0, dtype=np.float32)
        return data, decoded


def _as_half(values: Floats) -> bytes:
    largest = float(np.abs(values).max())
    # The largest value gets the highest exponent that half precision has below its limit.
    exponent = math.frexp(largest)[1] - _HALF_LIMIT if largest else 0
    exponent = min(max(exponent, -128), 127)
    return exponent.to_bytes(1, "big", signed=True) + np.ldexp(values, -exponent).astype("<f2").tobytes()


def _as_levels(flat: Floats, bits: int, random: np.random.Generator) -> tuple[bytes, Floats]:
    most = 2 ** (bits - 1) - 1
    blocks = np.zeros((-(-flat.size // BLOCK), BLOCK), np.float32)
    blocks.reshape(-1)[: flat.size] = flat
    peaks = np.abs(blocks).max(axis=1)
    top = peaks.max()
    exponents = np.full(len(blocks), EMPTY, np.uint8)
    # Searching the very numbers the receiver scales by: no logarithm can be off by one.
    below = np.searchsorted(-top * _SCALES, -peaks, side="right") - 1
    some = peaks > top * _SCALES[-1]
    exponents[some] = below[some]
    levels = np.zeros(blocks.shape, np.float32)
    scale = (top * _SCALES[exponents[some]])[:, None]
    share = blocks[some] / scale * most
    levels[some] = np.floor(share + random.random(share.shape, np.float32))
    symbols = (np.clip(levels, -most, most) + most).astype(np.uint8)[some]
    width = _narrowest(symbols, most)
    head = np.float32(top).astype("<f4").tobytes() + bytes([width])
    data = head + exponents.tobytes() + entropy.encode(symbols, _tables(most, width))
    return data, _restored(symbols, exponents, top, most)[: flat.size]


def _of_levels(data: bytes, bits: int, count: int) -> Floats:
    most = 2 ** (bits - 1) - 1
    blocks = -(-count // BLOCK)
    if len(data) < _HEAD + blocks:
        raise CodeError(
            f"{len(data)} bytes are no gradient of {count} values at {bits} bits: its scales alone take "
            f"{_HEAD + blocks}; the data is incomplete, or the sender's batch is another"
        )
    top, width = np.frombuffer(data, "<f4", 1)[0], data[4]
    if not (np.isfinite(top) and top >= 0 and width < len(_WIDTHS)):
        raise CodeError("the gradient's head holds no scale and table; the data is damaged")
    exponents = np.frombuffer(data, np.uint8, blocks, _HEAD)
    shape = (int((exponents != EMPTY).sum()), BLOCK)
    symbols = entropy.decode(data[_HEAD + blocks :], _tables(most, width), shape)
    return _restored(symbols, exponents, top, most)[:count]


def _restored(
    symbols: npt.NDArray[np.uint8], exponents: npt.NDArray[np.uint8], top: np.float32, most: int
) -> Floats:
    """Values, float32 [blocks * BLOCK], of the symbols [blocks that are not empty, BLOCK]."""
    some = exponents != EMPTY
    found = np.zeros((len(exponents), BLOCK), np.float32)
    scale = top * _SCALES[exponents[some]] / np.float32(most)
    found[some] = (symbols.astype(np.float32) - most) * scale[:, None]
    return found.reshape(-1)


def _narrowest(symbols: npt.NDArray[np.uint8], most: int) -> int:
    """The table that takes fewest bits for these symbols."""
    counts = np.bincount(symbols.reshape(-1), minlength=2 * most + 1)
    costs = [-counts @ np.log2(_tables(most, width).frequencies[0, 0]) for width in range(len(_WIDTHS))]
    return int(np.argmin(costs))


@cache
def _tables(most: int, width: int) -> Tables:
    """A Laplacian over levels -most..most, as whole numbers that sum to ``TOTAL``, for each of a block."""
    levels = np.abs(np.arange(-most, most + 1))
    # The same on every machine: a geometric series in whole numbers, and no library's exp.
    decay = round(TOTAL * _decay(width))
    weights = [TOTAL**2]
    for _ in range(most):
        weights.append(weights[-1] * decay // TOTAL)
    shares = np.array([weights[level] for level in levels], dtype=object)
    room, total = TOTAL - len(levels), int(shares.sum())
    frequencies = np.array([1 + int(share) * room // total for share in shares], np.int64)
    frequencies[most] += TOTAL - frequencies.sum()
    return Tables(len(levels), [TOTAL], np.tile(frequencies, (1, BLOCK, 1)))


def _decay(width: int) -> float:
    """From one level to the next, for a mean distance of so many levels from zero."""
    mean = _WIDTHS[width]
    # P(|level| = n) ~ decay**n on both sides: mean = 2 d / ((1 - d)(1 + d)).
    return (math.sqrt(1 + mean * mean) - 1) / mean


def _sized(data: bytes, size: int, bits: int) -> bytes:
    if len(data) != size:
        raise CodeError(f"a gradient of this shape takes {size} bytes at {bits} bits, got {len(data)}")
    return data


def _check_bits(bits: int) -> None:
    if bits not in GRAD_BITS:
        raise InputError(f"grad_bits {bits!r} is not one of {', '.join(map(str, GRAD_BITS))}")
