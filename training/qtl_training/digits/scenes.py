"""Digit scenes: coloured handwritten digits in a 3x3 grid on a textured background, 96 x 96 pixels."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from qtl_training.digits import scans

GRID = 3
CELLS = GRID * GRID
SIDE = GRID * scans.CELL

COLOURS = ("red", "green", "blue", "yellow", "purple", "white")
CELL_NAMES = (
    "top left", "top centre", "top right",
    "middle left", "centre", "middle right",
    "bottom left", "bottom centre", "bottom right",
)  # fmt: skip

_RGB = np.array(
    [[225, 45, 45], [50, 195, 70], [60, 100, 245], [235, 215, 50], [185, 70, 215], [240, 240, 240]],
    np.float32,
)
_SCENES_AT_ONCE = 64


@dataclass(frozen=True)
class Scenes:
    """What is in each of n scenes; the pictures are drawn from it on demand.

    Attributes:
        digits: int8 [n, 9], the digit in each cell, row by row; -1 where the cell is empty.
        colours: int8 [n, 9], an index into ``COLOURS``; -1 where the cell is empty.
        scans: int16 [n, 9], which scan of the split is drawn; -1 where the cell is empty.
        split: the split whose scans are drawn.
        seed: seed of the drawing: distortion, texture and noise.
    """

    digits: NDArray[np.int8]
    colours: NDArray[np.int8]
    scans: NDArray[np.int16]
    split: str
    seed: int

    def __len__(self) -> int:
        return len(self.digits)


def sample(split: str, n: int, seed: int, *, full: float = 0.25) -> Scenes:
    """Samples the contents of ``n`` scenes.

    Most scenes draw their digits from a few values and their colours from two or three, so that
    counts are spread out and no answer dominates.

    Args:
        split: "train", "validation" or "test".
        n: how many scenes.
        seed: the same split, n and seed give the same scenes and pictures.
        full: share of scenes with nine digits, beyond the ninth that has them anyway.
    """
    rng = np.random.default_rng([seed, scans.SPLITS.index(split), n])
    source = scans.load(split)
    count = np.where(rng.random(n) < full, CELLS, rng.integers(1, CELLS + 1, n))
    occupied = rng.random((n, CELLS)).argsort(axis=1) < count[:, None]
    palette_size = rng.choice([1, 2, 3, len(COLOURS)], n, p=[0.05, 0.4, 0.3, 0.25])
    palette = rng.random((n, len(COLOURS))).argsort(axis=1)
    colours = np.take_along_axis(palette, rng.integers(0, palette_size[:, None], (n, CELLS)), axis=1)
    values_size = rng.choice([2, 4, 10], n, p=[0.2, 0.2, 0.6])
    values = rng.random((n, 10)).argsort(axis=1)
    digits = np.take_along_axis(values, rng.integers(0, values_size[:, None], (n, CELLS)), axis=1)
    # A permutation in half of the wide scenes: relations need digits that occur once.
    distinct = (values_size == 10) & (rng.random(n) < 0.6)
    digits = np.where(distinct[:, None], values[:, :CELLS], digits)
    chosen = np.empty((n, CELLS), np.int64)
    for digit, index in enumerate(source.of_digit):
        here = digits == digit
        chosen[here] = rng.choice(index, int(here.sum()))
    return Scenes(
        np.where(occupied, digits, -1).astype(np.int8),
        np.where(occupied, colours, -1).astype(np.int8),
        np.where(occupied, chosen, -1).astype(np.int16),
        split,
        seed,
    )


def render(
    scenes: Scenes, index: NDArray[np.int64] | slice, *, distortion: scans.Distortion | None = None
) -> NDArray[np.uint8]:
    """Draws the pictures of some scenes.

    Each scene is drawn from a generator of its own, so a picture does not depend on which others
    are drawn with it.

    Args:
        scenes: the scenes.
        index: which of them.
        distortion: how scans are distorted; strongly in training and mildly otherwise by default.

    Returns:
        uint8 [len(index), 96, 96, 3], RGB.
    """
    chosen = np.arange(len(scenes))[index]
    if distortion is None:
        distortion = scans.STRONG if scenes.split == "train" else scans.MILD
    out = np.empty((len(chosen), SIDE, SIDE, 3), np.uint8)
    for place, scene in enumerate(chosen):
        rng = np.random.default_rng([scenes.seed, scans.SPLITS.index(scenes.split), int(scene), 7])
        out[place] = _render_one(scenes, int(scene), distortion, rng)
    return out


def _render_one(
    scenes: Scenes, scene: int, distortion: scans.Distortion, rng: np.random.Generator
) -> NDArray[np.uint8]:
    canvas = _background(rng)
    cells = np.flatnonzero(scenes.digits[scene] >= 0)
    ink = scans.draw(scans.load(scenes.split).pictures[scenes.scans[scene, cells]], distortion, rng)
    tint = _RGB[scenes.colours[scene, cells]] + rng.normal(0, 9, (len(cells), 3)).astype(np.float32)
    tint *= rng.uniform(0.85, 1.05, (len(cells), 1)).astype(np.float32)
    for cell, alpha, rgb in zip(cells, ink, tint, strict=True):
        row, column = divmod(int(cell), GRID)
        tile = canvas[
            row * scans.CELL : (row + 1) * scans.CELL, column * scans.CELL : (column + 1) * scans.CELL
        ]
        tile += alpha[..., None] * (rgb - tile)
    canvas += rng.normal(0, rng.uniform(1, 7), canvas.shape).astype(np.float32)
    return np.clip(np.rint(canvas), 0, 255).astype(np.uint8)


def _background(rng: np.random.Generator) -> NDArray[np.float32]:
    """A dim texture: a smooth field of muted colour, with stripes across it in half of the scenes."""
    knots = int(rng.integers(3, 9))
    base = rng.uniform(20, 95, 3)
    field = rng.normal(0, 1, (3, knots, knots)) * rng.uniform(4, 18) + base[:, None, None]
    smooth = scans._cubic(knots, SIDE)
    canvas: NDArray[np.float32] = np.moveaxis(smooth @ field.astype(np.float32) @ smooth.T, 0, 2)
    if rng.random() < 0.5:
        angle, period, phase = rng.uniform(0, np.pi), rng.uniform(5, 24), rng.uniform(0, 2 * np.pi)
        y, x = np.mgrid[:SIDE, :SIDE].astype(np.float32)
        wave = np.sin((np.cos(angle) * x + np.sin(angle) * y) * (2 * np.pi / period) + phase)
        canvas = canvas + (wave * rng.uniform(3, 16))[..., None].astype(np.float32)
    return np.clip(canvas, 0, 135)
