"""Codes as bytes, given the codes that the receiver has of the same pictures: only what changed costs much.

Every code is coded under the table of the code that was in its place: most of the mass is on the same code
again, the rest falls off with the distance. How much changes is one of a few shares, which the sender names.
docs/protocol.md has the bytes.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import cache
from typing import Final

import numpy as np
import numpy.typing as npt

from . import range_coder, rans
from .codes import Codes
from .entropy_tables import Flat
from .errors import CodeError
from .range_coder import PRECISION, TOTAL, Run, Table, tables_of

SHARES: Final = 24
"""How many shares of changed codes there are tables for."""
SERIAL: Final = 1 << 15
"""Up to so many codes come one after another, more of them in lanes."""
LANE: Final = 1 << 11
"""Codes for each lane, about."""
MAX_LANES: Final = 512

_HALF_OCTAVE: Final = 181  # of 256: the square root of a half
_FALL: Final = 3  # bits less for every level further away
_FARTHEST: Final = 8
# A try at a whole row of unchanged codes at once pays from there on, see ``range_coder.decode``.
_LIKELY: Final = 0.85


def best_share(codes: Codes, before: Codes, levels: int) -> tuple[int, npt.NDArray[np.float64]]:
    """The share under which codes cost fewest bits.

    Args:
        codes: uint8 [pictures, ...].
        before: what was in their places, the same shape.
        levels: L.

    Returns:
        Its number, and the bits that each picture costs under it, [pictures].
    """
    pairs = (before.astype(np.intp) * levels + codes).reshape(len(codes), -1)
    counts = np.stack([np.bincount(row, minlength=levels * levels) for row in pairs])
    bits = counts @ _bits(levels)
    share = int(bits.sum(axis=0).argmin())
    return share, bits[:, share]


def encode(codes: Codes, before: Codes, levels: int, share: int) -> bytes:
    """Codes an array, given what was there before.

    Args:
        codes: uint8 [rows, channels], below ``levels``.
        before: the same.
        levels: L.
        share: below ``SHARES``.
    """
    flat = _flat(levels, share)
    starts, frequencies = flat.of((before.astype(np.intp) * flat.stride + codes).reshape(-1))
    lanes = lanes_for(codes.size)
    if not lanes:
        return range_coder.encode(starts.tolist(), frequencies.tolist())
    missing = -codes.size % lanes
    return rans.encode(
        np.pad(starts, (0, missing)).reshape(-1, lanes),
        np.pad(frequencies, (0, missing), constant_values=TOTAL).reshape(-1, lanes),
    )


def decode(data: bytes, before: Codes, levels: int, share: int) -> Codes:
    """What ``encode`` made, uint8 [rows, channels].

    Raises:
        CodeError: another share, or data that no such codes make.
    """
    if share >= SHARES:
        raise CodeError(f"differences name share {share}, there are {SHARES}; the data is damaged")
    lanes = lanes_for(before.size)
    if lanes:
        return _in_lanes(data, before, _flat(levels, share), lanes)
    rows = _rows(before, levels, share)
    codes = range_coder.decode(data, len(before), None, lambda _: next(rows))
    return np.frombuffer(codes, np.uint8).reshape(before.shape).copy()


def lanes_for(count: int) -> int:
    """In how many lanes so many codes come; 0: one after another."""
    return 0 if count <= SERIAL else min(count // LANE, MAX_LANES)


def _in_lanes(data: bytes, before: Codes, flat: Flat, lanes: int) -> Codes:
    rans.check_length(data, lanes)
    decoder = rans.Decoder([data], lanes)
    places = np.pad(
        before.reshape(-1).astype(np.intp) * flat.stride,
        (0, -before.size % lanes),
        constant_values=flat.certain,
    ).reshape(-1, lanes)
    found = np.empty(places.shape, np.uint8)
    for step, tables in enumerate(places):
        slots = decoder.slots()
        found[step], starts, frequencies = flat.find(slots, tables)
        decoder.take(slots, starts, frequencies)
    (wrong,) = decoder.finish()
    if wrong:
        raise CodeError(wrong)
    return found.reshape(-1)[: before.size].reshape(before.shape)


def _rows(before: Codes, levels: int, share: int) -> Iterator[Sequence[Run]]:
    """The range coder's tables, row by row."""
    tables = _tables(levels, share)
    same = min(table.frequency for table in tables) / TOTAL
    at_once = same ** before.shape[-1] >= _LIKELY
    for row in before.tolist():
        chosen = tuple(tables[code] for code in row)
        yield [Run(chosen, bytes(table.likely for table in chosen) if at_once else b"")]


@cache
def frequencies(levels: int, share: int) -> npt.NDArray[np.uint32]:
    """The tables of a share, [code before, code], each of them summing to ``TOTAL``.

    In whole numbers, so that every machine comes to the same.
    """
    changed = (3 * TOTAL // 4) >> (share // 2)
    changed = max(changed * _HALF_OCTAVE // 256 if share % 2 else changed, levels - 1)
    at = np.arange(levels)
    apart = np.abs(at[:, None] - at)
    weights = 1 << (_FALL * np.maximum(0, _FARTHEST - apart))
    weights[apart == 0] = 0
    found = 1 + weights * (changed - (levels - 1)) // weights.sum(axis=1, keepdims=True)
    found[apart == 0] = 0
    found[apart == 0] = TOTAL - found.sum(axis=1)
    return np.asarray(found, np.uint32)


@cache
def _bits(levels: int) -> npt.NDArray[np.float64]:
    """Bits of every pair of codes under every share, [pairs, shares]."""
    every = np.stack([frequencies(levels, share).reshape(-1) for share in range(SHARES)], axis=1)
    return np.asarray(PRECISION - np.log2(every))


@cache
def _flat(levels: int, share: int) -> Flat:
    return Flat(frequencies(levels, share))


@cache
def _tables(levels: int, share: int) -> list[Table]:
    ends = frequencies(levels, share).cumsum(axis=1, dtype=np.uint32)
    return tables_of(np.concatenate([np.zeros((levels, 1), np.uint32), ends], axis=1))
