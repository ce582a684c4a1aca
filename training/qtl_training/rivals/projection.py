"""What stands before and behind a rival: nothing, or a learnt linear map to fewer channels and back."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn

from qtl_core.nn.quantizer import Quantizer, merge_tokens, split_tokens

Basis = Literal["none", "spread", "principal"]
_STD_FLOOR = 1e-3


class Features(nn.Module):
    """No map at all: the rival works on the features themselves, as published."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.channels, self.merge = width, 1

    def forward(self, x: Tensor) -> Tensor:
        """``x`` itself, [..., tokens, width]."""
        return x

    def back(self, v: Tensor) -> Tensor:
        """``v`` itself."""
        return v

    def fit(self, x: Tensor, *, seed: int) -> None:
        """Nothing to initialise."""

    def fit_back(self, v: Tensor, x: Tensor) -> None:
        """Nothing to initialise."""


class Spread(nn.Module):
    """Our quantizer's own projection and initialisation, each channel with zero mean and unit deviation.

    Args:
        width: width of the features.
        code_dim: channels.
        merge: side of the square of tokens that share a vector.
    """

    def __init__(self, width: int, code_dim: int, merge: int) -> None:
        super().__init__()
        self.channels, self.merge = code_dim, merge
        self.linear = Quantizer(width, code_dim, 256, "frozen", 1.0, merge=merge)

    def forward(self, x: Tensor) -> Tensor:
        """z [..., tokens / merge**2, channels]; in training the running statistics follow."""
        z = self.linear.project(x)
        return (z - self.linear.mean) / self.linear.std.clamp_min(_STD_FLOOR)

    def back(self, v: Tensor) -> Tensor:
        """Features [..., tokens, width]."""
        return self.linear.restore(v)

    def fit(self, x: Tensor, *, seed: int) -> None:
        """Principal directions, rotated at random: every channel carries alike."""
        self.linear.fit(x, seed=seed)

    def fit_back(self, v: Tensor, x: Tensor) -> None:
        """The map back as the least-squares one from what a rival makes of z."""
        _least_squares(self.linear.out_proj, v, merge_tokens(x, self.merge))


class Principal(nn.Module):
    """Principal directions as they are: few channels carry most, for rivals that spend bits by energy.

    Args: as for ``Spread``.
    """

    def __init__(self, width: int, code_dim: int, merge: int) -> None:
        super().__init__()
        self.channels, self.merge = code_dim, merge
        self.in_proj = nn.Linear(width * merge**2, code_dim)
        self.out_proj = nn.Linear(code_dim, width * merge**2)

    def forward(self, x: Tensor) -> Tensor:
        """z [..., tokens / merge**2, channels]."""
        z: Tensor = self.in_proj(merge_tokens(x, self.merge))
        return z

    def back(self, v: Tensor) -> Tensor:
        """Features [..., tokens, width]."""
        return split_tokens(self.out_proj(v), self.merge)

    @torch.no_grad()
    def fit(self, x: Tensor, *, seed: int) -> None:
        """Orthonormal principal directions of the merged features, and their transpose back."""
        flat = merge_tokens(x, self.merge).reshape(-1, self.in_proj.in_features).double()
        centre = flat.mean(0)
        _, _, directions = torch.linalg.svd(flat - centre, full_matrices=False)
        found = directions[: self.channels]
        self.in_proj.weight.zero_()
        self.in_proj.bias.zero_()
        self.out_proj.weight.zero_()
        self.in_proj.weight[: len(found)] = found.float()
        self.in_proj.bias[: len(found)] = -(found @ centre).float()
        self.out_proj.weight[:, : len(found)] = found.T.float()
        self.out_proj.bias.copy_(centre)

    def fit_back(self, v: Tensor, x: Tensor) -> None:
        """The map back as the least-squares one from what a rival makes of z."""
        _least_squares(self.out_proj, v, merge_tokens(x, self.merge))


Projection = Features | Spread | Principal


def projection(width: int, basis: Basis, code_dim: int, merge: int) -> Projection:
    """The projection a rival's settings name.

    Raises:
        ValueError: if a merge or a number of channels is asked of the features themselves.
    """
    if basis == "none":
        if code_dim or merge != 1:
            raise ValueError(f"basis 'none' has no code_dim ({code_dim}) and no merge ({merge}) to set")
        return Features(width)
    return (Spread if basis == "spread" else Principal)(width, code_dim, merge)


@torch.no_grad()
def _least_squares(layer: nn.Linear, v: Tensor, target: Tensor) -> None:
    """Sets a layer to the least-squares map from ``v`` to ``target``, both [..., features]."""
    inputs = nn.functional.pad(v.reshape(-1, layer.in_features).double(), (0, 1), value=1.0)
    wanted = target.reshape(-1, layer.out_features).double()
    solution = torch.linalg.lstsq(inputs, wanted, driver="gelsd").solution
    layer.weight.copy_(solution[:-1].T)
    layer.bias.copy_(solution[-1])
