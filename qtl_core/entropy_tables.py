"""What the entropy coder knows of a cut's codes beforehand: frequency tables.

A coded token belongs to one of a number of classes (one, where more do not pay). Its class is coded first,
under ``classes``, and then its codes, channel by channel, each under the table of its class and channel.
Within a class channels are nearly independent, so one symbol does the work of conditioning every code on all
that came before it, and tables stay plain: nothing is computed while decoding, so nothing can differ between
two machines. The encoder takes for each token the class that costs fewest bits.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from functools import cached_property
from typing import Final

import numpy as np
import numpy.typing as npt

from .codes import Codes, bits_of
from .errors import CodeError
from .range_coder import PRECISION, TOTAL, Run, Table, runs_of, tables_of

MAX_CLASSES: Final = 256
DIGEST_BYTES: Final = 8

U32 = npt.NDArray[np.uint32]
Index = npt.NDArray[np.intp]

# A product with ones and zeros beats looking up and adding as long as most of it is no zeros.
_FEW_LEVELS: Final = 8
_AT_ONCE: Final = 1 << 20
# Tables that are kept in the range coder's form as well; more would be many times their own size.
_KEPT: Final = 1 << 22


class Tables:
    """Frequency tables of the codes of one cut.

    Args:
        levels: L, 2 to 256.
        classes: integers [classes], each at least 1, sum ``TOTAL``: how often each class occurs.
        codes: integers [classes, channels, levels], each at least 1, sum ``TOTAL`` over levels.

    Raises:
        CodeError: tables of another shape, that do not sum, or levels outside 2..256.
    """

    def __init__(self, levels: int, classes: npt.ArrayLike, codes: npt.ArrayLike) -> None:
        bits_of(levels)
        self.levels = int(levels)
        self.class_frequencies = _checked(classes, "the classes")
        self.frequencies = _checked(codes, "a channel")
        shape = self.frequencies.shape
        count = len(self.class_frequencies) if self.class_frequencies.ndim == 1 else 0
        if len(shape) != 3 or shape[0] != count or shape[2] != levels or not 1 <= count <= MAX_CLASSES:
            raise CodeError(
                f"tables of {list(shape)} frequencies beside classes {list(self.class_frequencies.shape)} do "
                f"not fit {levels} levels; they are [classes, channels, {levels}], classes 1 to {MAX_CLASSES}"
            )

    @classmethod
    def fit(
        cls,
        codes: npt.ArrayLike,
        levels: int,
        *,
        classes: int | None = None,
        most_entries: int | None = None,
    ) -> Tables:
        """Measures tables on calibration codes.

        Args:
            codes: integers [..., tokens, channels], values 0..levels-1; a 1-D array is one channel.
            levels: L, 2 to 256.
            classes: how many classes; by default as many as pay on a part of the codes kept aside.
            most_entries: frequencies that there may be at most where nobody names the classes: where more
                classes would pay than that leaves room for, as many as it does (one at least).

        Raises:
            CodeError: no codes of so many levels.
            InputError: too few of them; the message says how many are needed.
        """
        # Imported here: the device codes with tables and never measures any.
        from .entropy_fit import fit

        return fit(codes, levels, classes=classes, most_entries=most_entries)

    @property
    def channels(self) -> int:
        """Codes of one token."""
        return int(self.frequencies.shape[1])

    @property
    def classes(self) -> int:
        """How many classes there are."""
        return int(self.frequencies.shape[0])

    @cached_property
    def digest(self) -> bytes:
        """8 bytes that tell these tables from others: the start of a SHA-256, see docs/protocol.md."""
        head = np.array([self.levels, self.classes, self.channels], "<u4").tobytes()
        body = self.class_frequencies.astype("<u2").tobytes() + self.frequencies.astype("<u2").tobytes()
        return hashlib.sha256(head + body).digest()[:DIGEST_BYTES]

    def rows_of(self, shape: tuple[int, ...]) -> int:
        """How many tokens an array of codes of this shape holds.

        Raises:
            CodeError: a negative size, or a last axis that is not the channels of these tables.
        """
        if any(size < 0 for size in shape):
            raise CodeError(f"the shape of the codes cannot be {shape}")
        count = math.prod(shape)
        if count and self.channels > 1 and (not shape or shape[-1] != self.channels):
            raise CodeError(
                f"codes of shape {shape} do not fit tables of {self.channels} channels; the last axis must "
                "be the channels"
            )
        return count // self.channels

    def choose(self, rows: Codes) -> Index:
        """The class that costs each token fewest bits, [n], of codes [n, channels]."""
        if self.classes == 1:
            return np.zeros(len(rows), np.intp)
        few = self.levels <= _FEW_LEVELS
        at_once = max(1, _AT_ONCE // (self.channels * (self.levels if few else self.classes)))
        found = np.empty(len(rows), np.intp)
        for start in range(0, len(rows), at_once):
            at = np.arange(self.channels) * self.levels + rows[start : start + at_once]
            if few:
                hot = np.zeros((len(at), self.channels * self.levels), np.float32)
                np.put_along_axis(hot, at, np.float32(1), axis=1)
                bits = hot @ self._bits
            else:
                bits = self._bits[at].sum(axis=1)
            found[start : start + at_once] = (bits + self._class_bits).argmin(axis=1)
        return found

    def of_rows(self, rows: Codes, classes: Index) -> tuple[U32, U32]:
        """Start and frequency of every symbol of these tokens, uint32 [n, columns].

        The first column is the class, where there are several; the others are the channels.
        """
        stride = self.flat.stride
        at = classes[:, None] * (stride * self.channels) + stride * np.arange(self.channels)
        at += rows
        starts, frequencies = self.flat.of(at)
        if self.classes > 1:
            of_class = self.flat_classes.of(classes[:, None])
            starts, frequencies = (
                np.hstack(pair) for pair in zip(of_class, (starts, frequencies), strict=True)
            )
        return starts, frequencies

    def bits(self, codes: npt.ArrayLike) -> float:
        """Cross-entropy: bits that codes [..., channels] cost under these tables, classes included.

        Raises:
            CodeError: no codes of these tables.
        """
        rows = self.checked_rows(codes)
        classes = self.choose(rows)
        return bits_of_symbols(self.of_rows(rows, classes)[1])

    def checked_rows(self, codes: npt.ArrayLike) -> Codes:
        """Codes of any shape as uint8 [tokens, channels].

        Raises:
            CodeError: no integers, a value outside 0..levels-1, or another number of channels.
        """
        array = np.asarray(codes)
        rows = self.rows_of(array.shape)
        if not array.size:
            return np.zeros((0, self.channels), np.uint8)
        if array.dtype.kind not in "ui":
            raise CodeError(f"codes must be integers, not {array.dtype}")
        low, high = int(array.min()), int(array.max())
        if low < 0 or high >= self.levels:
            raise CodeError(f"codes must lie in 0..{self.levels - 1}, found {low if low < 0 else high}")
        return array.astype(np.uint8).reshape(rows, self.channels)

    @cached_property
    def row_bits(self) -> int:
        """What a token is expected to cost, in 1/256 bit: in whole numbers, as both ends must agree on it.

        The logarithm of f is taken as straight between powers of two.
        """
        codes = _entropies(self.frequencies).sum(axis=1)
        expected = int((self.class_frequencies.astype(np.int64) * codes).sum()) >> PRECISION
        return int(_entropies(self.class_frequencies)) + expected

    def of_class(self, chosen: int) -> Sequence[Run]:
        """The tables of a class, one for each channel, for the range coder."""
        found = self._kept.get(chosen)
        if found is None:
            found = runs_of(tables_of(_starts(self.frequencies[chosen])))
            if self.frequencies.size <= _KEPT:
                self._kept[chosen] = found
        return found

    @cached_property
    def of_classes(self) -> Table | None:
        """The table of the classes, for the range coder; None where there is only one."""
        return tables_of(_starts(self.class_frequencies)[None])[0] if self.classes > 1 else None

    @cached_property
    def flat(self) -> Flat:
        """The codes' tables, that of class k and channel c being table k * channels + c."""
        return Flat(self.frequencies.reshape(-1, self.levels))

    @cached_property
    def flat_classes(self) -> Flat:
        """The one table of the classes."""
        return Flat(self.class_frequencies[None])

    @cached_property
    def _kept(self) -> dict[int, list[Run]]:
        return {}

    @cached_property
    def _bits(self) -> npt.NDArray[np.float32]:
        """Bits of every code in every class, [channels * levels, classes]."""
        bits = PRECISION - np.log2(self.frequencies.reshape(self.classes, -1).T)
        return np.ascontiguousarray(bits, np.float32)

    @cached_property
    def _class_bits(self) -> npt.NDArray[np.float32]:
        return (PRECISION - np.log2(self.class_frequencies)).astype(np.float32)


class Flat:
    """Tables one behind the other, for many symbols at once.

    Args:
        frequencies: uint32 [tables, symbols].

    Attributes:
        stride: from one table to the next.
        certain: place of one more table, whose only symbol takes everything.
    """

    def __init__(self, frequencies: U32) -> None:
        count, symbols = frequencies.shape
        self._half = 1 << max(1, (symbols - 1).bit_length()) >> 1
        self.stride = 2 * self._half + 1
        # Starts beyond the last symbol are beyond every slot, so that the search needs no bounds.
        starts = np.full((count + 1, self.stride), TOTAL, np.uint32)
        starts[:count, : symbols + 1] = _starts(frequencies)
        starts[count, 0] = 0
        self.certain = count * self.stride
        self._starts = starts.reshape(-1)

    def of(self, at: Index) -> tuple[U32, U32]:
        """Start and frequency of the symbols at these places: of a table, and the symbol added."""
        starts = self._starts.take(at)
        return starts, self._starts[1:].take(at) - starts

    def find(self, slots: U32, tables: Index) -> tuple[Index, U32, U32]:
        """The symbols at ``slots`` of the tables at these places, with their starts and frequencies."""
        at, half = tables, self._half
        while half:
            at = at + half * (self._starts[half:].take(at) <= slots)
            half >>= 1
        starts, frequencies = self.of(at)
        return at - tables, starts, frequencies


def bits_of_symbols(frequencies: U32) -> float:
    """Bits that symbols of these frequencies cost: the sum of 14 - log2 f."""
    return float(PRECISION * frequencies.size - np.log2(frequencies).sum())


def _checked(frequencies: npt.ArrayLike, what: str) -> U32:
    array = np.asarray(frequencies)
    if array.dtype.kind not in "ui" or not array.ndim or not array.size:
        raise CodeError(f"frequencies must be a filled array of integers, not {array.dtype} {array.shape}")
    if int(array.min()) < 1 or int(array.max()) > TOTAL:
        raise CodeError(f"frequencies must lie in 1..{TOTAL}, found {array.min()} to {array.max()}")
    sums = array.sum(axis=-1, dtype=np.int64)
    if (sums != TOTAL).any():
        bad = int(sums[sums != TOTAL].flat[0]) if sums.ndim else int(sums)
        raise CodeError(f"the frequencies of {what} sum to {bad}, not {TOTAL}; the tables are damaged")
    return array.astype(np.uint32)


def _entropies(frequencies: U32) -> npt.NDArray[np.int64]:
    """Entropy of each table along the last axis, in 1/256 bit, rounded down, in whole numbers."""
    f = frequencies.astype(np.int64)
    # The exponent of a number below 2**53 is exact in a double.
    power = np.frexp(f.astype(np.float64))[1].astype(np.int64) - 1
    bits = 256 * (PRECISION - power) - ((f << 8 >> power) - 256)
    return np.asarray((f * bits).sum(axis=-1) >> PRECISION)


def _starts(frequencies: U32) -> U32:
    ends = frequencies.cumsum(axis=-1, dtype=np.uint32)
    return np.concatenate([np.zeros_like(ends[..., :1]), ends], axis=-1)
