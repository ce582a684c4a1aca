"""A range coder for short payloads: one symbol after another, in plain integers, with the shortest flush.

Interleaved rANS (``qtl_core.rans``) spends 24 bits on the state of each lane. On a payload of ten bytes that
is a quarter; this coder ends within about five bits of the information it carries. The bytes of a payload
are its number between 0 and 1, cut off as soon as every continuation of them still lies in the interval of
the coded symbols. No payload is therefore the beginning of another: one that was cut short or has something
behind it is always found out.

After G. N. N. Martin, "Range encoding: an algorithm for removing redundancy from a digitised message" (1979).
"""

from __future__ import annotations

from array import array
from bisect import bisect_right
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Final, NamedTuple

import numpy as np
import numpy.typing as npt

from .errors import CodeError

PRECISION: Final = 14
TOTAL: Final = 1 << PRECISION
"""Frequencies of one table sum to this; each is at least 1, so that no code is impossible."""

_WINDOW: Final = 6
_WHOLE: Final = 1 << 8 * _WINDOW
_LOWEST: Final = 1 << 8 * (_WINDOW - 1)
_BEHIND: Final = bytes(_WINDOW - 1)

_NO_CODE: Final = "the coded data holds no code; it is damaged"

# Found by timing: a try at a run costs half of what the run costs, so it has to come off most of the time.
_LIKELY: Final = 0.85
_SHORTEST_RUN: Final = 8


def encode(starts: Iterable[int], frequencies: Iterable[int]) -> bytes:
    """Codes symbols, each given as its share of ``2**14``.

    Args:
        starts: of each symbol, sum of the frequencies before it in its table.
        frequencies: of each symbol, 1 to ``2**14``.

    Returns:
        The shortest bytes that say so; none for no symbols.
    """
    out = bytearray()
    low, width = 0, _WHOLE
    for start, frequency in zip(starts, frequencies, strict=True):
        part = width >> PRECISION
        low += part * start
        width = part * frequency
        if low >= _WHOLE:
            low -= _WHOLE
            _carry(out)
        while width < _LOWEST:
            out.append(low >> 8 * (_WINDOW - 1))
            low = (low << 8) & (_WHOLE - 1)
            width <<= 8
    last, dropped = _last(low, width)
    if last >= _WHOLE:
        last -= _WHOLE
        _carry(out)
    out += last.to_bytes(_WINDOW, "big")[: _WINDOW - dropped]
    return bytes(out)


class Table(NamedTuple):
    """One table as the decoder looks at it.

    Attributes:
        starts: the frequencies before each symbol, and their sum, ``2**14``, at the end.
        likely: the most frequent symbol, which is tried first.
        low: the start of that symbol.
        frequency: its frequency.
    """

    starts: array[int]
    likely: int
    low: int
    frequency: int


class Run(NamedTuple):
    """Tables of neighbouring symbols.

    Attributes:
        tables: one for each symbol.
        likely: their likely symbols, where it pays to try all of them at once; else none.
    """

    tables: tuple[Table, ...]
    likely: bytes


def tables_of(starts: npt.NDArray[np.uint32]) -> list[Table]:
    """Tables with these starts, [tables, symbols + 1], their sum at the end."""
    frequencies = np.diff(starts, axis=1)
    likely = frequencies.argmax(axis=1)[:, None]
    low = np.take_along_axis(starts, likely, axis=1)[:, 0].tolist()
    frequency = np.take_along_axis(frequencies, likely, axis=1)[:, 0].tolist()
    # Arrays and not lists: tables of many levels then stay in the processor's cache.
    arrays = (array("H", row.tobytes()) for row in starts.astype(np.uint16))
    return [Table(*each) for each in zip(arrays, likely[:, 0].tolist(), low, frequency, strict=True)]


def runs_of(tables: Sequence[Table]) -> list[Run]:
    """The same tables in runs: those worth a try at once, and what lies between them."""
    runs: list[Run] = []
    between: list[Table] = []
    for run in _likely_runs(tables):
        if len(run) < _SHORTEST_RUN:
            between += run
            continue
        if between:
            runs.append(Run(tuple(between), b""))
            between = []
        runs.append(Run(tuple(run), bytes(table.likely for table in run)))
    return [*runs, Run(tuple(between), b"")] if between else runs


def _likely_runs(tables: Sequence[Table]) -> Iterator[list[Table]]:
    """Neighbours whose likely symbols come together with a chance of ``_LIKELY`` or more; or one alone."""
    run: list[Table] = []
    chance = 1.0
    for table in tables:
        share = table.frequency / TOTAL
        if run and chance * share < _LIKELY:
            yield run
            run, chance = [], 1.0
        run.append(table)
        chance *= share
    if run:
        yield run


def decode(data: bytes, rows: int, classes: Table | None, runs: Callable[[int], Sequence[Run]]) -> bytes:
    """Decodes rows of codes, each behind its class.

    Args:
        data: what ``encode`` made.
        rows: how many rows, at least one.
        classes: the table of classes; None where there is one class, which is not coded.
        runs: the tables of a class's channels.

    Returns:
        The codes, row by row, without the classes.

    Raises:
        CodeError: not what ``encode`` makes of any codes under these tables.
    """
    # The window reaches at most so far beyond the last byte; further on data is missing.
    padded = data + _BEHIND
    # ``at`` bytes are taken in, and the payload's number lies ``offset`` above the start of the interval of
    # this ``width`` that the symbols so far leave.
    at, width, offset = _WINDOW, _WHOLE, int.from_bytes(padded[:_WINDOW], "big")
    codes = bytearray()
    chosen = 0
    # All in one function: calls would take longer than what they do.
    try:
        for _ in range(rows):
            if classes is not None:
                part = width >> PRECISION
                slot = offset // part
                if slot >= TOTAL:
                    raise CodeError(_NO_CODE)
                starts = classes.starts
                chosen = bisect_right(starts, slot) - 1
                low = starts[chosen]
                offset -= part * low
                width = part * (starts[chosen + 1] - low)
                while width < _LOWEST:
                    offset = offset << 8 | padded[at]
                    at += 1
                    width <<= 8
            for tables, likely in runs(chosen):
                if likely:
                    # Intervals lie in each other: where the number is in the last, it was in all before.
                    before = at, width, offset
                    low = 0
                    for _, _, start, frequency in tables:
                        part = width >> PRECISION
                        low += part * start
                        width = part * frequency
                        while width < _LOWEST:
                            offset = offset << 8 | padded[at]
                            at += 1
                            low <<= 8
                            width <<= 8
                    offset -= low
                    if 0 <= offset < width:
                        codes += likely
                        continue
                    at, width, offset = before
                for starts, symbol, low, frequency in tables:
                    part = width >> PRECISION
                    rest = offset - part * low
                    width = part * frequency
                    if not 0 <= rest < width:
                        slot = offset // part
                        if slot >= TOTAL:
                            raise CodeError(_NO_CODE)
                        symbol = bisect_right(starts, slot) - 1
                        low = starts[symbol]
                        rest = offset - part * low
                        width = part * (starts[symbol + 1] - low)
                    offset = rest
                    codes.append(symbol)
                    while width < _LOWEST:
                        offset = offset << 8 | padded[at]
                        at += 1
                        width <<= 8
    except IndexError as error:
        raise CodeError(f"{len(data)} bytes end before their codes do; the data is incomplete") from error
    wrong = _wrong_end(data, at, width, offset)
    if wrong:
        raise CodeError(wrong)
    return bytes(codes)


class Decoder:
    """Decodes several payloads at once, a symbol of each in one step; the same seam as ``rans.Decoder``.

    Args:
        payloads: what ``encode`` made.
    """

    def __init__(self, payloads: Sequence[bytes]) -> None:
        self._payloads = payloads
        sizes = np.array([len(payload) for payload in payloads], np.int64)
        self._first = np.cumsum(sizes + len(_BEHIND)) - sizes - len(_BEHIND)
        self._bytes = np.frombuffer(_BEHIND.join(payloads) + _BEHIND, np.uint8).astype(np.uint64)
        self._at = self._first.copy()
        self._width = np.full(len(payloads), _WHOLE, np.uint64)
        self._part = self._width >> np.uint64(PRECISION)
        self._offset = np.zeros(len(payloads), np.uint64)
        self._none = np.zeros(len(payloads), np.bool_)
        for _ in range(_WINDOW):
            self._shift(np.arange(len(payloads)))

    def slots(self) -> npt.NDArray[np.uint32]:
        """Where in its table each payload's next symbol lies, uint32 [payloads]."""
        self._part = self._width >> np.uint64(PRECISION)
        slots = self._offset // self._part
        self._none |= slots >= TOTAL
        return np.minimum(slots, TOTAL - 1).astype(np.uint32)

    def take(
        self,
        slots: npt.NDArray[np.uint32],
        starts: npt.NDArray[np.uint32],
        frequencies: npt.NDArray[np.uint32],
    ) -> None:
        """Moves on by one symbol in each payload, with these starts and frequencies."""
        self._offset -= self._part * starts
        self._width = self._part * frequencies
        hungry = np.flatnonzero(self._width < _LOWEST)
        while hungry.size:
            width = self._width[hungry] << np.uint64(8)
            self._width[hungry] = width
            self._shift(hungry)
            hungry = hungry[width < _LOWEST]

    def finish(self) -> list[str]:
        """What is wrong with each payload; empty where nothing is."""
        states = zip(
            self._payloads,
            (self._at - self._first).tolist(),
            self._width.tolist(),
            self._offset.tolist(),
            self._none.tolist(),
            strict=True,
        )
        return [
            _NO_CODE if none else _wrong_end(payload, at, width, offset)
            for payload, at, width, offset, none in states
        ]

    def _shift(self, hungry: npt.NDArray[np.intp]) -> None:
        """Takes in one byte in these payloads; beyond the last any will do, as the end is then wrong."""
        at = self._at[hungry]
        behind = self._bytes.take(at, mode="clip")
        self._offset[hungry] = (self._offset[hungry] << np.uint64(8)) | behind
        self._at[hungry] = at + 1


def _wrong_end(data: bytes, at: int, width: int, offset: int) -> str:
    """What is wrong with the end of a payload of which ``at`` bytes were taken in; empty if nothing."""
    window = (data + _BEHIND)[at - _WINDOW : at]
    if len(window) < _WINDOW:
        return f"{len(data)} bytes end before their codes do; the data is incomplete"
    low = (int.from_bytes(window, "big") - offset) % _WHOLE
    _, dropped = _last(low, width)
    if len(data) != at - dropped:
        return f"these codes take {at - dropped} bytes, got {len(data)}; the data is damaged"
    if offset >= 1 << 8 * dropped:
        return "the last byte is not the one that ends these codes; the data is damaged"
    return ""


def _carry(out: bytearray) -> None:
    """Adds one to the number written so far."""
    at = len(out) - 1
    while out[at] == 0xFF:
        out[at] = 0
        at -= 1
    out[at] += 1


def _last(low: int, width: int) -> tuple[int, int]:
    """The number that ends a payload, and how many of the window's bytes need not be written.

    It is the lowest one in the interval from ``low`` whose remaining bytes may be anything.
    """
    for dropped in range(_WINDOW, 0, -1):
        unit = 1 << 8 * dropped
        last = -(-low // unit) * unit
        if last + unit <= low + width:
            return last, dropped
    raise ValueError(f"an interval of {width} is too narrow: the coder has not been kept above {_LOWEST}")
