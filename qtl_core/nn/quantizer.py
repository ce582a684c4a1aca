"""The learnt, FSQ-like quantizer of Quantized-TinyLLaVA (arXiv 2511.23402, Fig. 2) in PyTorch.

``qtl_core.quantizer`` is the same arithmetic in numpy; both give identical codes from the same
scaled array, for every number of levels.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Literal, get_args

import torch
from torch import Tensor, nn
from torch.nn import functional

from qtl_core import quantizer as reference

Scaling = Literal["image", "frozen"]
Centre = Literal["mean", "median", "rare"]
Rotation = Callable[[Tensor], Tensor]
SCALINGS: tuple[str, ...] = get_args(Scaling)
COMMITMENT_WEIGHT = 0.25
COSINE_FLOOR = 1e-3  # the authors' guard on the product of norms
RANGE_FLOOR = 1e-4  # the authors' guard on the range of the min-max
SIGMA_FLOOR = 1e-3  # under the running sigma of scaling = "frozen"
MOMENTUM = 0.02
_RARE = 2.0  # deviations above the median where the rare begins


class Quantizer(nn.Module):
    """Maps features to codes of ``levels`` levels and back, straight-through in training.

    Args:
        width: width of the features.
        code_dim: width of the codes; at most ``width * merge**2`` makes sense.
        levels: default number of levels L, from 2 to 256; every call may name another.
        scaling: "image" scales by mean and deviation of one picture's whole [tokens, code_dim]
            array, as the authors do; "frozen" by running statistics of each channel.
        k: half the range in standard deviations: one number, one for each channel, or a mapping
            from level counts to either, between which it is interpolated over log2 L.
        merge: side of the square of neighbouring tokens that share one code vector.
        centre: what ``scaling = "frozen"`` takes for a channel's middle. Features that are mostly absent
            rest at the median, so their codes do too. "rare" is half way from there to the mean of what
            lies more than two deviations above, and so between the two levels of one bit.
        learn_k: whether ``k`` is trained.

    Attributes:
        rate_weight: weight of the rate term in the loss, ``rate``'s bits a coded token; 0 is the
            paper's loss.

    Raises:
        ValueError: for a setting out of range.
    """

    k: Tensor
    k_levels: Tensor
    mean: Tensor
    std: Tensor

    def __init__(
        self,
        width: int,
        code_dim: int,
        levels: int,
        scaling: Scaling = "image",
        k: float | Sequence[float] | Mapping[int, float | Sequence[float]] = 3.0,
        *,
        merge: int = 1,
        centre: Centre = "mean",
        learn_k: bool = False,
    ) -> None:
        super().__init__()
        if scaling not in SCALINGS:
            raise ValueError(f"scaling {scaling!r} is not one of {', '.join(SCALINGS)}")
        if merge < 1:
            raise ValueError(f"merge {merge} must be at least 1")
        self.width, self.code_dim, self.merge = width, code_dim, merge
        self.scaling: Scaling = scaling
        self.centre: Centre = centre
        self.levels = _checked(levels)
        self.in_proj = nn.Linear(width * merge**2, code_dim)
        self.out_proj = nn.Linear(code_dim, width * merge**2)
        by_levels: list[int] = []
        if isinstance(k, Mapping):
            by_levels = sorted(_checked(int(count)) for count in k)
            values = torch.stack([_scale(k[count], code_dim) for count in by_levels])
            # One number for each level count stays a vector; only channels of their own make a matrix.
            values = values[:, 0] if values.shape[1] == 1 else values
        else:
            values = _scale(k, code_dim)
        if values.min() <= 0:
            raise ValueError(f"k must be positive, not {values.min():g}")
        self.rate_weight = 0.0
        self.k = nn.Parameter(values, requires_grad=learn_k)
        self.register_buffer("k_levels", torch.tensor(by_levels, dtype=torch.int64))
        self.register_buffer("mean", torch.zeros(code_dim))
        self.register_buffer("std", torch.ones(code_dim))

    def forward(self, x: Tensor, levels: int | None = None) -> tuple[Tensor, Tensor]:
        """Quantizes and restores ``x``.

        Args:
            x: float [..., tokens, width].
            levels: L for this call; the module's own by default.

        Returns:
            The restored features, shaped like ``x``, and the loss: distortion (commitment),
            ``0.25 * mean(1 - cos(s, sg(v)))`` over tokens, and ``rate_weight`` times the bits of a
            coded token.
        """
        s = self.scale(self.project(x), levels)
        v = self.values(self.to_codes(s, levels), levels).to(s.dtype)
        straight_through = s + (v - s).detach()
        loss = COMMITMENT_WEIGHT * distortion(s, v.detach())
        if self.rate_weight:
            loss = loss + self.rate_weight * self.rate(s, levels)
        return self.restore(straight_through), loss

    def encode(self, x: Tensor, levels: int | None = None) -> Tensor:
        """Returns the codes of ``x`` [..., tokens, width]: uint8 [..., tokens / merge**2, code_dim]."""
        return self.to_codes(self.scale(self.project(x), levels), levels).to(torch.uint8)

    def decode(self, codes: Tensor, levels: int | None = None) -> Tensor:
        """Returns the features of codes [..., tokens / merge**2, code_dim]: [..., tokens, width]."""
        return self.restore(self.values(codes, levels).to(self.out_proj.weight.dtype))

    def project(self, x: Tensor) -> Tensor:
        """``z = W_in x + b_in`` on merged tokens; in training, running statistics follow z."""
        z: Tensor = self.in_proj(merge_tokens(x, self.merge))
        if self.training and self.scaling == "frozen":
            self._track(z.detach())
        return z

    def scale(self, z: Tensor, levels: int | None = None) -> Tensor:
        """Linear scaling of ``z`` [..., tokens, code_dim] to [-1, 1]."""
        k = self.k_for(self.levels if levels is None else levels)
        if self.scaling == "frozen":
            return torch.clamp((z - self.mean) / (k * self.std.clamp_min(SIGMA_FLOOR)), -1, 1)
        mean = z.mean((-2, -1), keepdim=True)
        sigma = z.std((-2, -1), keepdim=True)
        low, high = mean - k * sigma, mean + k * sigma
        scaled = 2 * ((z - low + RANGE_FLOOR) / (high - low + RANGE_FLOOR)) - 1
        return torch.clamp(scaled, -1, 1)

    def to_codes(self, s: Tensor, levels: int | None = None) -> Tensor:
        """Codes 0..L-1 of scaled features, as float: ``round(s * half - o) + o + half``."""
        half, offset = _half_and_offset(self.levels if levels is None else levels)
        return torch.round(s.detach() * half - offset) + (offset + half)

    def rate(self, s: Tensor, levels: int | None = None) -> Tensor:
        """Bits that the codes of one coded token take, estimated so that gradients flow.

        The sum over channels of the entropy of the codes' histogram over the batch, which is what a
        static entropy coder pays. Each feature counts for its two nearest codes, by its distance to
        them, so the estimate is differentiable where a histogram of codes is not.

        Args:
            s: scaled features [..., tokens, code_dim], in [-1, 1].
            levels: L for this call; the module's own by default.
        """
        count = self.levels if levels is None else levels
        half, _ = _half_and_offset(count)
        place = (s.reshape(-1, self.code_dim) + 1) * half
        lower = place.detach().floor().clamp(0, count - 2)
        upper_share = place - lower
        index = lower.long()
        histogram = place.new_zeros(count, self.code_dim)
        histogram = histogram.scatter_add(0, index, 1 - upper_share).scatter_add(0, index + 1, upper_share)
        share = histogram / len(place)
        return -(share * torch.log2(share.clamp_min(1e-9))).sum()

    def values(self, codes: Tensor, levels: int | None = None) -> Tensor:
        """Values in [-1, 1] of codes: ``(q - half) / half``, float32."""
        return values_of(codes, self.levels if levels is None else levels)

    def restore(self, values: Tensor) -> Tensor:
        """``W_out v + b_out``, merged tokens split again."""
        return split_tokens(self.out_proj(values), self.merge)

    def k_for(self, levels: int) -> Tensor:
        """k at ``levels``, [1] or [code_dim]: interpolated over log2 L where level counts have their own."""
        if self.k_levels.numel() == 0:
            return self.k
        anchors = [math.log2(count) for count in self.k_levels.tolist()]
        at = min(max(math.log2(_checked(levels)), anchors[0]), anchors[-1])
        upper = next(index for index, anchor in enumerate(anchors) if anchor >= at)
        if upper == 0:
            return self.k[0].reshape(-1)
        share = (at - anchors[upper - 1]) / (anchors[upper] - anchors[upper - 1])
        return (self.k[upper - 1] * (1 - share) + self.k[upper] * share).reshape(-1)

    def params(self, levels: int | None = None) -> reference.Params:
        """The numpy reference's parameters at ``levels``."""
        count = self.levels if levels is None else _checked(levels)
        k = self.k_for(count).detach().cpu().numpy()
        return reference.Params(
            in_proj_weight=self.in_proj.weight.detach().cpu().numpy(),
            in_proj_bias=self.in_proj.bias.detach().cpu().numpy(),
            out_proj_weight=self.out_proj.weight.detach().cpu().numpy(),
            out_proj_bias=self.out_proj.bias.detach().cpu().numpy(),
            levels=count,
            scaling=self.scaling,
            k=k.item() if k.size == 1 else k,
            mean=self.mean.cpu().numpy() if self.scaling == "frozen" else None,
            std=self.std.clamp_min(SIGMA_FLOOR).cpu().numpy() if self.scaling == "frozen" else None,
            merge=self.merge,
        )

    @torch.no_grad()
    def fit(self, x: Tensor, *, seed: int = 0, rotate: Rotation | None = None) -> None:
        """Initialises projections and statistics from features, without gradients.

        ``in_proj`` takes the principal directions of the merged features and rotates them. By
        default each is scaled to the root of its deviation and the rotation is random, which spreads
        the information evenly over the codes; ``out_proj`` is the least-squares map back from z.
        With ``rotate`` the directions are whitened and it chooses; ``out_proj`` is then the
        least-squares map back from the values of the codes at the module's own L.

        Args:
            x: float [pictures, tokens, width], a few hundred pictures.
            seed: seed of the random rotation.
            rotate: takes whitened features float64 [n, rank] and returns a rotation [code_dim, rank].
        """
        flat = merge_tokens(x, self.merge).reshape(-1, self.in_proj.in_features).double()
        centre = flat.mean(0)
        _, variance, directions = torch.linalg.svd(flat - centre, full_matrices=False)
        rank = min(self.code_dim, directions.shape[0])
        deviation = (variance[:rank] / math.sqrt(len(flat) - 1)).clamp_min(1e-6)
        if rotate is None:
            generator = torch.Generator().manual_seed(seed)
            rotation, _ = torch.linalg.qr(
                torch.randn(self.code_dim, rank, generator=generator, dtype=torch.float64)
            )
            # The square root of the deviation: between keeping every direction's energy and whitening it.
            weight = rotation @ (directions[:rank] / deviation.sqrt()[:, None])
        else:
            whitening = directions[:rank] / deviation[:, None]
            weight = rotate((flat - centre) @ whitening.T) @ whitening
        z = (flat - centre) @ weight.T
        self.in_proj.weight.copy_(weight)
        self.in_proj.bias.copy_(-(weight @ centre))
        self.mean.copy_(self.middle(z))
        self.std.copy_(z.std(0))
        if rotate is None:
            back = torch.linalg.lstsq(z, flat - centre, driver="gelsd").solution
            # Values are s = z / (k sigma); out_proj undoes that scaling for the module's own L.
            sigma = z.std(0) if self.scaling == "frozen" else z.std().expand(self.code_dim)
            scale = self.k_for(self.levels).double() * sigma
            self.out_proj.weight.copy_((back * scale[:, None]).T)
            self.out_proj.bias.copy_(centre)
            return
        values = self.values(self.to_codes(self.scale(z.float().reshape(*x.shape[:-2], -1, self.code_dim))))
        known = functional.pad(values.reshape(-1, self.code_dim).double(), (0, 1), value=1.0)
        back = torch.linalg.lstsq(known, flat, driver="gelsd").solution
        self.out_proj.weight.copy_(back[:-1].T)
        self.out_proj.bias.copy_(back[-1])

    def middle(self, z: Tensor) -> Tensor:
        """What ``centre`` takes for each channel's middle, [code_dim], of z [n, code_dim]."""
        if self.centre == "mean":
            return z.mean(0)
        # The lower median, by sorting: an exported graph has no other way to it.
        median, deviation = z.sort(0).values[(z.shape[0] - 1) // 2], z.std(0)
        if self.centre == "median":
            return median
        far = (z > median + _RARE * deviation).to(z.dtype)
        # Where nothing is so far, as far as one in twenty would be.
        rare = torch.where(far.sum(0) > 0, (z * far).sum(0) / far.sum(0).clamp_min(1), median + 4 * deviation)
        return (median + rare) / 2

    @torch.no_grad()
    def _track(self, z: Tensor) -> None:
        flat = z.reshape(-1, self.code_dim).float()
        if len(flat) > 1:
            self.mean.lerp_(self.middle(flat), MOMENTUM)
            self.std.lerp_(flat.std(0), MOMENTUM)


class Dequantizer(nn.Module):
    """The server's part of a quantizer: codes in, features out.

    Args:
        width: width of the features.
        code_dim: width of the codes.
        levels: L.
        merge: side of the square of tokens that share a code vector.
    """

    def __init__(self, width: int, code_dim: int, levels: int, merge: int = 1) -> None:
        super().__init__()
        self.levels, self.merge = _checked(levels), merge
        self.out_proj = nn.Linear(code_dim, width * merge**2)

    def forward(self, codes: Tensor) -> Tensor:
        """Features [..., tokens, width] of codes [..., tokens / merge**2, code_dim]."""
        values = values_of(codes, self.levels).to(self.out_proj.weight.dtype)
        return split_tokens(self.out_proj(values), self.merge)


def values_of(codes: Tensor, levels: int) -> Tensor:
    """Values in [-1, 1] of codes of ``levels`` levels: ``(q - half) / half``, float32."""
    half, _ = _half_and_offset(levels)
    return (codes.to(torch.float32) - half) / half


def distortion(s: Tensor, v: Tensor) -> Tensor:
    """Mean over tokens of ``1 - cos(s, v)``, 1e-3 added to the product of norms, before its weight."""
    norms = s.norm(dim=-1) * v.norm(dim=-1) + COSINE_FLOOR
    return (1 - (s * v).sum(-1) / norms).mean()


def merge_tokens(x: Tensor, merge: int) -> Tensor:
    """Joins each ``merge`` x ``merge`` square of tokens: [..., t, w] -> [..., t / merge**2, w * merge**2].

    Raises:
        ValueError: if the tokens do not form a square grid that ``merge`` divides.
    """
    if merge == 1:
        return x
    tokens, width = x.shape[-2], x.shape[-1]
    side = math.isqrt(tokens)
    if side * side != tokens or side % merge:
        raise ValueError(f"{tokens} tokens are not a square grid that merges {merge} x {merge}")
    small = side // merge
    grid = x.reshape(-1, small, merge, small, merge, width).transpose(2, 3)
    return grid.reshape(*x.shape[:-2], small * small, merge * merge * width)


def split_tokens(x: Tensor, merge: int) -> Tensor:
    """The inverse of ``merge_tokens``."""
    if merge == 1:
        return x
    small = math.isqrt(x.shape[-2])
    width = x.shape[-1] // merge**2
    grid = x.reshape(-1, small, small, merge, merge, width).transpose(2, 3)
    return grid.reshape(*x.shape[:-2], (small * merge) ** 2, width)


def _scale(k: float | Sequence[float], code_dim: int) -> Tensor:
    """k as a vector of one number, or of one for each channel."""
    values = [float(k)] if isinstance(k, int | float) else [float(value) for value in k]
    if len(values) not in (1, code_dim):
        raise ValueError(f"k has {len(values)} values; it takes one, or one for each of {code_dim} channels")
    return torch.tensor(values)


def _checked(levels: int) -> int:
    if not 2 <= levels <= 256:
        raise ValueError(f"levels {levels} is not between 2 and 256")
    return levels


def _half_and_offset(levels: int) -> tuple[float, float]:
    return (_checked(levels) - 1) / 2, 0.0 if levels % 2 else 0.5
