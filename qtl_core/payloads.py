"""A picture's payload and what is in it: codes or half-precision features, tile by tile.

The client graph makes one payload for each tile. A picture's is all of them, one after the other; each packed
one begins with a byte of its own. Entropy-coded, a picture's tiles are one payload: the tokens of the first
tile, then those of the next.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from .bundle import Cut
from .codes import Codes, unpack
from .entropy import Tables, decode, encode
from .errors import CodeError


def read(data: bytes, cut: Cut, tiles: int = 1, tables: Tables | None = None) -> npt.NDArray[Any]:
    """The content of a picture's payload.

    Args:
        data: the payload.
        cut: what crosses for a tile.
        tiles: how many the picture has.
        tables: those it was entropy-coded under; None for packed codes, or features.

    Returns:
        Codes, uint8 [tiles, tokens, code_dim]; without a quantizer features, float16 of the same shape.

    Raises:
        CodeError: too few or too many bytes, a code out of range, a feature that is not finite.
    """
    shape = (tiles, cut.tokens, cut.code_dim)
    size = tiles * cut.payload_bytes
    if tables is not None:
        if len(data) > size:
            raise CodeError(
                f"entropy-coded codes of {len(data)} bytes are longer than packed ones ({size}): send those"
            )
        return decode(data, tables, (tiles * cut.tokens, cut.code_dim)).reshape(shape)
    if len(data) != size:
        what = "codes" if cut.quantized else "features"
        raise CodeError(f"a picture's {what} take {size} bytes{_of(tiles)}, got {len(data)}")
    if cut.quantized:
        each = cut.payload_bytes
        return np.stack(
            [unpack(data[n * each : (n + 1) * each], cut.levels, shape[1:]) for n in range(tiles)]
        )
    features = np.frombuffer(data, dtype="<f2").reshape(shape)
    if not np.isfinite(features).all():
        raise CodeError("a feature is not a finite number: the data is damaged")
    # In the machine's own byte order, and writable, as an engine expects.
    return features.astype(np.float16)


def entropy_coded(codes: Codes, tables: Tables) -> bytes:
    """Codes [tiles, tokens, code_dim] of a picture as one payload under tables."""
    return encode(codes.reshape(-1, codes.shape[-1]), tables)


def _of(tiles: int) -> str:
    return f" in {tiles} tiles" if tiles > 1 else ""
