"""From entropy to a number of levels, and the entropy of codes."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from qtl_core import quantizer
from qtl_core.errors import CodeError, InputError
from qtl_core.level_selection import (
    cell_width,
    channel_entropy,
    code_entropy,
    feature_entropy,
    recommend,
    standardise,
)

NORMAL_BITS = 0.5 * math.log2(2 * math.pi * math.e)


def features(seed: int, *shape: int) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


@given(st.floats(allow_nan=False))
def test_the_rule_is_the_smallest_that_holds_the_entropy(bits: float) -> None:
    levels = recommend(bits)
    assert 2 <= levels <= 256
    assert levels == 256 or math.log2(levels) >= bits - 0.0201
    assert levels == 2 or math.log2(levels - 1) < bits - 0.0199


@given(st.floats(-5, 9), st.floats(0, 3))
def test_more_entropy_never_takes_fewer_levels(bits: float, more: float) -> None:
    assert recommend(bits) <= recommend(bits + more)


def test_no_rule_for_no_number() -> None:
    with pytest.raises(InputError, match="not a number"):
        recommend(math.nan)


def test_an_error_of_the_estimate_buys_no_level() -> None:
    assert recommend(2.0) == recommend(2.015) == 4
    assert recommend(2.03) == 5


def distributions() -> dict[str, tuple[np.ndarray, int]]:
    rng = np.random.default_rng(0)
    n = 40_000
    two = np.where(rng.random(n) < 0.5, -1, 1)
    four = rng.integers(0, 4, n)
    return {
        "normal": (rng.normal(size=n), 5),
        "uniform": (rng.random(n), 4),
        "laplace": (rng.laplace(size=n), 4),
        "two clusters": (two + rng.normal(0, 0.1, n), 2),
        "two broad clusters": (two + rng.normal(0, 0.5, n), 4),
        "four clusters": (four + rng.normal(0, 0.05, n), 2),
        "student, 3": (rng.standard_t(3, n), 4),
        "cauchy": (rng.standard_cauchy(n), 2),
    }


@pytest.mark.parametrize("name", distributions())
def test_what_the_rule_makes_of_a_distribution(name: str) -> None:
    values, levels = distributions()[name]
    assert feature_entropy(values.reshape(400, 10, 10)).levels == levels


def test_batches() -> None:
    found = feature_entropy(features(1, 100, 12, 40), 8)
    assert len(found.batches) == 8 and found.values == 48_000
    assert found.mean == pytest.approx(NORMAL_BITS, abs=0.02)
    # One normal value's information has a deviation of 1.02 bits; a batch is the mean of 6,000.
    assert 0.002 < found.sd < 0.03
    assert found.deviation == pytest.approx(1, abs=0.02)
    assert f"{found.mean:.3f} bits" in found.because() and "5 levels" in found.because()
    assert feature_entropy(features(1, 100, 12, 40), 1).sd == 0


def test_units_do_not_matter() -> None:
    """A quantizer whose running sigma lags behind its features gets no other number of levels."""
    z = features(12, 50, 10, 20)
    one, three = feature_entropy(z), feature_entropy(3 * z + 1)
    assert three.mean == pytest.approx(one.mean, abs=1e-5)
    assert three.deviation == pytest.approx(3 * one.deviation, rel=1e-5)


def test_pictures_that_differ_show_in_the_deviation_of_batches() -> None:
    z = features(2, 80, 10, 20)
    z[:40] *= 2
    found = feature_entropy(z, 2)
    assert found.batches[0] - found.batches[1] == pytest.approx(1, abs=0.05)
    assert found.sd == pytest.approx((found.batches[0] - found.batches[1]) / math.sqrt(2))


def test_atoms_are_reported_apart() -> None:
    z = features(3, 100, 10, 20)
    padded = z.copy()
    padded[:, 7:] = -0.5
    found = feature_entropy(padded)
    assert found.split.atoms.tolist() == [-0.5]
    assert found.split.share == pytest.approx(0.3)
    assert found.values == 14_000
    assert found.mean == pytest.approx(feature_entropy(z[:, :7]).mean, abs=1e-9)


def test_too_few_says_how_many() -> None:
    z = features(4, 20, 9, 4)  # 36 features a picture: 14 pictures hold 500
    with pytest.raises(InputError, match=r"20 pictures of 36 features; give 112 pictures or more"):
        feature_entropy(z, 8)
    assert len(feature_entropy(features(4, 112, 9, 4), 8).batches) == 8
    with pytest.raises(InputError, match="3 pictures cannot be split into 8 batches"):
        feature_entropy(features(4, 3, 100, 100), 8)
    with pytest.raises(InputError, match="into 0 batches"):
        feature_entropy(z, 0)


def test_too_few_beside_atoms() -> None:
    z = features(5, 28, 9, 4)
    z[:, 3:] = 0
    with pytest.raises(InputError, match=r"66\.7% of them exact repeats that do not count; give 84 pictures"):
        feature_entropy(z, 2)


def test_constant_features() -> None:
    with pytest.raises(InputError, match=r"100\.00% of the features are exact repeats of 1 values"):
        feature_entropy(np.zeros((10, 10, 10)))


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_damaged_features(bad: float) -> None:
    z = features(6, 10, 10, 100)
    z[3, 4, 5] = bad
    with pytest.raises(InputError, match="1 of 10,000 features are NaN or infinite"):
        feature_entropy(z, 2)


@pytest.mark.parametrize("shape", [(0, 4, 4), (40, 40), (4, 0, 4)])
def test_no_features(shape: tuple[int, ...]) -> None:
    with pytest.raises(InputError, match=r"must be \[pictures, tokens, channels\]"):
        feature_entropy(np.zeros(shape))


def test_channels_for_themselves() -> None:
    """Channels that lie apart: together they look broad, each is narrow."""
    z = features(7, 200, 10, 4) / 8 + np.array([-3, -1, 1, 3], dtype=np.float32)
    found = feature_entropy(z)
    assert channel_entropy(z, found.split) == pytest.approx(NORMAL_BITS - 3, abs=0.03)
    # Knowing which of four clusters a feature is in is worth two bits.
    assert found.mean + math.log2(found.deviation) == pytest.approx(NORMAL_BITS - 3 + 2, abs=0.03)
    assert found.deviation == pytest.approx(math.sqrt(5 + 1 / 64), rel=0.01)
    few = features(7, 10, 10, 20)
    # No channel of theirs has enough.
    assert channel_entropy(few, feature_entropy(few, 2).split) is None


def params(scaling: str, **more: object) -> quantizer.Params:
    rng = np.random.default_rng(8)
    weights = {
        "in_proj_weight": rng.normal(size=(3, 8)),
        "in_proj_bias": rng.normal(size=3),
        "out_proj_weight": rng.normal(size=(8, 3)),
        "out_proj_bias": rng.normal(size=8),
    }
    return quantizer.Params(**weights, levels=7, scaling=scaling, merge=2, **more)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "given_params",
    [params("image", k=2.0), params("frozen", k=[1.0, 2.0, 1.5], mean=[0.5, -1, 0], std=[2, 1, 3])],
)
def test_standardised_features_are_the_scaled_ones_before_k_and_clip(given_params: quantizer.Params) -> None:
    x = 3 * features(9, 5, 16, 2)
    z = standardise(x, given_params)
    assert z.shape == (5, 4, 3) and z.dtype == np.float32
    assert np.abs(z / given_params.k).max() > 1  # something is clipped, and not here
    scaled = quantizer.scale(quantizer.project(x, given_params), given_params)
    np.testing.assert_allclose(np.clip(z / given_params.k, -1, 1), scaled, atol=1e-4)


def test_a_channel_that_never_moves_is_no_division_by_zero() -> None:
    still = params("frozen", mean=[0, 0, 0], std=[0, 0, 0])
    assert np.isfinite(standardise(features(10, 2, 16, 2), still)).all()
    assert np.isfinite(standardise(np.zeros((2, 16, 2)), params("image"))).all()


def test_code_entropy() -> None:
    codes = np.array([[0, 0, 3], [1, 0, 2], [0, 0, 1], [1, 0, 0]])
    # One bit, nothing, two bits.
    assert code_entropy(codes, 4) == pytest.approx(1.0)
    assert code_entropy(codes.reshape(2, 2, 3), 256) == pytest.approx(1.0)
    assert code_entropy(np.zeros((5, 3), dtype=np.uint8), 2) == 0


@given(st.integers(2, 256))
def test_no_code_holds_more_than_log2_of_its_levels(levels: int) -> None:
    codes = np.random.default_rng(levels).integers(0, levels, (600, 3))
    assert 0 < code_entropy(codes, levels) <= math.log2(levels)
    every = np.tile(np.arange(levels)[:, None], (1, 2))
    assert code_entropy(every, levels) == pytest.approx(math.log2(levels))


@pytest.mark.parametrize("levels", [-1, 0, 1, 257, True, 2.0])
def test_levels_out_of_range(levels: int) -> None:
    with pytest.raises(CodeError, match="levels must be"):
        code_entropy(np.zeros((3, 2), dtype=np.uint8), levels)
    with pytest.raises(CodeError, match="levels must be"):
        cell_width(levels, 3.0)


def test_codes_that_are_none() -> None:
    with pytest.raises(CodeError, match=r"0\.\.3"):
        code_entropy(np.array([[0, 4]]), 4)
    with pytest.raises(CodeError, match=r"0\.\.3"):
        code_entropy(np.array([[-1, 0]]), 4)
    with pytest.raises(CodeError, match="integers"):
        code_entropy(np.array([[0.5]]), 4)
    with pytest.raises(InputError, match="no codes"):
        code_entropy(np.zeros((0, 3), dtype=np.uint8), 4)


def test_fine_cells_hold_the_entropy_less_log2_of_their_width() -> None:
    """Where rule and codes meet: H = h - log2 D."""
    z = features(11, 2000, 9, 8)
    for levels, bound in ((16, 0.02), (64, 0.03)):
        s = np.clip(z / 4, -1, 1)
        entropy = code_entropy(quantizer.levels_of(s, levels), levels)
        assert entropy == pytest.approx(NORMAL_BITS - math.log2(cell_width(levels, 4.0)), abs=bound)
    assert cell_width(7, 3.0) == pytest.approx(1)
    assert cell_width(3, [1.0, 4.0]) == pytest.approx(2)
