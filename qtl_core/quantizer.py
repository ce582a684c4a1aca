"""The quantizer in numpy: the reference that the PyTorch module and the ONNX graph are held against.

For features x of one modality (arXiv 2511.23402, Fig. 2)::

    z = W_in x + b_in                                        width -> code_dim
    s = clip(2 (z - lo + e) / (hi - lo + e) - 1, -1, 1)      "image": lo, hi = mu -+ k sigma; e = 1e-4
    s = clip((z - mu) / (k max(sigma, floor)), -1, 1)        "frozen": per channel
    q = round(s half - o) + o + half                         half = (L-1)/2, o = 1/2 for even L, else 0
    v = (q - half) / half
    x_hat = W_out v + b_out

Everything is float32, in this order of operations; ``round`` is half to even. From the authors' own z, mu and
sigma the "image" form gives their s bit for bit.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Final, Literal, TypeAlias

import numpy as np
import numpy.typing as npt

from .codes import Codes, bits_of
from .errors import CodeError

Floats: TypeAlias = npt.NDArray[np.float32]

EPSILON: Final = np.float32(1e-4)
"""The authors add it to numerator and denominator of the scaling, against pictures without contrast."""
SIGMA_FLOOR: Final = np.float32(1e-3)
"""Floor under a frozen channel's sigma: a channel that never moved must not blow up noise."""
DISTORTION_EPSILON: Final = np.float32(1e-3)


@dataclass(frozen=True, eq=False)
class Params:
    """Weights and settings of one modality's quantizer. Arrays are taken as float32.

    Attributes:
        in_proj_weight: [code_dim, merge² * width].
        in_proj_bias: [code_dim].
        out_proj_weight: [merge² * width, code_dim].
        out_proj_bias: [merge² * width].
        levels: L, 2 to 256.
        scaling: "image" (statistics of each picture) or "frozen" (``mean`` and ``std``).
        k: how many sigmas reach from the middle to the end of the scale; one number, or [code_dim].
        mean: [code_dim], for "frozen".
        std: [code_dim], for "frozen".
        merge: m; tokens form a square grid in row-major order, and m x m neighbours are coded as one.

    Raises:
        ValueError: shapes or settings that do not fit together, when built.
        CodeError: levels outside 2..256, when built.
    """

    in_proj_weight: Floats
    in_proj_bias: Floats
    out_proj_weight: Floats
    out_proj_bias: Floats
    levels: int
    scaling: Literal["image", "frozen"] = "image"
    k: float | Floats = 3.0
    mean: Floats | None = None
    std: Floats | None = None
    merge: int = 1

    def __post_init__(self) -> None:
        bits_of(self.levels)
        if self.scaling not in ("image", "frozen"):
            raise ValueError(f"scaling must be 'image' or 'frozen', not {self.scaling!r}")
        if self.merge < 1:
            raise ValueError(f"merge must be 1 or more, not {self.merge}")
        for name in (
            "in_proj_weight",
            "in_proj_bias",
            "out_proj_weight",
            "out_proj_bias",
            "k",
            "mean",
            "std",
        ):
            value = getattr(self, name)
            if value is not None:
                object.__setattr__(self, name, np.asarray(value, dtype=np.float32))
        if np.size(self.k) == 1:  # one number, however it was stored
            object.__setattr__(self, "k", np.asarray(self.k).reshape(()))
        if self.in_proj_weight.ndim != 2:
            raise ValueError(f"in_proj_weight must be a matrix, not of shape {self.in_proj_weight.shape}")
        code_dim, merged = self.in_proj_weight.shape
        if merged % self.merge**2:
            raise ValueError(f"in_proj takes {merged} features, no multiple of merge² = {self.merge**2}")
        self._expect("in_proj_bias", (code_dim,))
        self._expect("out_proj_weight", (merged, code_dim))
        self._expect("out_proj_bias", (merged,))
        k = np.asarray(self.k)
        if k.shape not in ((), (code_dim,)) or not bool(np.all(k > 0)):
            raise ValueError(f"k must be positive, one number or [{code_dim}], not {self.k!r}")
        if self.scaling == "frozen":
            if self.mean is None or self.std is None:
                raise ValueError("scaling 'frozen' needs mean and std")
            self._expect("mean", (code_dim,))
            self._expect("std", (code_dim,))

    def _expect(self, name: str, shape: tuple[int, ...]) -> None:
        found = getattr(self, name).shape
        if found != shape:
            raise ValueError(f"{name} must have shape {shape}, not {found}")

    @property
    def code_dim(self) -> int:
        """Codes per coded token."""
        return int(self.in_proj_weight.shape[0])

    @property
    def width(self) -> int:
        """Width of the features, before the merge."""
        return int(self.in_proj_weight.shape[1]) // self.merge**2


def encode(x: npt.ArrayLike, params: Params) -> Codes:
    """Features to codes.

    Args:
        x: [tokens, width], or [batch, tokens, width] where each item is scaled on its own.
        params: the quantizer.

    Returns:
        uint8 codes 0..L-1, [tokens / merge², code_dim], or the same with a batch.

    Raises:
        ValueError: a shape that does not fit.
    """
    return levels_of(scale(project(x, params), params), params.levels)


def decode(codes: npt.ArrayLike, params: Params) -> Floats:
    """Codes to features: ``x_hat = W_out v + b_out``, merged tokens split again.

    Args:
        codes: integers 0..L-1, [tokens, code_dim] or [batch, tokens, code_dim].
        params: the quantizer.

    Returns:
        float32 features, [tokens * merge², width], or the same with a batch.

    Raises:
        CodeError: a wrong shape, no integers, or a code outside its range.
    """
    array = np.asarray(codes)
    if array.ndim not in (2, 3) or array.shape[-1] != params.code_dim:
        raise CodeError(f"codes must be [.., tokens, {params.code_dim}], not of shape {array.shape}")
    v = values_of(array, params.levels)
    features = np.asarray(v @ params.out_proj_weight.T + params.out_proj_bias, dtype=np.float32)
    return split_tokens(features, params.merge)


def project(x: npt.ArrayLike, params: Params) -> Floats:
    """``z = W_in x + b_in`` on merged tokens: [.., tokens, width] -> [.., tokens / merge², code_dim]."""
    features = np.asarray(x, dtype=np.float32)
    if features.ndim not in (2, 3) or features.shape[-1] != params.width:
        raise ValueError(f"features must be [.., tokens, {params.width}], not of shape {features.shape}")
    merged = merge_tokens(features, params.merge)
    return np.asarray(merged @ params.in_proj_weight.T + params.in_proj_bias, dtype=np.float32)


def scale(z: npt.ArrayLike, params: Params) -> Floats:
    """The linear scaling: z to s in [-1, 1], same shape.

    With "image", mu and sigma (unbiased) are over the last two axes, so over one picture.
    """
    array = np.asarray(z, dtype=np.float32)
    k = np.asarray(params.k, dtype=np.float32)
    one, two = np.float32(1), np.float32(2)
    if params.mean is not None and params.std is not None and params.scaling == "frozen":
        s = (array - params.mean) / (k * np.maximum(params.std, SIGMA_FLOOR))
        return np.asarray(np.clip(s, -one, one), dtype=np.float32)
    mu = array.mean(axis=(-2, -1), keepdims=True, dtype=np.float32)
    sigma = array.std(axis=(-2, -1), keepdims=True, dtype=np.float32, ddof=1)
    lo, hi = mu - k * sigma, mu + k * sigma
    s = two * ((array - lo + EPSILON) / (hi - lo + EPSILON)) - one
    return np.asarray(np.clip(s, -one, one), dtype=np.float32)


def levels_of(s: npt.ArrayLike, levels: int) -> Codes:
    """Codes of scaled features: ``q = round(s half - o) + o + half``, for any L from 2 to 256.

    Args:
        s: float array in [-1, 1], any shape.
        levels: L.

    Returns:
        uint8 codes of the same shape.

    Raises:
        ValueError: a value outside [-1, 1], or not finite.
        CodeError: levels outside 2..256.
    """
    half, offset = _half(levels)
    array = np.asarray(s, dtype=np.float32)
    # Written so that NaN fails it too.
    if array.size and not bool(np.abs(array).max() <= 1):
        raise ValueError("scaled features must be finite and lie in [-1, 1]; the features are damaged")
    q = np.rint(array * half - offset) + (offset + half)
    codes: Codes = q.astype(np.uint8)
    return codes


def values_of(codes: npt.ArrayLike, levels: int) -> Floats:
    """What codes stand for: ``v = (q - half) / half``, in [-1, 1], float32, same shape.

    Raises:
        CodeError: no integers, a code outside 0..L-1, or levels outside 2..256.
    """
    half, _ = _half(levels)
    array = np.asarray(codes)
    if array.dtype.kind not in "ui":
        raise CodeError(f"codes must be integers, not {array.dtype}")
    if array.size and (int(array.min()) < 0 or int(array.max()) >= levels):
        raise CodeError(f"codes must lie in 0..{levels - 1}, found {int(array.min())} to {int(array.max())}")
    return np.asarray((array.astype(np.float32) - half) / half, dtype=np.float32)


def distortion(s: npt.ArrayLike, v: npt.ArrayLike) -> float:
    """The distortion (commitment) loss before its weight: ``mean over tokens of 1 - cos(s, v)``.

    1e-3 is added to the product of the norms, as the authors do.

    Args:
        s: scaled features [.., tokens, code_dim].
        v: their quantized values, same shape.
    """
    a, b = np.asarray(s, dtype=np.float32), np.asarray(v, dtype=np.float32)
    norms = np.linalg.norm(a, axis=-1) * np.linalg.norm(b, axis=-1)
    cosine: Any = (a * b).sum(axis=-1, dtype=np.float32) / (norms + DISTORTION_EPSILON)
    return float((np.float32(1) - cosine).mean(dtype=np.float32))


def merge_tokens(x: Floats, merge: int) -> Floats:
    """Puts m x m neighbours side by side: [.., g*g, width] -> [.., (g/m)², m² * width], rows first.

    Raises:
        ValueError: the tokens form no square grid whose side is a multiple of ``merge``.
    """
    if merge == 1:
        return x
    *batch, tokens, width = x.shape
    grid = _grid(tokens, merge)
    blocks = x.reshape(*batch, grid, merge, grid, merge, width)
    return np.moveaxis(blocks, -3, -4).reshape(*batch, grid * grid, merge * merge * width)


def split_tokens(x: Floats, merge: int) -> Floats:
    """Undoes ``merge_tokens``: [.., n, m² * width] -> [.., n * m², width]."""
    if merge == 1:
        return x
    *batch, tokens, merged = x.shape
    width = merged // merge**2
    grid = _grid(tokens * merge**2, merge)
    blocks = x.reshape(*batch, grid, grid, merge, merge, width)
    return np.moveaxis(blocks, -3, -4).reshape(*batch, tokens * merge**2, width)


def _grid(tokens: int, merge: int) -> int:
    """Blocks along one side of the token grid."""
    side = math.isqrt(tokens)
    if side * side != tokens or side % merge:
        raise ValueError(f"{tokens} tokens form no square grid that {merge} x {merge} blocks tile")
    return side // merge


def _half(levels: int) -> tuple[np.float32, np.float32]:
    bits_of(levels)
    return np.float32((levels - 1) / 2), np.float32(0.5 if levels % 2 == 0 else 0.0)
