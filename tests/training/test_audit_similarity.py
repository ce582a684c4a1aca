"""PSNR and SSIM against values worked out by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest

from qtl_training.audit.similarity import psnr, ssim

C1, C2 = (0.01 * 255) ** 2, (0.03 * 255) ** 2


def test_psnr_of_a_constant_difference() -> None:
    picture = np.full((2, 12, 12, 3), 100, np.uint8)
    other = picture + np.array([16, 1], np.uint8)[:, None, None, None]
    found = psnr(other, picture)
    assert found == pytest.approx([20 * math.log10(255 / 16), 20 * math.log10(255)])
    assert psnr(picture, picture).tolist() == [math.inf, math.inf]


def test_ssim_of_flat_pictures_is_the_luminance_term() -> None:
    dark, light = np.full((1, 16, 16, 3), 100.0), np.full((1, 16, 16, 3), 140.0)
    expected = (2 * 100 * 140 + C1) / (100**2 + 140**2 + C1)
    assert ssim(light, dark) == pytest.approx([expected], abs=1e-9)


def test_ssim_of_one_window_is_the_formula() -> None:
    rng = np.random.default_rng(3)
    x, y = rng.uniform(0, 255, (2, 11, 11))
    square = np.arange(-5, 6)[:, None] ** 2 + np.arange(-5, 6)[None] ** 2
    w = np.exp(-square / (2 * 1.5**2))
    w /= w.sum()
    mx, my = (w * x).sum(), (w * y).sum()
    vx, vy = (w * (x - mx) ** 2).sum(), (w * (y - my) ** 2).sum()
    cxy = (w * (x - mx) * (y - my)).sum()
    expected = (2 * mx * my + C1) * (2 * cxy + C2) / ((mx**2 + my**2 + C1) * (vx + vy + C2))
    grey = [np.repeat(part[None, :, :, None], 3, axis=3) for part in (x, y)]
    assert ssim(*grey) == pytest.approx([expected], abs=1e-9)
    assert 0.1 < expected < 0.9


def test_ssim_is_one_only_for_equals_and_turns_negative_for_the_inverse() -> None:
    rng = np.random.default_rng(4)
    picture = rng.integers(0, 256, (1, 24, 24, 3)).astype(np.uint8)
    assert ssim(picture, picture) == pytest.approx([1.0])
    assert ssim(255 - picture, picture)[0] < 0
