"""Codes of a rival as bytes: fixed length, or our own entropy coder where that is shorter."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from qtl_core import codes as packing
from qtl_core import entropy
from qtl_training.rivals import bits

Codes = NDArray[np.uint8]


class Coder:
    """Bytes of pictures' codes and back, both ends sharing level counts and tables.

    The shorter of the two forms is sent, as with our own codes. A reader tells them apart by length:
    an entropy-coded payload is only sent where it is shorter than the fixed one.

    Args:
        level_counts: levels of each column of the codes.
        tokens: rows of the codes.
        whole_bits: whether the fixed form takes whole bits a code, as on our wire; otherwise level
            counts that are no power of two travel as the digits of one number, without waste.
    """

    def __init__(self, level_counts: Sequence[int], tokens: int, *, whole_bits: bool = False) -> None:
        self._counts, self._tokens = tuple(level_counts), tokens
        self._levels = max(self._counts)
        one_count = set(self._counts) == {self._levels}
        self._even = one_count and (whole_bits or self._levels & (self._levels - 1) == 0)
        self._tables: entropy.Tables | None = None

    @property
    def fixed_size(self) -> int:
        """Bytes of the fixed-length form."""
        if self._even:
            return packing.packed_size(self._tokens * len(self._counts), self._levels)
        return bits.size_of(math.prod(self._counts) ** self._tokens)

    def calibrate(self, codes: Codes) -> None:
        """Fits the tables to codes of training pictures, uint8 [pictures, tokens, columns].

        Raises:
            InputError: if they are too few.
        """
        self._tables = entropy.Tables.fit(codes, self._levels)

    def encode(self, codes: Codes, *, packed: bool = False) -> list[bytes]:
        """Bytes of each picture's codes [pictures, tokens, columns].

        Args:
            codes: uint8.
            packed: whether to keep to the fixed form.

        Raises:
            CodeError: if a code is outside its column's range.
        """
        fixed = [self._fixed(one) for one in codes]
        if packed or self._tables is None:
            return fixed
        coded = entropy.encode_batch(codes, self._tables)
        return [one if len(one) < len(other) else other for one, other in zip(coded, fixed, strict=True)]

    def decode(self, payloads: Sequence[bytes]) -> Codes:
        """Codes [pictures, tokens, columns] of payloads of either form.

        Raises:
            CodeError: if the bytes of one are none that ``encode`` makes.
        """
        shape = (self._tokens, len(self._counts))
        out = np.empty((len(payloads), *shape), np.uint8)
        size = self.fixed_size
        coded = [place for place, payload in enumerate(payloads) if self._tables and len(payload) < size]
        if coded and self._tables is not None:
            out[coded] = entropy.decode_batch([payloads[place] for place in coded], self._tables, shape)
        for place in sorted(set(range(len(payloads))) - set(coded)):
            out[place] = self._unfixed(payloads[place])
        return out

    def _fixed(self, codes: Codes) -> bytes:
        if self._even:
            return packing.pack(codes, self._levels)
        writer = bits.Writer()
        for row in codes.tolist():
            for code, count in zip(row, self._counts, strict=True):
                writer.put(code, count)
        return writer.bytes()

    def _unfixed(self, payload: bytes) -> Codes:
        if self._even:
            return packing.unpack(payload, self._levels, (self._tokens, len(self._counts)))
        reader = bits.Reader(payload)
        rows = [[reader.take(count) for count in self._counts] for _ in range(self._tokens)]
        reader.close()
        return np.array(rows, np.uint8)
