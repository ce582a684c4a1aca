"""Whole numbers as bytes without a wasted bit: mixed radix, and the number of a subset."""

from __future__ import annotations

import math
from collections.abc import Sequence

from qtl_core.errors import CodeError


class Writer:
    """Joins digits of any radix into one number: ``put(v, n)`` costs exactly log2(n) bits."""

    def __init__(self) -> None:
        self._number, self._span = 0, 1

    def put(self, value: int, span: int) -> None:
        """Adds a digit in 0..span-1.

        Raises:
            CodeError: if the digit is outside its range.
        """
        if not 0 <= value < span:
            raise CodeError(f"{value} does not lie in 0..{span - 1}")
        self._number += value * self._span
        self._span *= span

    def bytes(self) -> bytes:
        """The number, little-endian, in the fewest bytes that hold every number of these radices."""
        return self._number.to_bytes(size_of(self._span), "little")


class Reader:
    """Takes a ``Writer``'s digits back, in the order and with the radices they were put."""

    def __init__(self, data: bytes) -> None:
        self._number, self._size = int.from_bytes(data, "little"), len(data)
        self._span = 1

    def take(self, span: int) -> int:
        """The next digit, in 0..span-1."""
        self._number, value = divmod(self._number, span)
        self._span *= span
        return value

    def close(self) -> None:
        """Checks that nothing is left.

        Raises:
            CodeError: if the data is longer or shorter than its digits.
        """
        if self._number or size_of(self._span) != self._size:
            raise CodeError(f"{self._size} bytes do not hold digits of {size_of(self._span)} bytes")


def size_of(span: int) -> int:
    """Bytes that hold every number below ``span``."""
    return ((span - 1).bit_length() + 7) // 8


def joined(digits: Sequence[int], radix: int) -> int:
    """Digits of one radix as a number; the first is the lowest."""
    number = 0
    for digit in reversed(digits):
        number = number * radix + digit
    return number


def parted(number: int, radix: int, count: int) -> list[int]:
    """The ``count`` digits of a number, lowest first."""
    digits = []
    for _ in range(count):
        number, digit = divmod(number, radix)
        digits.append(digit)
    return digits


def subset_rank(chosen: Sequence[int], n: int) -> int:
    """The number of a subset of 0..n-1 among all of its size: 0 to C(n, k) - 1 (combinatorial number system).

    The number is the sum of C(c_i, i) over the members c_1 < c_2 < ... < c_k. Both directions walk down
    from n - 1 and carry the binomial along, as computing each anew would take most of the time.

    Args:
        chosen: the members, ascending.
        n: size of the whole set.
    """
    rank, member, left = 0, n - 1, len(chosen)
    binomial = math.comb(member, left)
    for wanted in reversed(chosen):
        while member > wanted:
            binomial, member = binomial * (member - left) // member, member - 1
        rank += binomial
        if member:
            binomial, member, left = binomial * left // member, member - 1, left - 1
    return rank


def subset_of(rank: int, n: int, k: int) -> list[int]:
    """The members, ascending, of the subset of ``k`` out of 0..n-1 with that number."""
    chosen: list[int] = []
    member, left = n - 1, k
    binomial = math.comb(member, left)
    while left:
        if binomial <= rank:
            chosen.append(member)
            rank -= binomial
            if member == 0:
                break
            binomial, member, left = binomial * left // member, member - 1, left - 1
        else:
            binomial, member = binomial * (member - left) // member, member - 1
    return chosen[::-1]
