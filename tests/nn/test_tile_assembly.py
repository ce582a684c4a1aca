"""What the server makes of tiles: how many tokens at most, and tiles that do not fit."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import msgspec
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from transformers.models.llava_onevision.modeling_llava_onevision import LlavaOnevisionModel

from qtl_core.bundle import Picture
from qtl_core.nn.tile_assembly import Markers, MarkerStyle, Newlines, NewlineStyle, assembly, most_tokens
from qtl_core.tiling import Anyres, Split, Tiling

SIDE, ACROSS = 8, 3
SIZE = st.tuples(st.integers(1, 3000), st.integers(1, 3000))


def picture(tiling: Tiling) -> Picture:
    return Picture(
        height=SIDE, width=SIDE, resample="bicubic", fit="square", pad_colour=(0, 0, 0), tiling=tiling
    )


@settings(max_examples=60, deadline=None)
@given(SIZE, st.integers(1, 4), st.lists(st.tuples(st.integers(1, 4), st.integers(1, 4)), min_size=1))
def test_no_picture_has_more_tokens_than_is_said(
    size: tuple[int, int], most: int, grids: list[tuple[int, int]]
) -> None:
    spec = picture(Anyres(grids=tuple(grids)))
    style = NewlineStyle(width=2, most=most)
    tiles = spec.tiles(*size)
    assert tiles <= spec.most_tiles
    found = Newlines(style, spec)(torch.zeros(tiles, ACROSS**2, 2), size)
    assert ACROSS**2 <= len(found) <= most_tokens(style, spec, ACROSS**2, 0)


@settings(max_examples=60, deadline=None)
@given(SIZE, st.integers(1, 70), st.booleans())
def test_a_split_picture_has_a_place_for_every_tile(size: tuple[int, int], longest: int, split: bool) -> None:
    spec = picture(Split(longest=longest, split=split))
    text = Markers(MarkerStyle(), spec).text(size)
    assert text.count("<image>") == spec.tiles(*size) <= spec.most_tiles


def test_tiles_that_do_not_fit_are_refused() -> None:
    markers = Markers(MarkerStyle(), picture(Split(longest=16)))
    with pytest.raises(ValueError, match="3 tiles, and places for 2"):
        markers(torch.zeros(3, 4, 2), [5, 9, 5, 9], 9, lambda ids: torch.zeros(len(ids), 2))
    newlines = Newlines(NewlineStyle(width=2, most=9), picture(Anyres(grids=((1, 2),))))
    with pytest.raises(ValueError, match="4 tiles; a picture of this size has 3"):
        newlines(torch.zeros(4, 9, 2), (20, 10))


@pytest.mark.parametrize(
    ("style", "tiling"),
    [(NewlineStyle(width=2, most=9), Split(longest=16)), (MarkerStyle(), Anyres(grids=((1, 1),)))],
)
def test_styles_belong_to_a_way_of_cutting(style: NewlineStyle | MarkerStyle, tiling: Tiling) -> None:
    with pytest.raises(ValueError, match="this picture has none"):
        assembly(style, picture(tiling))


def test_the_picture_in_the_grid_is_what_stays(size: tuple[int, int] = (30, 10)) -> None:
    """3 x 1 tiles of 3 x 3 tokens in a 3 x 3 grid: the middle rows are the picture's."""
    spec = picture(Anyres(grids=((3, 3),)))
    tiles = torch.arange(10.0)[:, None, None].expand(10, ACROSS**2, 1)
    newlines = Newlines(NewlineStyle(width=1, most=9), spec)
    torch.nn.init.constant_(newlines.newline, -1.0)
    with torch.no_grad():
        found = newlines(tiles, size)[:, 0]
    row = [4.0] * 3 + [5.0] * 3 + [6.0] * 3 + [-1.0]
    assert found.tolist() == [0.0] * 9 + 3 * row


@settings(max_examples=60, deadline=None)
@given(st.tuples(st.integers(1, 5000), st.integers(1, 5000)), st.sampled_from([1, 4, 9]))
@example((4000, 3000), 9)
@example((384, 384), 9)
@example((77, 1999), 9)
def test_packing_is_that_of_transformers(size: tuple[int, int], most: int) -> None:
    """At the published geometry: tiles of 384 pixels and 27 x 27 tokens, grids of up to 6 x 6."""
    side, across = 384, 27
    grids = tuple((rows, columns) for rows in range(1, 7) for columns in range(1, 7))
    spec = msgspec.structs.replace(picture(Anyres(grids=grids)), width=side, height=side)
    ours = Newlines(NewlineStyle(width=2, most=most), spec)
    torch.nn.init.normal_(ours.newline)
    tiles = torch.rand(spec.tiles(*size), across**2, 2, generator=torch.Generator().manual_seed(1))
    vision = SimpleNamespace(image_size=side, patch_size=14)
    pinpoints = [[rows * side, columns * side] for rows, columns in grids]
    config = SimpleNamespace(vision_config=vision, image_grid_pinpoints=pinpoints)
    model: Any = SimpleNamespace(config=config)
    with torch.no_grad():
        (expected,), _ = LlavaOnevisionModel.pack_image_features(
            model, [tiles], [size[::-1]], ours.newline, f"anyres_max_{most}"
        )
        assert torch.equal(ours(tiles, size), expected)
