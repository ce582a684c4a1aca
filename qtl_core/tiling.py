"""How a picture becomes several inputs of the client graph, its tiles: arithmetic that both ends share.

The device cuts a picture by it. The server is told the picture's size and nothing else, and comes to the same
number of tiles, rows and columns. Sizes are whole pixels; the formulas, rounding included, are those of
transformers' image processors, so that a checkpoint sees what it was trained on.
"""

from __future__ import annotations

import math
from typing import Annotated, Final, TypeAlias

import msgspec
from msgspec import Meta

Pixels: TypeAlias = Annotated[int, Meta(ge=1, le=2**31 - 1)]
Count: TypeAlias = Annotated[int, Meta(ge=1, le=256)]

MAX_TILES: Final = 1024
"""Tiles of one picture at most; a manifest that asks for more is refused."""
_MAX_SIDE: Final = 4096  # where transformers caps the longest side of a picture that is split


class Anyres(msgspec.Struct, frozen=True, kw_only=True, tag="anyres"):
    """LLaVA-OneVision's "anyres": the whole picture stretched to one tile, then a grid of tiles.

    The picture is resized, in proportion, into the one of several grids that keeps most of its pixels, and
    centred there on black. There is a grid always, be it of one tile: two tiles are the fewest.

    Attributes:
        grids: rows and columns that there are, in the checkpoint's order (which decides between equals).
    """

    grids: Annotated[tuple[tuple[Count, Count], ...], Meta(min_length=1, max_length=1024)]

    def __post_init__(self) -> None:
        if self.most(1) > MAX_TILES:
            raise ValueError(f"{self.most(1)} tiles a picture are more than the {MAX_TILES} there may be")

    def most(self, side: int) -> int:
        """The most tiles that a picture can have."""
        del side
        return 1 + max(rows * columns for rows, columns in self.grids)

    def grid(self, width: int, height: int, side: int) -> tuple[int, int]:
        """Rows and columns of a picture's grid: transformers' ``select_best_resolution``.

        Args:
            width: of the picture, in pixels.
            height: of the picture, in pixels.
            side: of a tile, in pixels.
        """
        # However long and narrow the picture is, the first grid wastes less than this.
        best, kept, wasted = self.grids[0], 0, math.inf
        for rows, columns in self.grids:
            scale = min(columns * side / width, rows * side / height)
            effective = min(int(width * scale) * int(height * scale), width * height)
            over = rows * columns * side * side - effective
            if effective > kept or (effective == kept and over < wasted):
                best, kept, wasted = (rows, columns), effective, over
        return best

    def tiles(self, width: int, height: int, side: int) -> int:
        """How many tiles a picture has; arguments as ``grid``."""
        rows, columns = self.grid(width, height, side)
        return 1 + rows * columns

    def inside(self, width: int, height: int, side: int) -> tuple[int, int]:
        """Width and height of the resized picture in its grid; arguments as ``grid``."""
        rows, columns = self.grid(width, height, side)
        across, down = columns * side / width, rows * side / height
        if across < down:
            return columns * side, min(math.ceil(height * across), rows * side)
        return min(math.ceil(width * down), columns * side), rows * side


class Split(msgspec.Struct, frozen=True, kw_only=True, tag="split"):
    """Idefics3's and SmolVLM's picture splitting: a grid of tiles, then the whole picture as one more.

    The picture is resized until its longest side is ``longest``, then stretched to whole tiles, which become
    the grid; that again, stretched to one tile, is the last. Where the grid is a single tile, or splitting
    is off, that one tile is all.

    Attributes:
        longest: of the resized picture's sides, in pixels.
        split: whether pictures are split.
    """

    longest: Pixels
    split: bool = True

    def __post_init__(self) -> None:
        if self.longest > _MAX_SIDE:
            raise ValueError(f"a longest side of {self.longest} pixels is more than {_MAX_SIDE}")

    def most(self, side: int) -> int:
        """The most tiles of ``side`` pixels that a picture can have."""
        # A side that is odd may be rounded up to the next even number of pixels.
        across = -(-(self.longest + self.longest % 2) // side)
        return 1 + across * across if self.split and across > 1 else 1

    def grid(self, width: int, height: int, side: int) -> tuple[int, int]:
        """Rows and columns of a picture's grid.

        Args:
            width: of the picture, in pixels.
            height: of the picture, in pixels.
            side: of a tile, in pixels.
        """
        across, down = self.whole_tiles(width, height, side)
        return down // side, across // side

    def tiles(self, width: int, height: int, side: int) -> int:
        """How many tiles a picture has; arguments as ``grid``."""
        rows, columns = self.grid(width, height, side)
        return 1 if rows * columns == 1 else 1 + rows * columns

    def resized(self, width: int, height: int) -> tuple[int, int]:
        """Width and height once the longest side is ``longest``; the other one is even."""
        ratio = width / height
        if width >= height:
            width, height = self.longest, int(self.longest / ratio)
            height += height % 2
        else:
            width, height = int(self.longest * ratio), self.longest
            width += width % 2
        return max(width, 1), max(height, 1)

    def whole_tiles(self, width: int, height: int, side: int) -> tuple[int, int]:
        """Width and height once stretched to whole tiles; arguments as ``grid``."""
        if not self.split:
            return side, side
        width, height = self.resized(width, height)
        ratio = width / height
        if width >= height:
            width = math.ceil(width / side) * side
            return width, math.ceil(int(width / ratio) / side) * side
        height = math.ceil(height / side) * side
        return math.ceil(int(height * ratio) / side) * side, height


Tiling: TypeAlias = Anyres | Split
