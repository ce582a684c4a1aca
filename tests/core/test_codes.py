"""Packing: exact round trips, the order of bits, and every way the bytes can be wrong."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from qtl_core import codes
from qtl_core.errors import CodeError

LEVELS = st.integers(2, 256)
SHAPES = hnp.array_shapes(min_dims=1, max_dims=3, min_side=0, max_side=17)


@st.composite
def _arrays(draw: st.DrawFn) -> tuple[int, Any]:
    levels = draw(LEVELS)
    values = st.integers(0, levels - 1)
    return levels, draw(hnp.arrays(np.uint8, draw(SHAPES), elements=values))


def _slowly(array: Any, levels: int) -> bytes:
    """The definition, one bit at a time: code i's bit b is bit i*bits + b of the stream."""
    bits, stream = codes.bits_of(levels), 0
    for index, code in enumerate(np.ravel(array).tolist()):
        stream |= code << (index * bits)
    return stream.to_bytes(codes.packed_size(np.size(array), levels), "little")


@given(_arrays())
def test_round_trip_and_definition(case: tuple[int, Any]) -> None:
    levels, array = case
    packed = codes.pack(array, levels)
    assert packed == _slowly(array, levels)
    assert len(packed) == codes.packed_size(array.size, levels)
    back = codes.unpack(packed, levels, array.shape)
    assert back.dtype == np.uint8
    assert back.shape == array.shape
    np.testing.assert_array_equal(back, array)
    back[...] = 0  # writable, and not a view of the caller's bytes


@pytest.mark.parametrize("levels", range(2, 257))
def test_every_level_count_keeps_every_code(levels: int) -> None:
    array = np.arange(levels, dtype=np.uint8)
    np.testing.assert_array_equal(codes.unpack(codes.pack(array, levels), levels, levels), array)


@given(_arrays())
def test_every_truncation_and_every_extra_byte_raises(case: tuple[int, Any]) -> None:
    levels, array = case
    packed = codes.pack(array, levels)
    for length in range(len(packed)):
        with pytest.raises(CodeError, match="bytes"):
            codes.unpack(packed[:length], levels, array.shape)
    with pytest.raises(CodeError, match="bytes"):
        codes.unpack(packed + b"\0", levels, array.shape)


@given(st.integers(2, 256), st.integers(0, 40), st.randoms(use_true_random=False))
def test_random_bytes_either_raise_or_pack_back(levels: int, count: int, random: Any) -> None:
    data = random.randbytes(codes.packed_size(count, levels))
    try:
        array = codes.unpack(data, levels, count)
    except CodeError:
        return
    assert codes.pack(array, levels) == data


def test_the_authors_packing(authors: tuple[int, Any]) -> None:
    levels, vectors = authors
    assert codes.pack(vectors["codes"], levels) == vectors["packed"].tobytes()
    back = codes.unpack(vectors["packed"].tobytes(), levels, vectors["codes"].shape)
    np.testing.assert_array_equal(back, vectors["codes"])


@pytest.mark.parametrize(
    ("levels", "bits"), [(2, 1), (3, 2), (4, 2), (5, 3), (8, 3), (9, 4), (16, 4), (17, 5), (128, 7), (256, 8)]
)
def test_bits_of(levels: int, bits: int) -> None:
    assert codes.bits_of(levels) == bits


@pytest.mark.parametrize("levels", [-1, 0, 1, 257, 2.0, "4", None, True])
def test_level_counts_that_do_not_exist(levels: Any) -> None:
    with pytest.raises(CodeError, match="levels"):
        codes.bits_of(levels)
    with pytest.raises(CodeError, match="levels"):
        codes.pack(np.zeros(3, np.uint8), levels)
    with pytest.raises(CodeError, match="levels"):
        codes.unpack(b"\0", levels, 3)


@pytest.mark.parametrize(
    "array",
    [
        np.array([0, 3]),
        np.array([-1, 0]),
        np.array([300]),
        np.array([0.0, 1.0]),
        np.array([True]),
        ["1"],
        [None],
    ],
)
def test_arrays_that_are_no_codes(array: Any) -> None:
    with pytest.raises(CodeError):
        codes.pack(array, 3)


@pytest.mark.parametrize("dtype", ["i1", "i8", ">u2", "u8"])
def test_any_integer_type_and_any_memory_layout(dtype: str) -> None:
    array = np.arange(24).reshape(4, 6) % 5
    expected = codes.pack(array.astype(np.uint8), 5)
    assert codes.pack(array.astype(dtype), 5) == expected
    assert codes.pack(np.asfortranarray(array), 5) == expected


def test_code_out_of_range_on_the_wire() -> None:
    with pytest.raises(CodeError, match=r"0\.\.2, found 3"):
        codes.unpack(b"\x03", 3, 4)


def test_padding_must_be_zero() -> None:
    with pytest.raises(CodeError, match="padding"):
        codes.unpack(b"\x80", 4, 3)


def test_impossible_shapes() -> None:
    with pytest.raises(CodeError, match="shape"):
        codes.unpack(b"", 4, (-1, 2))
    with pytest.raises(CodeError, match="bytes"):  # refused before anything of that size is allocated
        codes.unpack(b"\0", 4, (2**40, 2**20))
    with pytest.raises(CodeError, match="number of codes"):
        codes.packed_size(-1, 4)


@pytest.mark.parametrize("wrap", [bytes, bytearray, memoryview])
def test_any_bytes_like(wrap: Any) -> None:
    assert codes.unpack(wrap(b"\x1b"), 4, 4).tolist() == [3, 2, 1, 0]
