"""Gradients as bytes: what comes back, how it is rounded, and what damage is found."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from qtl_core.errors import CodeError, InputError
from qtl_core.gradients import BLOCK, GRAD_BITS, ErrorFeedback, decode, encode

QUANTIZED = tuple(bits for bits in GRAD_BITS if bits < 16)


def gradient(shape: tuple[int, ...], seed: int = 0, size: float = 1e-5) -> np.ndarray:
    return (size * np.random.default_rng(seed).laplace(size=shape)).astype(np.float32)


@given(
    st.sampled_from(GRAD_BITS),
    st.lists(st.integers(0, 9), min_size=1, max_size=3).map(tuple),
    st.integers(-40, 30),
    st.integers(0, 2**32 - 1),
)
def test_the_receiver_has_what_the_sender_says_it_has(
    bits: int, shape: tuple[int, ...], exponent: int, seed: int
) -> None:
    random = np.random.default_rng(seed)
    values = np.ldexp(random.standard_normal(shape), exponent).astype(np.float32)
    values[random.random(shape) < 0.3] = 0
    data, sent = encode(values, bits, random)
    np.testing.assert_array_equal(decode(data, bits, shape), sent)
    assert sent.shape == shape and sent.dtype == np.float32
    if bits == 32:
        np.testing.assert_array_equal(sent, values)


@pytest.mark.parametrize("bits", QUANTIZED)
def test_rounding_is_right_on_average_and_never_off_by_a_whole_step(bits: int) -> None:
    values = gradient((40, 9, 8))
    random = np.random.default_rng(1)
    rounds = np.array([encode(values, bits, random)[1] for _ in range(400)])
    blocks = values.reshape(-1, BLOCK)
    peak = np.abs(blocks).max(axis=1, keepdims=True)
    # A scale lies at most an eighth of an octave above its block's peak.
    step = 2 ** (1 / 8) * peak / (2 ** (bits - 1) - 1)
    error = (rounds - values).reshape(400, -1, BLOCK)
    assert (np.abs(error) <= 1.0001 * step).all()
    # Half a step is the largest deviation a value can have; the mean of 400 is within five of its own.
    assert (np.abs(error.mean(axis=0)) <= 5 * step / 2 / 20).all()


@pytest.mark.parametrize(("bits", "most"), [(16, 16.1), (8, 7.6), (4, 3.5), (2, 1.3)])
def test_bytes_of_a_value(bits: int, most: float) -> None:
    values = gradient((32, 9, 32))
    data, _ = encode(values, bits, np.random.default_rng(0))
    assert 8 * len(data) / values.size < most


def test_half_precision_holds_gradients_far_below_its_own_reach() -> None:
    values = gradient((64,), size=1e-30)
    _, sent = encode(values, 16, np.random.default_rng(0))
    large = np.abs(values) > 1e-3 * np.abs(values).max()
    np.testing.assert_allclose(sent[large], values[large], rtol=1e-3)


def test_blocks_of_zeros_take_one_byte() -> None:
    values = np.zeros((10, BLOCK), np.float32)
    values[3] = gradient((BLOCK,))
    data, sent = encode(values, 8, np.random.default_rng(0))
    alone, _ = encode(values[3], 8, np.random.default_rng(0))
    assert len(data) == len(alone) + 9
    assert not sent[np.arange(10) != 3].any()
    nothing, sent = encode(np.zeros((3, 5), np.float32), 2, np.random.default_rng(0))
    assert len(nothing) == 6 and not sent.any()


def test_the_same_random_state_gives_the_same_bytes() -> None:
    values = gradient((500,))
    first = encode(values, 4, np.random.default_rng(5))[0]
    assert first == encode(values, 4, np.random.default_rng(5))[0]
    assert first != encode(values, 4, np.random.default_rng(6))[0]


@pytest.mark.parametrize("bits", QUANTIZED)
def test_feedback_pays_back_what_rounding_left_out(bits: int) -> None:
    same = gradient((1, 9, 8))
    random = np.random.default_rng(2)
    feedback = ErrorFeedback((9, 8), bits)
    sent = [feedback.encode(same, random)[1] for _ in range(30)]
    # All that was owed and is not in the residual has been sent.
    np.testing.assert_allclose(sum(sent) + feedback.residual, 30 * same, rtol=1e-4, atol=1e-9)


def test_feedback_leaves_exact_gradients_alone() -> None:
    feedback = ErrorFeedback((9, 8), 32)
    values = gradient((4, 9, 8))
    np.testing.assert_array_equal(feedback.encode(values, np.random.default_rng(0))[1], values)
    assert not feedback.residual.any()


def test_feedback_refuses_another_shape() -> None:
    with pytest.raises(InputError, match=r"shape \(4, 9, 7\) are no batch of \(9, 8\)"):
        ErrorFeedback((9, 8), 4).encode(np.zeros((4, 9, 7)), np.random.default_rng(0))


@pytest.mark.parametrize("bits", GRAD_BITS)
@pytest.mark.parametrize("wrong", [np.nan, np.inf])
def test_no_gradient_that_is_not_finite_is_sent(bits: int, wrong: float) -> None:
    with pytest.raises(InputError, match="not finite"):
        encode([1.0, wrong], bits, np.random.default_rng(0))


def test_other_bits_are_refused() -> None:
    with pytest.raises(InputError, match="grad_bits 3 is not one of 32, 16, 8, 4, 2"):
        encode([1.0], 3, np.random.default_rng(0))


@pytest.mark.parametrize("bits", GRAD_BITS)
def test_every_truncation_and_extension_is_found(bits: int) -> None:
    values = gradient((3, 50))
    data, _ = encode(values, bits, np.random.default_rng(0))
    for size in range(len(data)):
        with pytest.raises(CodeError):
            decode(data[:size], bits, values.shape)
    with pytest.raises(CodeError):
        decode(data + b"\x00", bits, values.shape)


@pytest.mark.parametrize("bits", GRAD_BITS)
def test_damage_is_an_error_or_a_finite_gradient(bits: int) -> None:
    values = gradient((3, 50))
    good, _ = encode(values, bits, np.random.default_rng(0))
    random = np.random.default_rng(3)
    for _ in range(2000):
        data = bytearray(good)
        for place in random.integers(0, 8 * len(data), random.integers(1, 4)).tolist():
            data[place // 8] ^= 1 << place % 8
        try:
            found = decode(bytes(data), bits, values.shape)
        except CodeError:
            continue
        assert np.isfinite(found).all()


@pytest.mark.parametrize(
    ("at", "value", "says"),
    [(slice(0, 4), b"\x00\x00\xc0\x7f", "no scale"), (slice(4, 5), b"\xc8", "no scale")],
)
def test_a_head_without_scale_or_table(at: slice, value: bytes, says: str) -> None:
    data = bytearray(encode(gradient((100,)), 4, np.random.default_rng(0))[0])
    data[at] = value
    with pytest.raises(CodeError, match=says):
        decode(bytes(data), 4, (100,))
