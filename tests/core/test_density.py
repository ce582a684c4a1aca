"""Differential entropy from samples, beside the truth by quadrature."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from qtl_core.density import ENTROPY_ERROR, MIN_VALUES, estimate, split_atoms
from qtl_core.errors import InputError

Doubles = npt.NDArray[np.float64]


def normal(x: Doubles, mean: float = 0.0, sd: float = 1.0) -> Doubles:
    density: Doubles = np.exp(-(((x - mean) / sd) ** 2) / 2) / (sd * math.sqrt(2 * math.pi))
    return density


def laplace(x: Doubles) -> Doubles:
    density: Doubles = np.exp(-np.abs(x)) / 2
    return density


def mixture(x: Doubles) -> Doubles:
    return 0.3 * normal(x, 3.0, 0.4) + 0.7 * normal(x, -0.5, 1.2)


def student(x: Doubles) -> Doubles:
    """Three degrees of freedom: tails that fall with the fourth power."""
    density: Doubles = 2 / (math.pi * math.sqrt(3)) / (1 + x**2 / 3) ** 2
    return density


def sample_mixture(rng: np.random.Generator, n: int) -> Doubles:
    return np.where(rng.random(n) < 0.3, rng.normal(3.0, 0.4, n), rng.normal(-0.5, 1.2, n))


Case = tuple[Callable[[Doubles], Doubles], Callable[[np.random.Generator, int], Doubles]]
CASES: dict[str, Case] = {
    "normal": (normal, lambda rng, n: rng.normal(size=n)),
    "laplace": (laplace, lambda rng, n: rng.laplace(size=n)),
    "mixture": (mixture, sample_mixture),
    "student": (student, lambda rng, n: rng.standard_t(3, n)),
}


def by_quadrature(density: Callable[[Doubles], Doubles]) -> float:
    """Minus the integral of f log2 f by Simpson's rule, out to where nothing is left."""
    u = np.linspace(-12, 12, 200_001)
    x, slope = np.sinh(u), np.cosh(u)  # fine steps in the middle, wide ones in the tails
    f = density(x)
    information = -f * np.log2(np.maximum(f, 1e-300)) * slope
    weights = np.where(np.arange(len(u)) % 2, 4.0, 2.0)
    weights[[0, -1]] = 1
    return float((weights * information).sum() * (u[1] - u[0]) / 3)


def test_the_truth_is_the_textbook_one() -> None:
    assert by_quadrature(normal) == pytest.approx(0.5 * math.log2(2 * math.pi * math.e), abs=1e-9)
    assert by_quadrature(laplace) == pytest.approx(math.log2(2 * math.e), abs=1e-7)


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("seed", range(5))
def test_within_two_hundredths_of_a_bit(name: str, seed: int) -> None:
    # What `qtl-train levels` has in each of its 8 batches of the shipped model.
    density, sample = CASES[name]
    found = estimate(sample(np.random.default_rng(seed), 54_000)).entropy_bits
    assert found == pytest.approx(by_quadrature(density), abs=ENTROPY_ERROR)


@pytest.mark.parametrize("name", CASES)
def test_few_samples_err_by_chance_and_hardly_otherwise(name: str) -> None:
    """Beside the mean of -log2 f over the same samples, which is free of the estimator."""
    density, sample = CASES[name]
    beyond = []
    for seed in range(8):
        x = sample(np.random.default_rng(seed), 1000)
        beyond.append(estimate(x).entropy_bits + float(np.log2(density(x)).mean()))
    assert 0 <= np.mean(beyond) < 0.015


def test_bias_falls_with_the_number_of_samples() -> None:
    """Asymptotically unbiased: what the estimate has beyond the samples' own information goes to zero."""
    beyond = []
    for n in (1000, 10_000, 100_000):
        x = sample_mixture(np.random.default_rng(1), n)
        beyond.append(estimate(x).entropy_bits + float(np.log2(mixture(x)).mean()))
    assert beyond[0] > 4 * beyond[1] > 16 * beyond[2] > 0


def test_units_and_origin() -> None:
    x = np.random.default_rng(2).normal(size=20_000)
    at_one = estimate(x).entropy_bits
    assert estimate(1000 * x + 7).entropy_bits == pytest.approx(at_one + math.log2(1000), abs=1e-6)
    assert estimate(x / 64 - 3).entropy_bits == pytest.approx(at_one - 6, abs=1e-6)


def test_the_density_is_one() -> None:
    x = sample_mixture(np.random.default_rng(3), 50_000)
    found = estimate(x)
    steps = np.diff(found.at)
    assert (steps > 0).all()
    assert float((steps * (found.values[1:] + found.values[:-1]) / 2).sum()) == pytest.approx(1, abs=1e-3)
    assert np.abs(found.values - mixture(found.at)).max() < 0.02


def test_tails_without_a_variance() -> None:
    x = np.random.default_rng(4).standard_cauchy(50_000)
    assert estimate(x).entropy_bits == pytest.approx(math.log2(4 * math.pi), abs=0.04)


@pytest.mark.parametrize("dtype", [np.float32, np.float16])
def test_rounding_changes_nothing(dtype: type) -> None:
    x = np.random.default_rng(5).normal(size=50_000)
    rounded: npt.NDArray[Any] = x.astype(dtype)
    assert split_atoms(rounded).share < 1e-3
    assert estimate(rounded).entropy_bits == pytest.approx(estimate(x).entropy_bits, abs=1e-3)
    tenths = np.round(20 * x) / 20
    assert split_atoms(tenths).share == 0
    assert estimate(tenths).entropy_bits == pytest.approx(estimate(x).entropy_bits, abs=5e-3)


def test_copies_change_little() -> None:
    """The same picture several times: leave-one-out alone would see spikes, and no bandwidth too small."""
    x = np.random.default_rng(6).normal(size=20_000)
    assert estimate(np.tile(x, 4)).entropy_bits == pytest.approx(estimate(x).entropy_bits, abs=0.03)


def test_atoms_are_found() -> None:
    rng = np.random.default_rng(7)
    x = rng.normal(size=(100, 200)).astype(np.float32)
    padded = x.copy()
    padded[:20] = 0.25
    padded[20:30, :50] = -1.5
    padded[50, :7] = 9.0  # too few to tell from chance
    split = split_atoms(padded)
    assert split.atoms.tolist() == [-1.5, 0.25]
    assert split.shares.tolist() == [500 / 20_000, 4000 / 20_000]
    assert split.share == pytest.approx(0.225)
    assert split.continuous.shape == padded.shape
    assert (split.continuous == ((padded != 0.25) & (padded != -1.5))).all()
    assert split_atoms(x).share == 0


def test_atoms_among_rounded_samples() -> None:
    x = np.random.default_rng(8).normal(size=60_000).astype(np.float16)
    x[:3000] = 1.5
    split = split_atoms(x)
    assert 1.5 in split.atoms
    assert split.share == pytest.approx(0.05, abs=2e-3)


@pytest.mark.parametrize("values", [[0.0], [0.0, 1.0], np.linspace(-1, 1, 63)])
def test_few_values_are_atoms(values: list[float]) -> None:
    split = split_atoms(np.repeat(values, 20))
    assert split.share == pytest.approx(1)
    assert not split.continuous.any()


def test_nothing_has_no_atoms() -> None:
    assert split_atoms(np.zeros((0, 3))).share == 0


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_not_finite(bad: float) -> None:
    x = np.ones(1000)
    x[[3, 77]] = bad
    for refuse in (estimate, split_atoms):
        with pytest.raises(InputError, match="2 of 1,000 features are NaN or infinite"):
            refuse(x)


def test_too_few() -> None:
    x = np.random.default_rng(9).normal(size=MIN_VALUES)
    assert math.isfinite(estimate(x).entropy_bits)
    with pytest.raises(InputError, match=f"{MIN_VALUES} values or more, and these are {MIN_VALUES - 1}"):
        estimate(x[1:])


def test_nothing_but_one_value() -> None:
    with pytest.raises(InputError, match="all values are the same"):
        estimate(np.full(1000, 2.5))


def test_no_numbers() -> None:
    with pytest.raises(InputError, match="must be numbers"):
        estimate(np.array(["a"] * 1000))


@pytest.mark.parametrize("scale", [1e-30, 1e30])
def test_any_size_of_number(scale: float) -> None:
    x = np.random.default_rng(10).normal(size=5000)
    expected = estimate(x).entropy_bits + math.log2(scale)
    assert estimate(scale * x).entropy_bits == pytest.approx(expected, abs=1e-4)
