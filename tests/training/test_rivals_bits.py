"""Whole numbers as bytes: mixed radix and the numbers of subsets."""

from __future__ import annotations

import itertools
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qtl_core.errors import CodeError
from qtl_training.rivals.bits import Reader, Writer, joined, parted, size_of, subset_of, subset_rank


@st.composite
def digits(draw: st.DrawFn) -> list[tuple[int, int]]:
    spans = draw(st.lists(st.integers(1, 2**20), max_size=30))
    return [(draw(st.integers(0, span - 1)), span) for span in spans]


@given(digits())
def test_digits_come_back_and_cost_their_logarithm(pairs: list[tuple[int, int]]) -> None:
    writer = Writer()
    for value, span in pairs:
        writer.put(value, span)
    data = writer.bytes()
    assert len(data) == size_of(math.prod(span for _, span in pairs))
    reader = Reader(data)
    assert [reader.take(span) for _, span in pairs] == [value for value, _ in pairs]
    reader.close()


def test_what_is_no_digit_and_what_is_left_over_are_refused() -> None:
    with pytest.raises(CodeError, match=r"7 does not lie in 0\.\.6"):
        Writer().put(7, 7)
    for data in (b"\x05\x00", b"\x06", b""):
        reader = Reader(data)
        reader.take(5)
        with pytest.raises(CodeError):
            reader.close()


@given(st.integers(2, 9), st.lists(st.integers(0, 1), max_size=40))
def test_joined_digits_part_again(radix: int, values: list[int]) -> None:
    assert parted(joined(values, radix), radix, len(values)) == values


@pytest.mark.parametrize("n", range(1, 9))
def test_every_small_subset_has_its_own_number(n: int) -> None:
    for k in range(n + 1):
        subsets = list(itertools.combinations(range(n), k))
        ranks = [subset_rank(subset, n) for subset in subsets]
        assert sorted(ranks) == list(range(math.comb(n, k)))
        assert [tuple(subset_of(rank, n, k)) for rank in ranks] == subsets


@given(st.data())
def test_large_subsets_come_back(data: st.DataObject) -> None:
    n = data.draw(st.integers(1, 5000))
    chosen = sorted(data.draw(st.sets(st.integers(0, n - 1), max_size=60)))
    rank = subset_rank(chosen, n)
    assert 0 <= rank < math.comb(n, len(chosen))
    assert subset_of(rank, n, len(chosen)) == chosen
