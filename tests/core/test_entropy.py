"""The entropy coder: exact round trips, how close to the entropy, and every way its bytes can be wrong."""

from __future__ import annotations

import hashlib
import os
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from qtl_core import entropy, range_coder
from qtl_core.codes import packed_size
from qtl_core.entropy_tables import Tables
from qtl_core.errors import CodeError
from qtl_core.range_coder import TOTAL

STREAMS = Path(__file__).resolve().parents[1] / "golden" / "entropy_streams.txt"

Codes = npt.NDArray[np.uint8]


def make_tables(levels: int, channels: int, classes: int, seed: int = 0, peak: float = 1.0) -> Tables:
    """Random tables; the smaller ``peak``, the likelier each table's likeliest symbol."""
    rng = np.random.default_rng([levels, channels, classes, seed])

    def tables(shape: tuple[int, ...], symbols: int) -> npt.NDArray[np.int64]:
        shares = rng.dirichlet(np.full(symbols, peak), shape)
        found = np.floor(shares * (TOTAL - symbols)).astype(np.int64) + 1
        likeliest = found.argmax(-1)[..., None]
        left = TOTAL - found.sum(-1, keepdims=True)
        np.put_along_axis(found, likeliest, np.take_along_axis(found, likeliest, -1) + left, -1)
        return found

    return Tables(levels, tables((), classes), tables((classes, channels), levels))


def draw(tables: Tables, tokens: int, seed: int = 0) -> Codes:
    """Codes [tokens, channels] as likely as the tables say."""
    rng = np.random.default_rng(seed)
    chosen = rng.choice(tables.classes, tokens, p=tables.class_frequencies / TOTAL)
    slots = rng.integers(0, TOTAL, (tokens, tables.channels))
    ends = tables.frequencies.cumsum(-1)
    codes = np.empty((tokens, tables.channels), np.uint8)
    for each in np.unique(chosen):
        here = np.flatnonzero(chosen == each)
        for channel in range(tables.channels):
            codes[here, channel] = np.searchsorted(ends[each, channel], slots[here, channel], side="right")
    return codes


@st.composite
def _cases(draw: st.DrawFn) -> tuple[Tables, Codes]:
    levels, channels = draw(st.integers(2, 256)), draw(st.integers(1, 6))
    classes = draw(st.sampled_from([1, 1, 2, 5]))
    tables = make_tables(levels, channels, classes, draw(st.integers(0, 9)), draw(st.sampled_from([0.05, 1])))
    before = draw(hnp.array_shapes(min_dims=0, max_dims=2, min_side=0, max_side=9))
    codes = draw(hnp.arrays(np.uint8, (*before, channels), elements=st.integers(0, levels - 1)))
    return tables, codes


@given(_cases())
def test_round_trip_of_any_codes(case: tuple[Tables, Codes]) -> None:
    tables, codes = case
    data = entropy.encode(codes, tables)
    back = entropy.decode(data, tables, codes.shape)
    assert back.dtype == np.uint8 and back.shape == codes.shape
    np.testing.assert_array_equal(back, codes)
    # Codes that are as unlikely as can be cost what the tables say, and never more than that and a byte.
    assert len(data) <= tables.bits(codes) / 8 + 1.2
    back[...] = 0  # writable


@pytest.mark.parametrize("levels", range(2, 257))
def test_every_level_count_keeps_every_code(levels: int) -> None:
    tables = make_tables(levels, 1, 1, peak=0.1)
    codes = np.arange(levels, dtype=np.uint8)
    np.testing.assert_array_equal(entropy.decode(entropy.encode(codes, tables), tables, levels), codes)


LONG = [
    (2, 640, 1, 729, 3.0),
    (4, 1280, 1, 729, 1.0),
    (4, 96, 8, 4001, 0.5),
    (5, 64, 1, 6000, 0.1),
    (32, 300, 3, 729, 0.3),
    (256, 128, 2, 257, 1.0),
]


@pytest.mark.parametrize(("levels", "channels", "classes", "tokens", "peak"), LONG)
def test_long_payloads(levels: int, channels: int, classes: int, tokens: int, peak: float) -> None:
    tables = make_tables(levels, channels, classes, peak=peak)
    codes = draw(tables, tokens)
    data = entropy.encode(codes, tables)
    assert entropy.lanes_for(tokens, tables) >= entropy.MIN_LANES
    np.testing.assert_array_equal(entropy.decode(data, tables, codes.shape), codes)
    assert len(data) <= 1.01 * tables.bits(codes) / 8 + 4
    for cut in (0, 1, 2, 4, len(data) // 2, len(data) - 2, len(data) - 1):
        with pytest.raises(CodeError):
            entropy.decode(data[:cut], tables, codes.shape)
    for more in (b"\0", b"\0\0", bytes(400)):
        with pytest.raises(CodeError):
            entropy.decode(data + more, tables, codes.shape)


@pytest.mark.parametrize("levels", [2, 3, 4, 5, 16, 32, 256])
@pytest.mark.parametrize("classes", [1, 16])
def test_within_one_percent_and_four_bytes_of_the_entropy(levels: int, classes: int) -> None:
    """From one token to hundreds of kilobytes, whichever form they take."""
    tables = make_tables(levels, 32, classes, peak=0.4)
    codes = draw(tables, 40_000 if (levels, classes) == (4, 1) else 4000)
    worst = 0.0
    for tokens in (1, 2, 3, 9, 36, 100, 729, len(codes)):
        size, bits = len(entropy.encode(codes[:tokens], tables)), tables.bits(codes[:tokens])
        assert size <= 1.01 * bits / 8 + 4
        assert size >= bits / 8 - 1e-6
        worst = max(worst, size - bits / 8 if not entropy.lanes_for(tokens, tables) else 0)
    assert worst <= 1.2


def peaked(levels: int, channels: int, classes: int, likeliest: int, share: float) -> Tables:
    """Tables whose one likely symbol has this share, the others what is left."""
    most = round(share * TOTAL)
    table = np.full(levels, (TOTAL - most) // (levels - 1))
    table[likeliest] += TOTAL - table.sum()
    groups = np.full(classes, TOTAL // classes)
    return Tables(levels, groups, np.broadcast_to(table, (classes, channels, levels)))


def just_long(tables: Tables) -> int:
    """The fewest tokens that these tables expect to take a long payload."""
    return next(tokens for tokens in range(1, 1 << 20) if entropy.lanes_for(tokens, tables))


def check_size_and_round_trip(codes: Codes, tables: Tables) -> None:
    data = entropy.encode(codes, tables)
    assert len(data) <= 1.01 * tables.bits(codes) / 8 + 4
    np.testing.assert_array_equal(entropy.decode(data, tables, codes.shape), codes)


@pytest.mark.parametrize("levels", [2, 3, 4, 5, 16, 256])
@pytest.mark.parametrize("last", [False, True])
@pytest.mark.parametrize("classes", [1, 16])
def test_pictures_far_cheaper_than_their_tables_expect(levels: int, last: bool, classes: int) -> None:
    """Nothing but likeliest codes, or half of them, just beyond the shortest long payload."""
    likeliest = levels - 1 if last else 0
    tables = peaked(levels, 640, classes, likeliest, 0.93)
    tokens = just_long(tables)
    codes = np.full((tokens, 640), likeliest, np.uint8)
    check_size_and_round_trip(codes, tables)
    codes[::2] = draw(tables, len(codes[::2]))
    check_size_and_round_trip(codes, tables)


@pytest.mark.parametrize(
    ("levels", "likeliest", "share"), [(2, 1, 0.9), (4, 0, 0.7), (4, 3, 0.95), (256, 9, 0.9)]
)
def test_large_pictures_far_cheaper_than_their_tables_expect(
    levels: int, likeliest: int, share: float
) -> None:
    tables = peaked(levels, 1280, 1, likeliest, share)
    assert entropy.lanes_for(729, tables)
    check_size_and_round_trip(np.full((729, 1280), likeliest, np.uint8), tables)


def test_a_long_payload_says_how_it_is_coded() -> None:
    tables = peaked(256, 64, 2, 255, 0.5)
    tokens = just_long(tables)
    shape = (tokens, 64)
    pictures = np.stack([draw(tables, tokens), np.full(shape, 255, np.uint8), draw(tables, tokens, seed=1)])
    payloads = entropy.encode_batch(pictures, tables)
    assert [data[:1] for data in payloads] == [entropy.RANS, entropy.RANGE, entropy.RANS]
    # A whole batch of either, and both mixed, in any order.
    for order in ([0, 1, 2], [1, 1], [1] * 99 + [0], []):
        back = entropy.decode_batch([payloads[index] for index in order], tables, shape)
        np.testing.assert_array_equal(back, pictures[order].reshape(len(order), *shape))
    for data in payloads:
        for first in (0, 1, 127, 254, 255):
            if first != data[0]:
                with pytest.raises(CodeError):
                    entropy.decode(bytes([first]) + data[1:], tables, shape)
    data = payloads[1]
    for damaged in [data[:cut] for cut in range(0, len(data), 499)] + [data + b"\0", data[:-1] + b"\0\xff"]:
        with pytest.raises(CodeError, match="payload 1: "):
            entropy.decode_batch([payloads[0], damaged, payloads[2]], tables, shape)


def test_nearly_certain_codes_cost_next_to_nothing() -> None:
    tables = Tables(4, [TOTAL], [[[TOTAL - 3, 1, 1, 1]] * 64])
    codes = np.zeros((4000, 64), np.uint8)
    data = entropy.encode(codes, tables)
    assert len(data) <= 1.01 * tables.bits(codes) / 8 + 4 < 20
    np.testing.assert_array_equal(entropy.decode(data, tables, codes.shape), codes)


@pytest.mark.parametrize(
    ("levels", "classes", "tokens", "channels"),
    [
        (4, 1, 9, 32),
        (4, 16, 9, 32),
        (4, 4, 1000, 32),
        (256, 2, 300, 32),
        (4, 1, 9000, 32),
        (4, 1, 729, 1280),
        (16, 1, 729, 1280),
        (16, 8, 729, 1280),
    ],
)
def test_no_larger_than_constriction(levels: int, classes: int, tokens: int, channels: int) -> None:
    """The same symbols under the same tables through constriction's range coder and its ANS coder."""
    constriction = pytest.importorskip("constriction")
    tables = make_tables(levels, channels, classes, peak=0.5)
    codes = draw(tables, tokens)
    chosen = tables.choose(codes)
    model = constriction.stream.model.Categorical(perfect=False)
    queue, stack = constriction.stream.queue.RangeEncoder(), constriction.stream.stack.AnsCoder()
    parts: list[tuple[npt.NDArray[Any], npt.NDArray[Any]]] = [
        (codes.reshape(-1), tables.frequencies[chosen].reshape(-1, levels))
    ]
    if classes > 1:
        parts.append((chosen, np.broadcast_to(tables.class_frequencies, (tokens, classes))))
    for symbols, frequencies in parts:
        shares = (frequencies / TOTAL).astype(np.float32)
        queue.encode(symbols.astype(np.int32), model, shares)
        stack.encode_reverse(symbols.astype(np.int32), model, shares)
    theirs = min(queue.get_compressed().nbytes, stack.get_compressed().nbytes)
    assert len(entropy.encode(codes, tables)) <= 1.01 * theirs + 4


def test_the_form_follows_from_size_and_tables_alone() -> None:
    even = Tables(4, [TOTAL], [[[4096] * 4] * 128])
    assert even.row_bits == 256 * 256
    assert [entropy.lanes_for(tokens, even) for tokens in (0, 9, 511, 512, 729, 100_000)] == [
        0,
        0,
        0,
        16,
        22,
        511,  # of at most 512: in 196 blocks as even as can be
    ]
    # 16 lanes need 16 tokens to work on; 17 tokens on at most 16 lanes are two blocks of 9.
    wide = Tables(4, [TOTAL], [[[4096] * 4] * 32_768])
    assert [entropy.lanes_for(tokens, wide) for tokens in (15, 16, 17, 513)] == [0, 16, 17, 257]


@given(st.integers(2, 9), st.integers(1, 20), st.binary(max_size=12))
def test_random_bytes_raise_or_are_what_encode_makes(levels: int, tokens: int, data: bytes) -> None:
    tables = make_tables(levels, 3, 1)
    try:
        codes = entropy.decode(data, tables, (tokens, 3))
    except CodeError as error:
        assert "\n" not in str(error)
        return
    assert entropy.encode(codes, tables) == data


@given(_cases())
def test_every_truncation_and_every_extension_raises(case: tuple[Tables, Codes]) -> None:
    tables, codes = case
    data = entropy.encode(codes, tables)
    for length in range(len(data)):
        with pytest.raises(CodeError):
            entropy.decode(data[:length], tables, codes.shape)
    for more in (b"\0", b"\xff", bytes(8)):
        with pytest.raises(CodeError):
            entropy.decode(data + more, tables, codes.shape)


def test_ten_thousand_corruptions() -> None:
    """Each is one to four flipped bits; the coder lets few pass, and the frame's checksum none of them."""
    tables = make_tables(4, 32, 16, peak=0.4)
    rng = np.random.default_rng(0)
    missed = unseen = 0
    payloads = entropy.encode_batch(draw(tables, 500 * 9).reshape(500, 9, 32), tables)
    for number in range(10_000):
        data = bytearray(payloads[number % 500])
        crc = zlib.crc32(data)
        for bit in rng.choice(8 * len(data), rng.integers(1, 5), replace=False).tolist():
            data[bit // 8] ^= 1 << bit % 8
        unseen += zlib.crc32(data) == crc
        try:
            entropy.decode(bytes(data), tables, (9, 32))
            missed += 1
        except CodeError:
            pass
    assert unseen == 0
    assert 50 < missed < 600


def test_corruptions_of_long_payloads() -> None:
    tables = make_tables(16, 64, 2, peak=0.4)
    codes = draw(tables, 700)
    data = entropy.encode(codes, tables)
    assert entropy.lanes_for(700, tables)
    for bit in np.random.default_rng(0).choice(8 * len(data), 30, replace=False).tolist():
        damaged = bytearray(data)
        damaged[bit // 8] ^= 1 << bit % 8
        with pytest.raises(CodeError):
            entropy.decode(bytes(damaged), tables, codes.shape)


def test_noise_as_a_long_payload() -> None:
    """Lanes that ask for more words than there are, or begin below where a state may be."""
    tables = make_tables(16, 64, 2, peak=0.4)
    head = 4 * entropy.lanes_for(700, tables)
    rng = np.random.default_rng(0)
    for size in (head, head + 2, head + 5000, 40_000):
        for noise in (rng.bytes(size), bytes(size), b"\xff" * size):
            for form in (entropy.RANS, entropy.RANGE):
                with pytest.raises(CodeError):
                    entropy.decode(form + noise, tables, (700, 64))
    # The words of no codes at all, and states that no encoder writes.
    good = entropy.encode(np.zeros((700, 64), np.uint8), tables)
    assert good[:1] == entropy.RANS
    with pytest.raises(CodeError):
        entropy.decode(entropy.RANS + bytes(head) + good[1 + head :], tables, (700, 64))


@pytest.mark.parametrize("count", [1, 7, 120])
@pytest.mark.parametrize("classes", [1, 4])
@pytest.mark.parametrize(("tokens", "channels"), [(9, 5), (1, 1), (700, 128)])
def test_a_batch_is_its_payloads_one_by_one(count: int, classes: int, tokens: int, channels: int) -> None:
    if tokens == 700:
        count = min(count, 3)
    tables = make_tables(4, channels, classes, peak=0.5)
    codes = draw(tables, count * tokens).reshape(count, tokens, channels)
    data = entropy.encode_batch(codes, tables)
    assert data == [entropy.encode(one, tables) for one in codes]
    back = entropy.decode_batch(data, tables, (tokens, channels))
    assert back.dtype == np.uint8
    np.testing.assert_array_equal(back, codes)


@pytest.mark.parametrize("count", [3, 150])
@pytest.mark.parametrize("tokens", [9, 700])
def test_a_bad_payload_of_a_batch_is_named(count: int, tokens: int) -> None:
    if tokens == 700:
        count = 3
    tables = make_tables(16, 64, 3, peak=0.5)
    data = entropy.encode_batch(draw(tables, count * tokens).reshape(count, tokens, 64), tables)
    damages: list[Any] = [
        lambda d: d[:-1],
        lambda d: d + b"\0",
        lambda d: b"",
        lambda d: d[:-2] + b"\xa5\x5a\x11",
    ]
    for damage in damages:
        changed = [*data[:-2], damage(data[-2]), data[-1]]
        with pytest.raises(CodeError, match=f"payload {count - 2}: "):
            entropy.decode_batch(changed, tables, (tokens, 64))


@pytest.mark.parametrize("count", [1, 100])
def test_both_decoders_of_short_payloads_agree_on_damage(count: int) -> None:
    tables = make_tables(5, 7, 3)
    good = entropy.encode_batch(draw(tables, 9 * count).reshape(count, 9, 7), tables)
    rng = np.random.default_rng(1)
    for _ in range(60):
        bad = rng.bytes(int(rng.integers(0, 20)))
        alone = together = ""
        try:
            range_coder.decode(bad, 9, tables.of_classes, tables.of_class)
        except CodeError as error:
            alone = str(error)
        try:
            entropy.decode_batch([bad, *good, *good[:99]] if count > 1 else [bad], tables, (9, 7))
        except CodeError as error:
            together = str(error)
        assert bool(alone) == bool(together)


def test_no_codes_take_no_bytes() -> None:
    tables = make_tables(4, 3, 2)
    for shape in ((0, 3), (2, 0, 3), (0,), 0):
        codes = np.zeros(shape, np.uint8)
        assert entropy.encode(codes, tables) == b""
        assert entropy.decode(b"", tables, shape).shape == codes.shape
        with pytest.raises(CodeError, match="no bytes"):
            entropy.decode(b"\0", tables, shape)
    assert entropy.encode_batch(np.zeros((0, 9, 3), np.uint8), tables) == []
    assert entropy.decode_batch([], tables, (9, 3)).shape == (0, 9, 3)


def test_one_channel_takes_any_shape() -> None:
    tables = make_tables(4, 1, 1)
    codes = draw(tables, 24)[:, 0]
    for shape in ((24,), (4, 6), (2, 3, 4), (1, 24, 1)):
        data = entropy.encode(codes.reshape(shape), tables)
        assert data == entropy.encode(codes, tables)
        np.testing.assert_array_equal(entropy.decode(data, tables, shape), codes.reshape(shape))
    assert entropy.decode(entropy.encode(codes[0], tables), tables, ()) == codes[0]


@pytest.mark.parametrize("dtype", ["i1", "i8", ">u2", "u8"])
def test_any_integer_type_and_any_memory_layout(dtype: str) -> None:
    tables = make_tables(5, 6, 2)
    codes = draw(tables, 20)
    expected = entropy.encode(codes, tables)
    assert entropy.encode(codes.astype(dtype), tables) == expected
    assert entropy.encode(np.asfortranarray(codes), tables) == expected


@pytest.mark.parametrize("wrap", [bytes, bytearray, memoryview])
def test_any_bytes_like(wrap: Any) -> None:
    tables = make_tables(4, 5, 2)
    codes = draw(tables, 9)
    np.testing.assert_array_equal(entropy.decode(wrap(entropy.encode(codes, tables)), tables, (9, 5)), codes)


@pytest.mark.parametrize(
    "codes",
    [
        np.full((2, 3), 4),
        np.full((2, 3), -1),
        np.full((2, 3), 1.0),
        np.full((2, 3), np.nan),
        np.full((2, 3), True),
        np.zeros((2, 4), np.uint8),
        np.zeros(4, np.uint8),
        np.uint8(1),
        ["1", "2", "3"],
    ],
)
def test_what_are_no_codes_of_these_tables(codes: Any) -> None:
    tables = make_tables(4, 3, 2)
    for use in (entropy.encode, lambda given, with_: with_.bits(given)):
        with pytest.raises(CodeError):
            use(codes, tables)


@pytest.mark.parametrize("shape", [(-1, 3), (-2, -3), (2, 4), (3, 2), ()])
def test_impossible_shapes(shape: Any) -> None:
    with pytest.raises(CodeError, match="shape"):
        entropy.decode(b"\x12\x34", make_tables(4, 3, 2), shape)


def _stream(levels: int, channels: int, classes: int, tokens: int, unlikely: int = 3) -> str:
    """One line of the golden file: the bytes, or of many their number and SHA-256.

    Every code whose place is no multiple of ``unlikely`` is 0, the likeliest.
    """
    # Whole-number arithmetic, so that no version of a random generator decides.
    spread = np.arange(classes * channels * levels).reshape(classes, channels, levels)
    frequencies = 1 + spread * 7919 % 61
    frequencies[..., 0] += TOTAL - frequencies.sum(-1)
    groups = 1 + np.arange(classes) * 31 % 17
    groups[0] += TOTAL - groups.sum()
    tables = Tables(levels, groups, frequencies)
    index = np.arange(tokens * channels, dtype=np.uint64).reshape(tokens, channels)
    codes = ((index * 2654435761) % 2**32 >> 16) % levels * (index % unlikely == 0)
    data = entropy.encode(codes, tables)
    np.testing.assert_array_equal(entropy.decode(data, tables, codes.shape), codes)
    written = data.hex() if len(data) <= 64 else f"{len(data)} bytes {hashlib.sha256(data).hexdigest()}"
    few = f", 1 of {unlikely} unlikely" if unlikely != 3 else ""
    return f"{levels} levels, {channels} channels, {classes} classes, {tokens} tokens{few}: {written}\n"


def test_golden_streams() -> None:
    """To change the coder's bytes on purpose, run this test with QTL_WRITE_GOLDEN=1."""
    cases = [
        (2, 8, 1, 9),
        (4, 8, 1, 9),
        (4, 8, 3, 9),
        (5, 3, 2, 1),
        (16, 32, 4, 9),
        (256, 4, 1, 3),
        (3, 1, 1, 40),
    ]
    cases += [(4, 640, 1, 729), (32, 128, 2, 729), (256, 64, 1, 600), (64, 400, 2, 729)]
    found = "".join(_stream(*case) for case in cases) + _stream(256, 64, 1, 600, 100)
    if os.environ.get("QTL_WRITE_GOLDEN"):
        STREAMS.write_text(found)
    assert found == STREAMS.read_text()


def test_the_smaller_of_two_is_never_larger_than_packed() -> None:
    """What codes that nobody foresaw can cost at worst is why packed ones stay available."""
    tables = make_tables(4, 32, 1, peak=0.05)
    unlikely = tables.frequencies[0].argmin(-1).astype(np.uint8)[None].repeat(9, axis=0)
    assert len(entropy.encode(unlikely, tables)) > packed_size(unlikely.size, 4)
