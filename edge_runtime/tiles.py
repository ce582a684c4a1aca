"""A picture as the client graph's inputs: one, or several tiles where the manifest says so. Pillow only.

The tiles are those of transformers' image processors in Pillow, pixel by pixel.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from PIL import Image

from qtl_core import bundle
from qtl_core.tiling import Anyres, Split

from .picture import RESAMPLE, Pixels, Source, check_passing, decode, fit


@dataclass(frozen=True, eq=False)
class Tiled:
    """A picture as the graph takes it.

    Attributes:
        tiles: uint8 [tiles, height, width, 3]; under ``Anyres`` the whole picture and then the grid row by
            row, under ``Split`` the grid row by row and then the whole picture, or a single one.
        size: width and height of the upright picture, in pixels.
        view: uint8 [h, w, 3], what the graph saw in one piece: the grid without the whole picture.
    """

    tiles: Pixels
    size: tuple[int, int]
    view: Pixels


def prepare(source: Source, spec: bundle.Picture) -> Tiled:
    """The graph's inputs for one picture.

    Args:
        source: as for ``picture.prepare``.
        spec: how the manifest wants it.

    Raises:
        PictureError: missing, unreadable, no picture, broken, truncated, too large, or too long and narrow.
    """
    return cut(decode(source, spec.max_pixels), spec)


def cut(image: Image.Image, spec: bundle.Picture) -> Tiled:
    """The graph's inputs for an upright RGB image.

    Raises:
        PictureError: so long and narrow that cutting it would take too much memory.
    """
    if spec.tiling is None:
        one = fit(image, spec)
        return Tiled(np.stack([one]), image.size, one)
    if isinstance(spec.tiling, Anyres):
        tiles, view = _anyres(image, spec, spec.tiling)
    else:
        tiles, view = _split(image, spec, spec.tiling)
    return Tiled(tiles, image.size, view)


def _anyres(image: Image.Image, spec: bundle.Picture, tiling: Anyres) -> tuple[Pixels, Pixels]:
    side = spec.width
    rows, columns = tiling.grid(*image.size, side)
    inside = tiling.inside(*image.size, side)
    canvas = Image.new("RGB", (columns * side, rows * side))
    left, upper = (columns * side - inside[0]) // 2, (rows * side - inside[1]) // 2
    canvas.paste(_resized(image, inside, spec), (left, upper))
    view = np.array(canvas, dtype=np.uint8)
    whole = np.asarray(_resized(image, (side, side), spec), dtype=np.uint8)
    return np.concatenate([whole[np.newaxis], _grid(view, side)]), view


def _split(image: Image.Image, spec: bundle.Picture, tiling: Split) -> tuple[Pixels, Pixels]:
    side = spec.width
    # Resized twice, as transformers does: once in proportion, and once to whole tiles.
    target = tiling.whole_tiles(*image.size, side)
    stretched = _resized(_resized(image, tiling.resized(*image.size), spec), target, spec)
    view = np.array(stretched, dtype=np.uint8)
    grid = _grid(view, side)
    if len(grid) == 1:
        return grid, view
    whole = np.asarray(_resized(stretched, (side, side), spec), dtype=np.uint8)
    return np.concatenate([grid, whole[np.newaxis]]), view


def _resized(image: Image.Image, target: tuple[int, int], spec: bundle.Picture) -> Image.Image:
    if image.size == target:
        return image
    check_passing(image, target, spec)
    return image.resize(target, resample=RESAMPLE[spec.resample])


def _grid(view: Pixels, side: int) -> Pixels:
    """[rows * side, columns * side, 3] row by row as [rows * columns, side, side, 3]."""
    rows, columns = view.shape[0] // side, view.shape[1] // side
    parts = view.reshape(rows, side, columns, side, 3).transpose(0, 2, 1, 3, 4)
    return np.ascontiguousarray(parts.reshape(-1, side, side, 3))
