"""How alike two pictures are: PSNR, and SSIM after Wang, Bovik, Sheikh and Simoncelli (2004)."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

_PEAK = 255.0
_LUMA = np.array([0.299, 0.587, 0.114])  # ITU-R BT.601, as in JPEG
_SIGMA, _RADIUS = 1.5, 5  # the paper's 11 x 11 Gaussian window
_C1, _C2 = (0.01 * _PEAK) ** 2, (0.03 * _PEAK) ** 2

Floats = NDArray[np.float64]


def psnr(pictures: NDArray[Any], originals: NDArray[Any]) -> Floats:
    """Peak signal-to-noise ratio of each picture in dB, over its three colours.

    Args:
        pictures: [n, h, w, 3], values 0 to 255.
        originals: likewise; both broadcast against each other.

    Returns:
        float64 [n]; infinity where both are equal.
    """
    error = (np.asarray(pictures, np.float64) - np.asarray(originals, np.float64)) ** 2
    with np.errstate(divide="ignore"):
        ratio: Floats = 10 * np.log10(_PEAK**2 / error.mean((1, 2, 3)))
    return ratio


def ssim(pictures: NDArray[Any], originals: NDArray[Any]) -> Floats:
    """Structural similarity of each picture's luminance: the mean of eq. 13 over all whole windows.

    Args:
        pictures: [n, h, w, 3], values 0 to 255, at least 11 pixels a side.
        originals: likewise.

    Returns:
        float64 [n], 1 where both are equal.
    """
    x, y = np.asarray(pictures, np.float64) @ _LUMA, np.asarray(originals, np.float64) @ _LUMA
    mean_x, mean_y = _windowed(x), _windowed(y)
    var_x, var_y = _windowed(x * x) - mean_x**2, _windowed(y * y) - mean_y**2
    covariance = _windowed(x * y) - mean_x * mean_y
    similar = (2 * mean_x * mean_y + _C1) * (2 * covariance + _C2)
    similar /= (mean_x**2 + mean_y**2 + _C1) * (var_x + var_y + _C2)
    values: Floats = similar.mean((1, 2))
    return values


def _windowed(x: Floats) -> Floats:
    """Gaussian-weighted means of every whole window of [n, h, w]."""
    from scipy.ndimage import correlate1d

    offset = np.arange(-_RADIUS, _RADIUS + 1)
    window = np.exp(-(offset**2) / (2 * _SIGMA**2))
    window /= window.sum()
    blurred = correlate1d(correlate1d(x, window, axis=1), window, axis=2)
    whole: Floats = blurred[:, _RADIUS:-_RADIUS, _RADIUS:-_RADIUS]
    return whole
