"""The client's training step as PyTorch modules without autograd, to be exported: forward, backward, AdamW.

What ``qtl_training.split.client_side`` and ``qtl_core.nn.quantizer`` do, with gradients written out. Level
counts are inputs: one pair of graphs serves all of them.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import torch
from torch import Tensor, nn

from qtl_core.nn.quantizer import (
    COMMITMENT_WEIGHT,
    COSINE_FLOOR,
    MOMENTUM,
    RANGE_FLOOR,
    SIGMA_FLOOR,
    Quantizer,
    merge_tokens,
    split_tokens,
)
from qtl_export.trainable.layers import Gradients, Layer, Linear, Tensors, forward, pull

K: Final = "vision_quantizer.k"
MEAN, STD = "vision_quantizer.mean", "vision_quantizer.std"
_IN_PROJ: Final = Linear("vision_quantizer.in_proj.weight", "vision_quantizer.in_proj.bias")


class _Step(nn.Module):
    """What both directions share: how features become scaled values.

    Args:
        layers: the connector's.
        quantizer: only its settings are read.
        names: of the tensors, in the order in which ``forward`` gets them.
    """

    def __init__(self, layers: Sequence[Layer], quantizer: Quantizer, names: Sequence[str]) -> None:
        super().__init__()
        self._layers, self._names = list(layers), list(names)
        self._merge, self._scaling = quantizer.merge, quantizer.scaling
        self._settings = (quantizer,)  # a tuple, so that no weights of its own are exported
        self._by_levels = quantizer.k_levels.numel() > 0

    def _named(self, tensors: Sequence[Tensor]) -> dict[str, Tensor]:
        return dict(zip(self._names, tensors, strict=True))

    def _k(self, named: Tensors, mix: Tensor) -> Tensor:
        """k at the level count, [1] or [code_dim]; ``mix`` [rows] weighs the k of each level count."""
        k = named[K]
        return (k.reshape(mix.shape[0], -1) * mix[:, None]).sum(0) if self._by_levels else k

    def _scaled(self, z: Tensor, named: Tensors, k: Tensor) -> Tensor:
        """Before clipping."""
        if self._scaling == "frozen":
            return (z - named[MEAN]) / (k * named[STD].clamp_min(SIGMA_FLOOR))
        above, spread = self._range(z, k)
        return 2 * (above / spread) - 1

    def _range(self, z: Tensor, k: Tensor) -> tuple[Tensor, Tensor]:
        mean, sigma = z.mean((-2, -1), keepdim=True), z.std((-2, -1), keepdim=True)
        low, high = mean - k * sigma, mean + k * sigma
        return z - low + RANGE_FLOOR, high - low + RANGE_FLOOR


class Forward(_Step):
    """Tower features to codes; running statistics move first, as in PyTorch's training mode."""

    def forward(
        self, features: Tensor, tensors: list[Tensor], half: Tensor, offset: Tensor, mix: Tensor
    ) -> tuple[Tensor, ...]:
        """One micro-batch.

        Args:
            features: float16 [batch, tokens, tower width].
            tensors: of connector and quantizer, by the names given.
            half: (L - 1) / 2 of the level count L.
            offset: 0.5 where L is even.
            mix: [rows] of k.

        Returns:
            Codes uint8 [batch, coded tokens, code_dim]; the sum of absolute values before clipping, which is
            finite where all of them are; and with "frozen" scaling the moved mean and deviation.
        """
        named = self._named(tensors)
        at_cut = forward(self._layers, features.float(), named)[-1]
        z = _IN_PROJ.forward(merge_tokens(at_cut, self._merge), named)
        moved: tuple[Tensor, ...] = ()
        if self._scaling == "frozen":
            flat = z.reshape(-1, z.shape[-1])
            mean = named[MEAN] + MOMENTUM * (self._settings[0].middle(flat) - named[MEAN])
            std = named[STD] + MOMENTUM * (flat.std(0) - named[STD])
            named |= {MEAN: mean, STD: std}
            moved = (mean, std)
        raw = self._scaled(z, named, self._k(named, mix))
        codes = torch.round(torch.clamp(raw, -1, 1) * half - offset) + (offset + half)
        return codes.to(torch.uint8), raw.abs().sum(), *moved


class Backward(_Step):
    """Gradients of every tensor, of the answers' loss and of the distortion loss apart.

    The statistics are those that ``Forward`` returned. Rounding is passed straight through.
    """

    def forward(
        self,
        features: Tensor,
        tensors: list[Tensor],
        half: Tensor,
        offset: Tensor,
        mix: Tensor,
        gradient: Tensor,
    ) -> tuple[Tensor, ...]:
        """One micro-batch.

        Args:
            features: as ``Forward``, like the next four.
            tensors: with the statistics as they moved.
            half: of the level count.
            offset: of the level count.
            mix: of the level count.
            gradient: of the answers' summed loss with respect to the codes' values, float32
                [batch, coded tokens, code_dim].

        Returns:
            The gradients of ``learns`` in that order, of the answers' loss; then of the distortion loss.
        """
        named = self._named(tensors)
        states = forward(self._layers, features.float(), named)
        merged = merge_tokens(states[-1], self._merge)
        z = _IN_PROJ.forward(merged, named)
        k = self._k(named, mix)
        raw = self._scaled(z, named, k)
        s = torch.clamp(raw, -1, 1)
        codes = torch.round(s * half - offset) + (offset + half)
        own = _of_distortion(s, (codes - half) / half)
        inside = ((raw >= -1) & (raw <= 1)).to(s.dtype)
        found: list[Tensor] = []
        for cotangent in (gradient, own):
            pulled: Gradients = {}
            dz, dk = self._pull_scale(z, raw, cotangent * inside, named, k)
            d_merged = _IN_PROJ.pull(merged, dz, named, pulled)
            pulled[K] = (mix[:, None] * dk).reshape(named[K].shape) if self._by_levels else dk
            pulled |= pull(self._layers, states, split_tokens(d_merged, self._merge), named)
            found += [pulled[name] for name in self.learns]
        return tuple(found)

    @property
    def learns(self) -> list[str]:
        """Names of what can be trained, in the order of the gradients."""
        return [name for name in self._names if name not in (MEAN, STD)]

    def _pull_scale(
        self, z: Tensor, raw: Tensor, gradient: Tensor, named: Tensors, k: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Gradients of z and of k at the level count, from that of the scaled values before clipping."""
        if self._scaling == "frozen":
            of_k = -(gradient * raw / k)
            return gradient / (k * named[STD].clamp_min(SIGMA_FLOOR)), _like_k(of_k, k)
        sigma = z.std((-2, -1), keepdim=True)
        above, spread = self._range(z, k)
        d_above = 2 * gradient / spread
        d_spread = -2 * gradient * above / (spread * spread)
        # low and high are one number a picture, or one a channel: sums over tokens end there.
        d_high = d_spread.sum(-2, keepdim=True)
        d_low = -d_above.sum(-2, keepdim=True) - d_high
        d_mean = (d_low + d_high).sum(-1, keepdim=True)
        d_sigma = (k * (d_high - d_low)).sum(-1, keepdim=True)
        count = z.shape[-2] * z.shape[-1]
        away = z - z.mean((-2, -1), keepdim=True)
        # A picture without contrast has no direction in which its deviation grows.
        per_sigma = torch.where(sigma > 0, d_sigma / (sigma * (count - 1)), torch.zeros_like(sigma))
        return d_above + d_mean / count + per_sigma * away, _like_k(sigma * (d_high - d_low), k)


class UnquantizedForward(nn.Module):
    """Tower features to the half-precision features that cross unquantized."""

    def __init__(self, layers: Sequence[Layer], names: Sequence[str]) -> None:
        super().__init__()
        self._layers, self._names = list(layers), list(names)

    def forward(self, features: Tensor, tensors: list[Tensor]) -> Tensor:
        """Float16 [batch, tokens, width] of float16 [batch, tokens, tower width]."""
        named = dict(zip(self._names, tensors, strict=True))
        return forward(self._layers, features.float(), named)[-1].to(torch.float16)


class UnquantizedBackward(UnquantizedForward):
    """Gradients of the connector's tensors."""

    def forward(  # type: ignore[override]
        self, features: Tensor, tensors: list[Tensor], gradient: Tensor
    ) -> tuple[Tensor, ...]:
        """From float32 [batch, tokens, width], in the order of the names."""
        named = dict(zip(self._names, tensors, strict=True))
        states = forward(self._layers, features.float(), named)
        pulled = pull(self._layers, states, gradient, named)
        return tuple(pulled[name] for name in self._names)


class AdamW(nn.Module):
    """One step of ``torch.optim.AdamW`` for one tensor, flat; what depends on the step's number is given.

    Args:
        betas: decay of the two moments.
    """

    def __init__(self, betas: tuple[float, float]) -> None:
        super().__init__()
        self._betas = betas

    def forward(
        self,
        tensor: Tensor,
        gradient: Tensor,
        first: Tensor,
        second: Tensor,
        clip: Tensor,
        keep: Tensor,
        rate: Tensor,
        root: Tensor,
        eps: Tensor,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """The tensor and both moments after the step.

        Args:
            tensor: weights, float32 [n], like the next three.
            gradient: theirs.
            first: moment.
            second: moment.
            clip: factor of the gradient.
            keep: ``1 - lr * weight_decay``.
            rate: ``lr / (1 - beta1**t)``.
            root: ``sqrt(1 - beta2**t)``.
            eps: under the quotient; an input, since the exporter takes so small a constant for nothing.
        """
        one, two = self._betas
        gradient = gradient * clip
        first = first + (gradient - first) * (1 - one)
        second = second * two + (1 - two) * gradient * gradient
        return tensor * keep - rate * first / (torch.sqrt(second) / root + eps), first, second


def _of_distortion(s: Tensor, v: Tensor) -> Tensor:
    """Gradient of ``0.25 * mean over tokens of (1 - cos(s, v))`` with respect to s; v stands still."""
    own, other = s.norm(dim=-1, keepdim=True), v.norm(dim=-1, keepdim=True)
    norms = own * other + COSINE_FLOOR
    dot = (s * v).sum(-1, keepdim=True)
    direction = torch.where(own > 0, s / own, torch.zeros_like(s))
    slope = dot * other * direction / (norms * norms) - v / norms
    tokens = torch.ones_like(dot).sum()
    return COMMITMENT_WEIGHT * slope / tokens


def _like_k(gradient: Tensor, k: Tensor) -> Tensor:
    """Sums a gradient of every scaled value to the shape of k, [1] or [code_dim]."""
    summed = gradient.reshape(-1, gradient.shape[-1]).sum(0)
    return summed if k.shape[0] > 1 else summed.sum(0, keepdim=True)
