"""The attackers' networks; the same for every representation but for the width of their first layer."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional

from qtl_core.nn.quantizer import merge_tokens, split_tokens
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

    def whiten(self, seen: Tensor) -> Tensor:
        """Tokens with uncorrelated channels of variance 1 (less, where there is hardly any)."""
        return (seen - self.centre) @ self.whitening

    def forward(self, seen: Tensor) -> Tensor:
        """float [n, side**2, width]."""
        spread = self.linear(self.whiten(seen))
        return split_tokens(spread, self._split) + self.places


class Draft(nn.Module):
    """A first drawing in closed form: least squares from random features of a square's tokens to its pixels.

    The picture is cut into at most 3 x 3 squares, which share one map; ``ReLU(W x + b)`` with random W and b
    stands beside x itself. Before ``fit`` it draws nothing.

    Args:
        adapter: whitens the tokens.
        seen: what the attacker learns from, float [n, tokens, channels].
    """

    hidden: Tensor
    offset: Tensor
    drawn: Tensor
    _FEATURES = 1024
    _RIDGE = 0.05  # of the number of examples; whitened tokens have a variance of 1
    _AT_ONCE = 256

    def __init__(self, adapter: Adapter, seen: Tensor) -> None:
        super().__init__()
        self._whiten = adapter.whiten
        own = math.isqrt(seen.shape[1])
        self._across = math.gcd(own, GRID)
        self._join = own // self._across
        width = seen.shape[2] * self._join**2
        self.register_buffer("hidden", torch.randn(width, self._FEATURES) / math.sqrt(width))
        self.register_buffer("offset", torch.randn(self._FEATURES))
        pixels = 3 * (SIDE // self._across) ** 2
        self.register_buffer("drawn", torch.zeros(1 + width + self._FEATURES, pixels))

    @torch.no_grad()
    def fit(self, seen: Tensor, target: Callable[[slice], Tensor]) -> None:
        """Solves for the map.

        Args:
            seen: float [n, tokens, channels].
            target: what to draw for some of them, float [.., 3, 96, 96].
        """
        inner = torch.zeros(len(self.drawn), len(self.drawn))
        outer = torch.zeros_like(self.drawn)
        for start in range(0, len(seen), self._AT_ONCE):
            part = slice(start, start + self._AT_ONCE)
            features = self._features(seen[part]).flatten(0, 1)
            inner += features.T @ features
            outer += features.T @ functional.unfold(
                target(part), SIDE // self._across, stride=SIDE // self._across
            ).transpose(1, 2).flatten(0, 1)
        examples = len(seen) * self._across**2
        inner += self._RIDGE * examples * torch.eye(len(inner))
        self.drawn.copy_(torch.linalg.solve(inner, outer))

    @torch.no_grad()
    def forward(self, seen: Tensor) -> Tensor:
        """Pictures, float [n, 3, 96, 96]."""
        squares = (self._features(seen) @ self.drawn).transpose(1, 2)
        side = SIDE // self._across
        return functional.fold(squares, (SIDE, SIDE), side, stride=side)

    def _features(self, seen: Tensor) -> Tensor:
        """float [n, squares, features]."""
        tokens = merge_tokens(self._whiten(seen), self._join)
        hidden = functional.relu(tokens @ self.hidden + self.offset)
        return torch.cat([torch.ones_like(tokens[..., :1]), tokens, hidden], dim=-1)


class Decoder(nn.Module):
    """From what crossed to pixels: a draft, and what a transformer layer and convolutions upwards add to it.

    Args:
        seen: what the attacker learns from, float [n, tokens, channels].
        mean: float [3, 96, 96], the mean picture, which an untrained decoder draws.
        side: tokens along the side of the picture.

    Attributes:
        draft: fitted before the rest is trained.
    """

    mean: Tensor
    _WIDTH = 192
    _LARGEST = 24  # pixels along the side at which residual convolutions still pay

    def __init__(self, seen: Tensor, mean: Tensor, side: int) -> None:
        super().__init__()
        self._side = side
        self.register_buffer("mean", mean)
        self.adapter = Adapter(seen, side, self._WIDTH)
        self.draft = Draft(self.adapter, seen)
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
        added: Tensor = self.upwards(grid.contiguous(memory_format=torch.channels_last))
        return self.mean + self.draft(seen) + added


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
