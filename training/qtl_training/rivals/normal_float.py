"""NF-k block quantization with double quantization (QLoRA, arXiv 2305.14314)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from scipy.stats import norm
from torch import Tensor

from qtl_core.errors import CodeError
from qtl_training.rivals.coding import Coder
from qtl_training.rivals.projection import Basis
from qtl_training.rivals.rival import Array, ByteRival

Ends = Literal["range", "largest"]
_LARGEST_SCALE = 255


@dataclass(frozen=True)
class Blocks:
    """Rows of features in blocks, quantized.

    Attributes:
        codes: uint8 [rows, blocks, block].
        low: float32 [rows, blocks, 1], each block's smallest feature; 0 where blocks are symmetric.
        scales: uint8 [rows, blocks], each block's scale between the ends.
        ends: float32 [rows, 2], the smallest and largest scale of a row.
    """

    codes: NDArray[np.uint8]
    low: Array
    scales: NDArray[np.uint8]
    ends: Array


def range_table(bits: int) -> Array:
    """2**bits normal quantiles, symmetric, from -1 to 1, rounded to half precision; for ``ends="range"``."""
    count = 2**bits
    quantiles = norm.ppf((np.arange(count) + 0.5) / count)
    return np.asarray((quantiles / quantiles[-1]).astype(np.float16), np.float32)


def largest_table(bits: int) -> Array:
    """QLoRA's table: normal quantiles from -1 to 1 with an exact 0, one more of them above it than below."""
    count = 2**bits
    edge = (1 / (2 * count) + 1 / (2 * (count - 1))) / 2
    below = norm.ppf(np.linspace(edge, 0.5, count // 2))
    above = norm.ppf(np.linspace(0.5, 1 - edge, count // 2 + 1))[1:]
    return np.asarray(np.concatenate([below / -below[0], above / above[-1]]), np.float32)


def quantized(x: Array, bits: int, block: int, ends: Ends, low_type: str = "<f4") -> Blocks:
    """Quantizes rows [rows, features] in blocks of ``block`` features.

    With "range" a block is mapped from its smallest and largest feature to -1 and 1, as the authors of
    Quantized-TinyLLaVA do in their NF-k baseline; with "largest" it is divided by its largest
    magnitude, as in QLoRA. Codes are the nearest entries under the exact scale. Scales are then
    quantized themselves, to 8 bits between the row's smallest and largest.

    Args:
        x: float32 [rows, features].
        bits: k.
        block: features in a block; divides their number.
        ends: how a block is scaled.
        low_type: precision the smallest features are sent in.
    """
    parts = x.reshape(len(x), -1, block)
    if ends == "range":
        low = parts.min(2, keepdims=True)
        scale = parts.max(2, keepdims=True) - low
        low = low.astype(low_type).astype(np.float32)
        unit = (parts - low) / _safe(scale) * 2 - 1
    else:
        low = np.zeros((*parts.shape[:2], 1), np.float32)
        scale = np.abs(parts).max(2, keepdims=True)
        unit = parts / _safe(scale)
    codes = np.abs(unit[..., None] - table_of(bits, ends)).argmin(-1).astype(np.uint8)
    flat = scale[..., 0]
    first, last = flat.min(1, keepdims=True), flat.max(1, keepdims=True)
    scales = np.round((flat - first) / _safe(last - first) * _LARGEST_SCALE).astype(np.uint8)
    return Blocks(codes, low, scales, np.concatenate([first, last], 1))


def restored(blocks: Blocks, bits: int, ends: Ends) -> Array:
    """The features of quantized rows, float32 [rows, features]."""
    first, last = blocks.ends[:, :1], blocks.ends[:, 1:]
    scale = blocks.scales.astype(np.float32) / np.float32(_LARGEST_SCALE) * (last - first) + first
    unit = table_of(bits, ends)[blocks.codes]
    if ends == "range":
        unit = (unit + np.float32(1)) / np.float32(2)
    out: Array = unit * scale[..., None] + blocks.low
    return out.reshape(len(out), -1)


def table_of(bits: int, ends: Ends) -> Array:
    """The table of a form."""
    return range_table(bits) if ends == "range" else largest_table(bits)


class NormalFloat(ByteRival):
    """Blocks of a picture's features as NF-k codes, their scales as 8 bits.

    The payload is the two ends of the scales (4 bytes each), a byte for each block's scale, two for its
    smallest feature where blocks are mapped by range, and the codes. The knob is 2**k.

    Args:
        width, tokens, levels, basis, code_dim, merge: as for every rival.
        block: features in a block.
        ends: "largest" (QLoRA) or "range" (the baseline of Quantized-TinyLLaVA).

    Raises:
        ValueError: if blocks do not tile a picture's features.
    """

    coded = True

    def __init__(
        self,
        width: int,
        tokens: int,
        levels: int = 16,
        *,
        block: int = 64,
        ends: Ends = "largest",
        basis: Basis = "none",
        code_dim: int = 0,
        merge: int = 1,
    ) -> None:
        super().__init__(width, tokens, levels, basis=basis, code_dim=code_dim, merge=merge)
        self.block, self.ends = block, ends
        features = self.coded_tokens * self.channels
        if features % block:
            raise ValueError(f"blocks of {block} do not tile {features} features")
        self._blocks = features // block
        self._coders: dict[int, Coder] = {}

    def measure(self, z: Tensor, levels: int) -> None:
        """Fits the code tables."""
        codes = self._quantized(z.flatten(1).numpy(), levels).codes
        self.coder(levels).calibrate(codes.reshape(len(z), self.coded_tokens, self.channels))

    def encode(self, z: Array, levels: int) -> list[bytes]:
        """Ends, scales, smallest features, codes."""
        blocks = self._quantized(z.reshape(len(z), -1), levels)
        parts = [blocks.ends.astype("<f4"), blocks.scales]
        if self.ends == "range":
            parts.append(blocks.low.astype("<f2"))
        sides = [b"".join(part[row].tobytes() for part in parts) for row in range(len(z))]
        codes = self.coder(levels).encode(blocks.codes.reshape(z.shape), packed=self.packed)
        return [side + coded for side, coded in zip(sides, codes, strict=True)]

    def decode(self, payloads: Sequence[bytes], levels: int) -> Array:
        """The features again.

        Raises:
            CodeError: if the bytes are no payload at this knob.
        """
        lows = self._blocks if self.ends == "range" else 0
        size = 8 + self._blocks + 2 * lows
        for payload in payloads:
            if len(payload) < size:
                raise CodeError(f"a payload of {len(payload)} bytes; its scales alone take {size}")
        side = np.frombuffer(b"".join(payload[:size] for payload in payloads), np.uint8).reshape(-1, size)
        low = side[:, 8 + self._blocks :].copy().view("<f2").astype(np.float32)
        codes = self.coder(levels).decode([payload[size:] for payload in payloads])
        blocks = Blocks(
            codes.reshape(-1, self._blocks, self.block),
            low[..., None] if lows else np.zeros((len(payloads), self._blocks, 1), np.float32),
            side[:, 8 : 8 + self._blocks],
            side[:, :8].copy().view("<f4").astype(np.float32),
        )
        return restored(blocks, _bits(levels), self.ends).reshape(-1, self.coded_tokens, self.channels)

    def restored(self, z: Array, levels: int) -> Array:
        """Without the codes' bytes, which change nothing."""
        blocks = self._quantized(z.reshape(len(z), -1), levels)
        return restored(blocks, _bits(levels), self.ends).reshape(z.shape)

    def coder(self, levels: int) -> Coder:
        """The codes' coder at one knob."""
        if levels not in self._coders:
            self._coders[levels] = Coder((levels,) * self.channels, self.coded_tokens)
        return self._coders[levels]

    def _quantized(self, rows: Array, levels: int) -> Blocks:
        return quantized(rows, _bits(levels), self.block, self.ends, "<f2")


def _bits(levels: int) -> int:
    bits = levels.bit_length() - 1
    if levels != 2**bits or not 2 <= bits <= 8:
        raise ValueError(f"NF-k has 2**k levels, k from 2 to 8, not {levels}")
    return bits


def _safe(scale: Array) -> Array:
    """The scale, 1 where it is 0: a block of equal features has no range."""
    return np.where(scale > 0, scale, np.float32(1))
