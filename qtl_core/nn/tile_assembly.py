"""What the server makes of a picture's tiles: newline vectors, unpadding and pooling, or text between.

None of it crosses the cut: the device sends the tiles' codes and the picture's size.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TypeAlias

import msgspec
import torch
from torch import Tensor, nn
from torch.nn import functional

from qtl_core.bundle import Picture
from qtl_core.tiling import Anyres, Split

_POOL_ABOVE = 1.1  # a picture so many times (by its sides) over its share is pooled, says LLaVA-OneVision


class NewlineStyle(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, tag="newlines"):
    """LLaVA-OneVision: a learnt vector ends each row of the grid.

    Attributes:
        width: of the features.
        most: the grid has about as many tokens as so many tiles at most, or is pooled ("anyres_max_N").
    """

    width: int
    most: int


class MarkerStyle(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, tag="markers"):
    """Idefics3 and SmolVLM: text around the tiles says which one comes.

    Attributes:
        image: the token that stands for each feature of a tile.
        around: the token in front of each tile and behind the last.
        whole: text in front of the whole picture.
    """

    image: str = "<image>"
    around: str = "<fake_token_around_image>"
    whole: str = "<global-img>"

    def text(self, rows: int, columns: int) -> str:
        """What stands for a picture in a prompt, with one ``image`` for each tile."""
        grid = ""
        if rows * columns > 1:
            for row in range(1, rows + 1):
                for column in range(1, columns + 1):
                    grid += f"{self.around}<row_{row}_col_{column}>{self.image}"
                grid += "\n"
            grid += "\n"
        return f"{grid}{self.around}{self.whole}{self.image}{self.around}"


AssemblyStyle: TypeAlias = NewlineStyle | MarkerStyle


class Newlines(nn.Module):
    """LLaVA-OneVision's ``pack_image_features`` for one picture.

    Args:
        style: width, and where pooling begins.
        picture: how pictures are cut.
    """

    def __init__(self, style: NewlineStyle, picture: Picture) -> None:
        super().__init__()
        if not isinstance(picture.tiling, Anyres):
            raise ValueError("newlines end the rows of an anyres grid, and this picture has none")
        self.style, self.tiling, self.side = style, picture.tiling, picture.width
        self.newline = nn.Parameter(torch.zeros(style.width))

    def forward(self, tiles: Tensor, size: tuple[int, int]) -> Tensor:
        """The picture's tokens in front of the decoder.

        Args:
            tiles: features [tiles, tokens, width], the whole picture first.
            size: width and height of the picture, in pixels.

        Returns:
            [n, width]: the whole picture's tokens; then the grid's, without those of the padding, pooled
            where they are too many, each row ended by the newline vector.

        Raises:
            ValueError: other tiles than a picture of this size has.
        """
        rows, columns = self.tiling.grid(*size, self.side)
        if len(tiles) != 1 + rows * columns:
            raise ValueError(f"{len(tiles)} tiles; a picture of this size has {1 + rows * columns}")
        side = math.isqrt(tiles.shape[1])
        grid = tiles[1:].unflatten(0, (rows, columns)).unflatten(2, (side, side))
        grid = grid.permute(4, 0, 2, 1, 3).flatten(1, 2).flatten(2, 3)  # [width, height, width in tokens]
        down, across = unpadded(grid.shape[1], grid.shape[2], size)
        grid = grid[:, down[0] : down[1], across[0] : across[1]]
        height, width = grid.shape[1:]
        ratio = math.sqrt(height * width / (self.style.most * side**2))
        if ratio > _POOL_ABOVE:
            # At least one: transformers fails where a row or column would vanish.
            pooled = [max(int(height // ratio), 1), max(int(width // ratio), 1)]
            grid = functional.interpolate(grid[None], pooled, mode="bilinear")[0]
        ends = self.newline.to(grid.dtype)[:, None, None].expand(-1, grid.shape[1], 1)
        grid = torch.cat((grid, ends), dim=-1).flatten(1, 2).transpose(0, 1)
        return torch.cat((tiles[0], grid))


def unpadded(height: int, width: int, size: tuple[int, int]) -> tuple[tuple[int, int], tuple[int, int]]:
    """Which rows and columns of a grid of tokens hold the picture: transformers' ``unpad_image``.

    Args:
        height: of the grid, in tokens.
        width: of the grid, in tokens.
        size: width and height of the picture, in pixels.

    Returns:
        First and past the last row, and the same of columns.
    """
    if size[0] / size[1] > width / height:
        padding = (height - int(round(size[1] * (width / size[0]), 7))) // 2
        return (padding, height - padding), (0, width)
    padding = (width - int(round(size[0] * (height / size[1]), 7))) // 2
    return (0, height), (padding, width - padding)


class Markers(nn.Module):
    """Idefics3's and SmolVLM's prompt for a picture: embedded text with the tiles' features in it.

    Args:
        style: the texts.
        picture: how pictures are cut.
    """

    def __init__(self, style: MarkerStyle, picture: Picture) -> None:
        super().__init__()
        if not isinstance(picture.tiling, Split):
            raise ValueError("markers tell the tiles of a split picture apart, and this picture has none")
        self.style, self.tiling, self.side = style, picture.tiling, picture.width

    def text(self, size: tuple[int, int]) -> str:
        """What stands for a picture of that width and height in the prompt."""
        return self.style.text(*self.tiling.grid(*size, self.side))

    def forward(self, tiles: Tensor, ids: list[int], image: int, embed: Callable[[Tensor], Tensor]) -> Tensor:
        """The picture's tokens, and text in front of it, before the decoder.

        Args:
            tiles: features [tiles, tokens, width], the whole picture last.
            ids: of the text in front and ``text``.
            image: the id in it that stands for a tile.
            embed: embeds ids.

        Returns:
            [n, width].

        Raises:
            ValueError: other tiles than the text has places for.
        """
        places = [at for at, one in enumerate(ids) if one == image]
        if len(places) != len(tiles):
            raise ValueError(f"{len(tiles)} tiles, and places for {len(places)} of them in the prompt")
        pieces: list[Tensor] = []
        start = 0
        for at, tile in zip(places, tiles, strict=True):
            pieces += [embed(torch.tensor(ids[start:at], dtype=torch.int64, device=tiles.device)), tile]
            start = at + 1
        pieces.append(embed(torch.tensor(ids[start:], dtype=torch.int64, device=tiles.device)))
        return torch.cat(pieces)


def assembly(style: AssemblyStyle, picture: Picture) -> Newlines | Markers:
    """The module of a style.

    Raises:
        ValueError: the picture is not cut the way this style needs.
    """
    return Newlines(style, picture) if isinstance(style, NewlineStyle) else Markers(style, picture)


def most_tokens(style: AssemblyStyle, picture: Picture, tokens: int, marker_tokens: int) -> int:
    """The most tokens of any picture in front of the decoder, or a few more.

    Args:
        style: of the assembly.
        picture: how pictures are cut.
        tokens: of a tile.
        marker_tokens: of the longest text around tiles, without the tiles.
    """
    if isinstance(style, MarkerStyle) or not isinstance(picture.tiling, Anyres):
        return picture.most_tiles * tokens + marker_tokens
    side = math.isqrt(tokens)
    pooled = math.ceil(_POOL_ABOVE**2 * style.most * tokens)
    grids = [(min(rows * columns * tokens, pooled), rows * side) for rows, columns in picture.tiling.grids]
    return tokens + max(area + ends for area, ends in grids)
