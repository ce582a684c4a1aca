"""Handwritten digits: scikit-learn's 1,797 real 8x8 scans, split by scan, and their distortions.

The scans carry no writer ids, so the split is by scan: no scan of the test split is ever
drawn, however distorted, in a training or validation scene.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

import numpy as np
from numpy.typing import NDArray

from qtl_core.errors import MissingExtra

SPLITS = ("train", "validation", "test")
CELL = 32  # pixels along the side of one cell of the grid

_UPSAMPLED = 24
_ELASTIC_KNOTS = 4


@dataclass(frozen=True)
class Distortion:
    """How far a scan may be distorted before it is drawn; every range is uniform and symmetric.

    Attributes:
        rotation: Largest rotation in radians.
        shear: Largest horizontal shear.
        aspect: Largest relative change of width against height.
        size: Smallest and largest height of the digit in pixels.
        elastic: Standard deviation of the elastic displacement in pixels.
        gain: Largest relative change of the stroke's gain.
        noise: Standard deviation of the noise added to the scan itself (its values are 0..1).
        jitter: Largest displacement from the middle of the cell in pixels.
    """

    rotation: float
    shear: float
    aspect: float
    size: tuple[float, float]
    elastic: float
    gain: float
    noise: float
    jitter: float


STRONG = Distortion(
    rotation=0.35, shear=0.25, aspect=0.2, size=(16, 25), elastic=0.9, gain=0.4, noise=0.06, jitter=2.5
)
MILD = Distortion(
    rotation=0.17, shear=0.12, aspect=0.1, size=(18, 25), elastic=0.45, gain=0.2, noise=0.03, jitter=2.5
)


@dataclass(frozen=True)
class Scans:
    """The scans of one split.

    Attributes:
        pictures: float32 [n, 8, 8], ink from 0 to 1.
        digits: int64 [n], the digit each scan shows.
        of_digit: for each digit, the indices of its scans.
    """

    pictures: NDArray[np.float32]
    digits: NDArray[np.int64]
    of_digit: tuple[NDArray[np.int64], ...]


@cache
def load(split: str) -> Scans:
    """Returns the scans of ``split``: 70 % train, 15 % validation, 15 % test of every digit.

    Raises:
        ValueError: if ``split`` is not one of ``SPLITS``.
        MissingExtra: if scikit-learn is not installed.
    """
    if split not in SPLITS:
        raise ValueError(f"unknown split {split!r}; there are {', '.join(SPLITS)}")
    try:
        from sklearn.datasets import load_digits
    except ImportError as error:
        raise MissingExtra.of("train", "scikit-learn") from error
    data = load_digits()
    images = (np.asarray(data.images) / 16.0).astype(np.float32)
    targets = np.asarray(data.target).astype(np.int64)
    chosen = []
    for digit in range(10):
        order = np.random.default_rng(1000 + digit).permutation(np.flatnonzero(targets == digit))
        first, second = round(0.70 * len(order)), round(0.85 * len(order))
        chosen.append(
            {"train": order[:first], "validation": order[first:second], "test": order[second:]}[split]
        )
    index = np.sort(np.concatenate(chosen))
    digits = targets[index]
    return Scans(images[index], digits, tuple(np.flatnonzero(digits == digit) for digit in range(10)))


def draw(
    pictures: NDArray[np.float32], distortion: Distortion, rng: np.random.Generator
) -> NDArray[np.float32]:
    """Draws each scan, distorted, into a cell of its own.

    Args:
        pictures: float32 [n, 8, 8].
        distortion: the ranges to sample from.
        rng: source of every random number.

    Returns:
        Ink in each pixel, float32 [n, CELL, CELL], from 0 to 1.
    """
    n = len(pictures)
    noisy = pictures + rng.normal(0, distortion.noise, pictures.shape).astype(np.float32)
    up = _cubic(8, _UPSAMPLED)
    source = np.clip(up @ noisy @ up.T, 0, 1).astype(np.float32)
    source = np.pad(source, ((0, 0), (1, 1), (1, 1)))

    def uniform(limit: float) -> NDArray[np.float32]:
        return rng.uniform(-limit, limit, n).astype(np.float32)

    angle, shear, aspect = uniform(distortion.rotation), uniform(distortion.shear), uniform(distortion.aspect)
    height = rng.uniform(*distortion.size, n).astype(np.float32)
    scale_y, scale_x = _UPSAMPLED / height, _UPSAMPLED / (height * (1 + aspect))
    shift_y, shift_x = uniform(distortion.jitter), uniform(distortion.jitter)
    knots = rng.normal(0, distortion.elastic, (2, n, _ELASTIC_KNOTS, _ELASTIC_KNOTS)).astype(np.float32)
    bend = _cubic(_ELASTIC_KNOTS, CELL)
    bent = bend @ knots @ bend.T

    axis = np.arange(CELL, dtype=np.float32) - (CELL - 1) / 2
    y = axis[None, :, None] - shift_y[:, None, None] + bent[0]
    x = axis[None, None, :] - shift_x[:, None, None] + bent[1]
    cos, sin = np.cos(angle)[:, None, None], np.sin(angle)[:, None, None]
    turned_y = cos * y - sin * x
    turned_x = sin * y + cos * x + shear[:, None, None] * turned_y
    middle = (source.shape[1] - 1) / 2
    ink = _bilinear(
        source,
        (turned_y * scale_y[:, None, None] + middle).astype(np.float32),
        (turned_x * scale_x[:, None, None] + middle).astype(np.float32),
    )
    gain = 1.25 * (1 + uniform(distortion.gain))
    return np.clip(ink * gain[:, None, None], 0, 1)


@cache
def _cubic(n_in: int, n_out: int) -> NDArray[np.float32]:
    """The [n_out, n_in] matrix of Catmull-Rom interpolation from n_in to n_out samples."""
    position = (np.arange(n_out) + 0.5) * n_in / n_out - 0.5
    base = np.floor(position).astype(int)
    matrix = np.zeros((n_out, n_in), np.float64)
    for tap in range(-1, 3):
        t = np.abs(position - (base + tap))
        weight = np.where(t <= 1, 1.5 * t**3 - 2.5 * t**2 + 1, -0.5 * t**3 + 2.5 * t**2 - 4 * t + 2)
        np.add.at(matrix, (np.arange(n_out), np.clip(base + tap, 0, n_in - 1)), np.where(t < 2, weight, 0))
    return matrix.astype(np.float32)


def _bilinear(
    source: NDArray[np.float32], y: NDArray[np.float32], x: NDArray[np.float32]
) -> NDArray[np.float32]:
    """Samples source [n, h, h] at y, x [n, a, b]; what lies outside is the (empty) border."""
    n, size = source.shape[0], source.shape[1]
    y, x = np.clip(y, 0, size - 1.001), np.clip(x, 0, size - 1.001)
    y0, x0 = y.astype(np.int32), x.astype(np.int32)
    fy, fx = y - y0, x - x0
    flat = source.reshape(-1)
    index = (np.arange(n, dtype=np.int32) * (size * size))[:, None, None] + y0 * size + x0
    top = flat[index] * (1 - fx) + flat[index + 1] * fx
    bottom = flat[index + size] * (1 - fx) + flat[index + size + 1] * fx
    return (top * (1 - fy) + bottom * fy).astype(np.float32)
