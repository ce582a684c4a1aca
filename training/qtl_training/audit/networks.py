"""The attackers' networks; the same for every representation but for the width of their first layer."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional

from qtl_core.nn.quantizer import split_tokens
from qtl_training.digits.scenes import CELLS, COLOURS, GRID, SIDE

CLASSES = (10, len(COLOURS), 1)
"""Scores for each cell: digit, colour, whether there is one."""

_FLOOR = 1e-5  # of the largest variance: below it a direction is rounding noise


class Adapter(nn.Module):
    """Tokens of any number and width in, a grid of ``side`` x ``side`` tokens of ``width`` out.

    Inputs are whitened first: features spread their variance over few directions, codes over all, and
    a network that reads both as they are would favour codes.

    Args:
        seen: what the attacker learns from, float [n, tokens, channels].
        side: of the grid, a multiple of the tokens' own.
        width: of a token.
    """

    centre: Tensor
    whitening: Tensor

    def __init__(self, seen: Tensor, side: int, width: int) -> None:
        super().__init__()
        own = math.isqrt(seen.shape[1])
        if own * own != seen.shape[1] or side % own:
            raise ValueError(f"{seen.shape[1]} tokens do not spread over a grid of {side} x {side}")
        flat = seen.reshape(-1, seen.shape[2]).double()
        centre = flat.mean(0)
        variance, directions = torch.linalg.eigh(torch.cov((flat - centre).T).reshape(flat.shape[1], -1))
        # A representation that never changes has no variance at all, and stays at zero.
        floor = float(variance.max()) * _FLOOR or 1.0
        self.register_buffer("centre", centre.float())
        self.register_buffer("whitening", (directions / (variance.clamp_min(0) + floor).sqrt()).float())
        self._split = side // own
        self.linear = nn.Linear(seen.shape[2], width * self._split**2)
        self.places = nn.Parameter(0.02 * torch.randn(side * side, width))

    def forward(self, seen: Tensor) -> Tensor:
        """float [n, side**2, width]."""
        spread = self.linear((seen - self.centre) @ self.whitening)
        return split_tokens(spread, self._split) + self.places


class Decoder(nn.Module):
    """From what crossed to pixels: one transformer layer over the tokens, then convolutions upwards.

    Args:
        seen: what the attacker learns from, float [n, tokens, channels].
        mean: float [3, 96, 96], the mean picture; the network adds to it, and starts at it.
        side: tokens along the side of the picture.
    """

    mean: Tensor
    _WIDTH = 192
    _LARGEST = 24  # pixels along the side at which residual convolutions still pay

    def __init__(self, seen: Tensor, mean: Tensor, side: int) -> None:
        super().__init__()
        self._side = side
        self.register_buffer("mean", mean)
        self.adapter = Adapter(seen, side, self._WIDTH)
        self.context = _layer(self._WIDTH, 2)
        steps: list[nn.Module] = []
        width, size = self._WIDTH, side
        rest = _factor(side)
        while rest % 2 == 0 and rest > 3:
            out = max(16, 64 * side // size)
            steps += [nn.Conv2d(width, 4 * out, 1), nn.PixelShuffle(2)]
            width, size, rest = out, 2 * size, rest // 2
            if size <= self._LARGEST:
                steps.append(_Residual(width))
        last = nn.Conv2d(width, 3 * rest**2, 3, padding=1)
        nn.init.zeros_(last.weight)
        nn.init.zeros_(torch.as_tensor(last.bias))
        self.upwards = nn.Sequential(*steps, nn.GELU(), last, nn.PixelShuffle(rest))

    def forward(self, seen: Tensor) -> Tensor:
        """Pictures, float [n, 3, 96, 96], values about 0 to 1."""
        tokens = self.context(self.adapter(seen))
        grid = tokens.transpose(1, 2).reshape(len(tokens), -1, self._side, self._side)
        picture: Tensor = self.mean + self.upwards(grid.contiguous(memory_format=torch.channels_last))
        return picture


class Probe(nn.Module):
    """Reads the cells straight from what crossed: two transformer layers over the tokens and one query for
    each cell, which begins as the mean of the tokens there.

    Args:
        seen: what the attacker learns from, float [n, tokens, channels].
        side: tokens along the side of the picture.
    """

    _WIDTH = 128

    def __init__(self, seen: Tensor, side: int) -> None:
        super().__init__()
        self._side = side
        self.adapter = Adapter(seen, side, self._WIDTH)
        self.queries = nn.Parameter(0.02 * torch.randn(CELLS, self._WIDTH))
        self.layers = nn.Sequential(_layer(self._WIDTH, 4), _layer(self._WIDTH, 4))
        self.head = nn.Sequential(nn.LayerNorm(self._WIDTH), nn.Linear(self._WIDTH, sum(CLASSES)))

    def forward(self, seen: Tensor) -> Tensor:
        """Scores of each cell, float [n, 9, 17]."""
        tokens = self.adapter(seen)
        grid = tokens.transpose(1, 2).reshape(len(tokens), -1, self._side, self._side)
        queries = self.queries + functional.adaptive_avg_pool2d(grid, GRID).flatten(2).transpose(1, 2)
        read = self.layers(torch.cat([queries, tokens], dim=1))[:, :CELLS]
        scores: Tensor = self.head(read)
        return scores


class Reader(nn.Module):
    """Reads the cells of a picture: strided convolutions down to 2 x 2 places a cell, then one layer."""

    _WIDTHS = (24, 48, 96, 96)

    def __init__(self) -> None:
        super().__init__()
        steps: list[nn.Module] = []
        for before, after in zip((3, *self._WIDTHS), self._WIDTHS, strict=False):
            steps += [
                nn.Conv2d(before, after, 3, stride=2, padding=1, bias=False),
                nn.BatchNorm2d(after),
                nn.ReLU(),
            ]
        self.down = nn.Sequential(*steps)
        self._a_cell = SIDE // GRID // 2 ** len(self._WIDTHS)
        self.head = nn.Linear(self._WIDTHS[-1] * self._a_cell**2, sum(CLASSES))

    def forward(self, pictures: Tensor) -> Tensor:
        """Scores of each cell, float [n, 9, 17], of pictures [n, 3, 96, 96] with values 0 to 1."""
        found = self.down((2 * pictures - 1).contiguous(memory_format=torch.channels_last))
        cells = functional.unfold(found, self._a_cell, stride=self._a_cell)
        scores: Tensor = self.head(cells.transpose(1, 2))
        return scores


class _Residual(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.first = nn.Conv2d(width, width, 3, padding=1)
        self.second = nn.Conv2d(width, width, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        added: Tensor = self.second(functional.gelu(self.first(functional.gelu(x))))
        return x + added


def _layer(width: int, ratio: int) -> nn.Module:
    return nn.TransformerEncoderLayer(
        width, 4, ratio * width, 0.0, functional.gelu, batch_first=True, norm_first=True
    )


def _factor(side: int) -> int:
    if SIDE % side:
        raise ValueError(f"a picture of {SIDE} pixels has no {side} tokens along its side")
    return SIDE // side
