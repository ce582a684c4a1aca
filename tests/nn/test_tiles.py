"""Tiles: ours are those of transformers' own image processors, and sizes alone say how many there are."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from PIL import Image

pytest.importorskip("transformers")

from transformers.models.idefics3.image_processing_pil_idefics3 import Idefics3ImageProcessorPil
from transformers.models.llava_onevision.image_processing_pil_llava_onevision import (
    LlavaOnevisionImageProcessorPil,
)
from transformers.models.smolvlm.image_processing_pil_smolvlm import SmolVLMImageProcessorPil

from edge_runtime.picture import Pixels
from edge_runtime.tiles import cut
from qtl_core.bundle import Picture
from qtl_core.tiling import Anyres, Split, Tiling

SIDE = 28
GRIDS = ((1, 1), (1, 2), (2, 1), (2, 2), (1, 3), (3, 1))
# Width and height: square, both ways round, odd, smaller than a tile, very long, a single line.
SIZES = [
    (28, 28),
    (60, 40),
    (40, 60),
    (101, 37),
    (9, 13),
    (400, 31),
    (31, 400),
    (3, 300),
    (1, 9000),
    (1, 1),
    (640, 480),
]


def spec(tiling: Tiling, resample: Any = "bicubic") -> Picture:
    return Picture(
        height=SIDE, width=SIDE, resample=resample, fit="square", pad_colour=(0, 0, 0), tiling=tiling
    )


def image(width: int, height: int) -> Image.Image:
    rng = np.random.default_rng(width * 1000 + height)
    small = rng.integers(0, 256, (height // 4 + 2, width // 4 + 2, 3), dtype=np.uint8)
    return Image.fromarray(small).resize((width, height), Image.Resampling.BICUBIC)


def as_theirs(values: Any) -> Pixels:
    """[1, tiles, 3, h, w] of values that were neither scaled nor normalised, as [tiles, h, w, 3]."""
    return np.asarray(values[0]).transpose(0, 2, 3, 1).astype(np.uint8)


@pytest.mark.parametrize("size", SIZES, ids=str)
@pytest.mark.parametrize("resample", [("bicubic", 3), ("lanczos", 1)], ids=lambda pair: pair[0])
def test_anyres(size: tuple[int, int], resample: tuple[str, int]) -> None:
    theirs = LlavaOnevisionImageProcessorPil(
        size={"height": SIDE, "width": SIDE},
        resample=resample[1],
        image_grid_pinpoints=[[rows * SIDE, columns * SIDE] for rows, columns in GRIDS],
        do_rescale=False,
        do_normalize=False,
    )
    picture = image(*size)
    expected = as_theirs(theirs(picture)["pixel_values"])
    ours = cut(picture, spec(Anyres(grids=GRIDS), resample[0]))
    assert ours.size == size
    np.testing.assert_array_equal(ours.tiles, expected)
    assert len(ours.tiles) == ours_count(size, Anyres(grids=GRIDS))
    assert ours.view.shape[0] * ours.view.shape[1] == (len(expected) - 1) * SIDE * SIDE


@pytest.mark.parametrize("size", SIZES, ids=str)
@pytest.mark.parametrize("longest", [SIDE, 4 * SIDE, 61, 3 * SIDE - 1])
@pytest.mark.parametrize("split", [True, False], ids=["split", "whole"])
def test_splitting(size: tuple[int, int], longest: int, split: bool) -> None:
    ours = cut(image(*size), spec(Split(longest=longest, split=split), "lanczos"))
    for processor in (Idefics3ImageProcessorPil, SmolVLMImageProcessorPil):
        theirs: Any = processor(
            size={"longest_edge": longest},
            max_image_size={"longest_edge": SIDE},
            do_image_splitting=split,
            do_rescale=False,
            do_normalize=False,
            do_pad=False,
            return_row_col_info=True,
        )
        found = theirs([[image(*size)]])
        np.testing.assert_array_equal(ours.tiles, as_theirs(found["pixel_values"]))
        grid = Split(longest=longest, split=split).grid(*size, SIDE)
        assert found["rows"][0][0] * found["cols"][0][0] in (0, grid[0] * grid[1])
    assert len(ours.tiles) == ours_count(size, Split(longest=longest, split=split))


def ours_count(size: tuple[int, int], tiling: Tiling) -> int:
    count = tiling.tiles(*size, SIDE)
    assert 1 <= count <= tiling.most(SIDE)
    return count
