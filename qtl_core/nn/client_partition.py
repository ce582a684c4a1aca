"""The device's side of the cut: picture in, packed codes out, as one graph."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from qtl_core.codes import bits_of
from qtl_core.nn.model import VisionEncoder
from qtl_core.nn.quantizer import Quantizer


class ClientPartition(nn.Module):
    """Vision tower, connector and quantizer encoder.

    Args:
        vision: tower and connector.
        quantizer: the vision quantizer; may be None where ``levels`` is.
        levels: L; None sends unquantized features in half precision.

    Raises:
        ValueError: levels without a quantizer.
    """

    def __init__(self, vision: VisionEncoder, quantizer: Quantizer | None, levels: int | None) -> None:
        super().__init__()
        if levels is not None and quantizer is None:
            raise ValueError(f"{levels} levels need a quantizer")
        self.vision = vision
        self.quantizer = quantizer if levels is not None else None
        self.levels = levels

    def features(self, picture: Tensor) -> Tensor:
        """Features at the cut, float32 [batch, picture tokens, width], of uint8 [batch, h, w, 3]."""
        features: Tensor = self.vision(picture)
        return features

    def scaled(self, picture: Tensor) -> Tensor:
        """What is rounded to codes: float32 [batch, tokens, code_dim] in [-1, 1]."""
        if self.quantizer is None:
            raise ValueError("an unquantized client partition has no scaled features")
        return self.quantizer.scale(self.quantizer.project(self.features(picture)), self.levels)

    def codes(self, picture: Tensor) -> Tensor:
        """Codes, uint8 [batch, tokens, code_dim]."""
        scaled = self.scaled(picture)
        if self.quantizer is None:
            raise ValueError("an unquantized client partition has no codes")
        return self.quantizer.to_codes(scaled, self.levels).to(torch.uint8)

    def forward(self, picture: Tensor) -> Tensor:
        """The payload of each picture: uint8 [batch, payload bytes], or float16 [batch, n] unquantized."""
        if self.quantizer is None or self.levels is None:
            return self.features(picture).flatten(1).to(torch.float16)
        codes = self.quantizer.to_codes(self.scaled(picture), self.levels)
        return pack_codes(codes.flatten(1), bits_of(self.levels))


def pack_codes(codes: Tensor, bits: int) -> Tensor:
    """Packs whole numbers below ``2**bits`` as ``qtl_core.codes.pack`` does, in operations every runtime has.

    Float arithmetic on numbers below 256 and powers of two is exact, so no integer kernels are needed.

    Args:
        codes: float [batch, n].
        bits: 1 to 8.

    Returns:
        uint8 [batch, ceil(n * bits / 8)]; the first code is in the lowest bits of the first byte.
    """
    if bits == 8:
        return codes.to(torch.uint8)
    if 8 % bits == 0:
        # Codes that never cross a byte's end are added up in their places.
        whole = functional.pad(codes, (0, -codes.shape[1] % (8 // bits)))
        place = 2.0 ** torch.arange(0, 8, bits, dtype=codes.dtype, device=codes.device)
        return (whole.reshape(-1, whole.shape[1] // (8 // bits), 8 // bits) * place).sum(-1).to(torch.uint8)
    place = 2.0 ** torch.arange(bits, dtype=codes.dtype, device=codes.device)
    shifted = torch.floor(codes[..., None] / place)
    planes = (shifted - 2 * torch.floor(shifted / 2)).flatten(1)
    planes = functional.pad(planes, (0, -planes.shape[1] % 8))
    octet = 2.0 ** torch.arange(8, dtype=codes.dtype, device=codes.device)
    return (planes.reshape(-1, planes.shape[1] // 8, 8) * octet).sum(-1).to(torch.uint8)
