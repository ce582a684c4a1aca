"""The numpy reference against the authors' own values, and against its own laws."""

from __future__ import annotations

import dataclasses
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from qtl_core import quantizer
from qtl_core.errors import CodeError
from qtl_core.quantizer import Params


def _params(levels: int = 4, width: int = 6, code_dim: int = 3, seed: int = 0, **settings: Any) -> Params:
    rng = np.random.default_rng(seed)
    merged = width * settings.get("merge", 1) ** 2
    shapes = ((code_dim, merged), (code_dim,), (merged, code_dim), (merged,))
    w_in, b_in, w_out, b_out = (rng.normal(size=shape).astype(np.float32) for shape in shapes)
    return Params(w_in, b_in, w_out, b_out, levels, **settings)


def _authors_params(levels: int, vectors: dict[str, Any]) -> Params:
    names = ("in_proj_weight", "in_proj_bias", "out_proj_weight", "out_proj_bias")
    return Params(**{name: vectors[name] for name in names}, levels=levels)


def _one_picture(array: Any) -> Any:
    """The authors scale both samples together: their [2, 9, 24] is one picture of 18 tokens."""
    return array.reshape(-1, array.shape[-1])


class TestAuthors:
    """Every step from the authors' own input to that step, and the whole way from ``x``."""

    def test_projected(self, authors: tuple[int, Any]) -> None:
        levels, vectors = authors
        z = quantizer.project(vectors["x"], _authors_params(levels, vectors))
        np.testing.assert_allclose(z, vectors["projected"], atol=2e-6, rtol=0)

    def test_scaled(self, authors: tuple[int, Any]) -> None:
        levels, vectors = authors
        s = quantizer.scale(_one_picture(vectors["projected"]), _authors_params(levels, vectors))
        assert s.dtype == np.float32
        # Bit for bit here; sums over a picture may round differently in another numpy.
        np.testing.assert_allclose(s, _one_picture(vectors["scaled"]), atol=3e-7, rtol=0)

    def test_codes_from_scaled_are_identical(self, authors: tuple[int, Any]) -> None:
        levels, vectors = authors
        np.testing.assert_array_equal(quantizer.levels_of(vectors["scaled"], levels), vectors["codes"])

    def test_values_are_identical(self, authors: tuple[int, Any]) -> None:
        levels, vectors = authors
        np.testing.assert_array_equal(quantizer.values_of(vectors["codes"], levels), vectors["dequantized"])

    def test_codes_from_features(self, authors: tuple[int, Any]) -> None:
        levels, vectors = authors
        found = quantizer.encode(_one_picture(vectors["x"]), _authors_params(levels, vectors))
        np.testing.assert_array_equal(found, _one_picture(vectors["codes"]))

    def test_restored_features(self, authors: tuple[int, Any]) -> None:
        levels, vectors = authors
        features = quantizer.decode(vectors["codes"], _authors_params(levels, vectors))
        assert features.dtype == np.float32
        np.testing.assert_allclose(features, vectors["features"], atol=1e-6, rtol=0)

    def test_distortion_loss(self, authors: tuple[int, Any]) -> None:
        _, vectors = authors
        loss = quantizer.distortion(vectors["scaled"], vectors["dequantized"])
        np.testing.assert_allclose(loss, vectors["distortion_loss"], atol=3e-7, rtol=0)


@pytest.mark.parametrize("levels", range(2, 257))
def test_every_code_survives_its_value(levels: int) -> None:
    """q -> v -> q is the identity for every L: also where (L-1)/2 is no power of two."""
    every = np.arange(levels, dtype=np.uint8)
    v = quantizer.values_of(every, levels)
    assert v[0] == -1
    assert v[-1] == 1
    assert bool((np.diff(v) > 0).all())
    np.testing.assert_array_equal(quantizer.levels_of(v, levels), every)


@given(st.integers(2, 256), hnp.arrays(np.float32, 50, elements=st.floats(-1, 1, width=32)))
def test_the_code_is_the_nearest_level(levels: int, s: Any) -> None:
    q = quantizer.levels_of(s, levels)
    half = Fraction(levels - 1, 2)
    for value, code in zip(s.tolist(), q.tolist(), strict=True):
        # In exact arithmetic; float32 rounding of s*half may move a value at a boundary.
        assert abs(Fraction(value) * half - (code - half)) <= Fraction(1, 2) + Fraction(1, 10**5)


@pytest.mark.parametrize("levels", range(2, 257))
def test_ends_of_the_scale(levels: int) -> None:
    assert quantizer.levels_of(np.array([-1.0, 1.0]), levels).tolist() == [0, levels - 1]


def test_halves_round_to_even() -> None:
    # L = 3: half = 1, so s = +-0.5 lies between two levels, and the even one of -1, 0, 1 is 0.
    assert quantizer.levels_of(np.array([-0.5, 0.5]), 3).tolist() == [1, 1]
    # L = 4: half = 1.5, o = 0.5; s = 0 gives round(-0.5) = 0 -> code 2.
    assert quantizer.levels_of(np.array([0.0]), 4).tolist() == [2]


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf, 1.5, -1.0001])
def test_scaled_values_that_cannot_be(bad: float) -> None:
    with pytest.raises(ValueError, match="finite"):
        quantizer.levels_of(np.array([0.0, bad]), 4)


@pytest.mark.parametrize("scaling", ["image", "frozen"])
@pytest.mark.parametrize("merge", [1, 2, 3])
def test_a_batch_is_its_items(scaling: Any, merge: int) -> None:
    params = _params(5, merge=merge, scaling=scaling, mean=np.full(3, 0.25), std=np.full(3, 2.0))
    x = np.random.default_rng(1).normal(size=(4, 36, 6)).astype(np.float32)
    batch = quantizer.encode(x, params)
    assert batch.shape == (4, 36 // merge**2, 3)
    assert quantizer.decode(batch, params).shape == x.shape
    for item, found in zip(x, batch, strict=True):
        np.testing.assert_array_equal(quantizer.encode(item, params), found)


def test_frozen_scaling() -> None:
    params = _params(scaling="frozen", mean=[0, 1, 2], std=[1, 2, 0], k=2.0)
    s = quantizer.scale(np.array([[1.0, 3.0, 2.001], [-9.0, 9.0, 2.0]]), params)
    expected = np.array([[0.5, 0.5, 0.5], [-1, 1, 0]])  # a sigma of 0 stands on its floor
    np.testing.assert_allclose(s, expected, atol=1e-4)


def test_k_per_channel_and_as_one_number() -> None:
    x = np.random.default_rng(2).normal(size=(9, 6))
    one, same = _params(k=2.0), _params(k=np.full(3, 2.0))
    boxed = _params(k=np.array([2.0]))
    np.testing.assert_array_equal(quantizer.encode(x, one), quantizer.encode(x, same))
    np.testing.assert_array_equal(quantizer.encode(x, one), quantizer.encode(x, boxed))
    assert not np.array_equal(quantizer.encode(x, one), quantizer.encode(x, _params(k=[0.5, 1, 2])))


@pytest.mark.parametrize("scaling", ["image", "frozen"])
def test_features_without_contrast_stay_finite(scaling: Any) -> None:
    params = _params(16, scaling=scaling, mean=np.zeros(3), std=np.zeros(3))
    for x in (np.zeros((4, 6)), np.full((4, 6), 1e-20), np.full((4, 6), 1e6)):
        assert quantizer.encode(x, params).max() <= 15


def test_merge_order_is_rows_then_columns_of_a_block() -> None:
    tokens = np.arange(16, dtype=np.float32).reshape(16, 1)
    merged = quantizer.merge_tokens(tokens, 2)
    assert merged.tolist() == [[0, 1, 4, 5], [2, 3, 6, 7], [8, 9, 12, 13], [10, 11, 14, 15]]


@given(st.integers(1, 4), st.integers(1, 4), st.integers(1, 3), st.booleans())
def test_merge_and_split_undo_each_other(merge: int, blocks: int, width: int, batched: bool) -> None:
    shape = ((2,) if batched else ()) + ((merge * blocks) ** 2, width)
    x = np.arange(np.prod(shape), dtype=np.float32).reshape(shape)
    np.testing.assert_array_equal(quantizer.split_tokens(quantizer.merge_tokens(x, merge), merge), x)


@pytest.mark.parametrize("tokens", [8, 9, 15])
def test_tokens_that_cannot_be_merged(tokens: int) -> None:
    with pytest.raises(ValueError, match="square grid"):
        quantizer.encode(np.zeros((tokens, 6)), _params(merge=2))


@pytest.mark.parametrize("shape", [(6,), (4, 5), (2, 2, 4, 6)])
def test_features_of_the_wrong_shape(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="shape"):
        quantizer.encode(np.zeros(shape), _params())


def test_features_that_are_not_finite() -> None:
    x = np.zeros((4, 6))
    x[2, 3] = np.nan
    with pytest.raises(ValueError, match="finite"):
        quantizer.encode(x, _params())


@pytest.mark.parametrize(
    "codes",
    [np.full((4, 3), 4), np.full((4, 3), -1), np.zeros((4, 2), int), np.zeros(3, int), np.zeros((4, 3))],
    ids=["high", "negative", "code_dim", "dimensions", "floats"],
)
def test_codes_that_cannot_be_decoded(codes: Any) -> None:
    with pytest.raises(CodeError, match="codes must"):
        quantizer.decode(codes, _params())


@pytest.mark.parametrize(
    ("change", "error"),
    [
        ({"levels": 1}, CodeError),
        ({"levels": 257}, CodeError),
        ({"scaling": "other"}, ValueError),
        ({"merge": 0}, ValueError),
        ({"merge": 2}, ValueError),
        ({"k": 0.0}, ValueError),
        ({"k": np.ones(2)}, ValueError),
        ({"k": np.nan}, ValueError),
        ({"scaling": "frozen"}, ValueError),
        ({"scaling": "frozen", "mean": np.zeros(3), "std": np.ones(2)}, ValueError),
        ({"in_proj_weight": np.zeros(3)}, ValueError),
        ({"in_proj_bias": np.zeros(2)}, ValueError),
        ({"out_proj_weight": np.zeros((3, 6))}, ValueError),
        ({"out_proj_bias": np.zeros(5)}, ValueError),
    ],
)
def test_params_that_do_not_fit(change: dict[str, Any], error: type[Exception]) -> None:
    with pytest.raises(error):
        dataclasses.replace(_params(), **change)
