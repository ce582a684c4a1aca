"""Half-precision features: what everything else is measured against."""

from __future__ import annotations

import numpy as np

from qtl_core.errors import CodeError
from qtl_training.rivals.rival import Array, OneByOne, exactly


class HalfPrecision(OneByOne):
    """Features as IEEE 754 half precision, little-endian, C order: two bytes each. The knob has no effect."""

    def __init__(self, width: int, tokens: int, levels: int = 16) -> None:
        super().__init__(width, tokens, levels)

    def encode_one(self, z: Array, levels: int) -> bytes:
        """Two bytes a feature."""
        return z.astype("<f2").tobytes()

    def decode_one(self, payload: bytes, levels: int) -> Array:
        """The features again.

        Raises:
            CodeError: for a wrong length, or features that are not finite.
        """
        data = exactly(payload, 2 * self.coded_tokens * self.channels)
        z = np.frombuffer(data, "<f2").astype(np.float32).reshape(self.coded_tokens, self.channels)
        if not np.isfinite(z).all():
            raise CodeError("half-precision features that are not finite")
        return z
