"""Codes as bytes: fixed-length packing, lossless, in the authors' order.

A code of L levels takes ``ceil(log2 L)`` bits. Codes follow each other in C order; the first one lies in the
lowest bits of the first byte (little-endian bit order within a byte). Padding bits of the last byte are zero.
"""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt

from .errors import CodeError

MIN_LEVELS = 2
MAX_LEVELS = 256

Codes = npt.NDArray[np.uint8]


def bits_of(levels: int) -> int:
    """Bits one code of ``levels`` levels takes: ``ceil(log2 levels)``, 1 to 8.

    Raises:
        CodeError: ``levels`` is not an integer from 2 to 256.
    """
    # bool is an int to Python; True levels are a mistake.
    if isinstance(levels, bool) or not isinstance(levels, int | np.integer):
        raise CodeError(f"levels must be an integer from 2 to 256, not {levels!r}")
    if not MIN_LEVELS <= levels <= MAX_LEVELS:
        raise CodeError(f"levels must be from 2 to 256, not {levels}")
    return (int(levels) - 1).bit_length()


def packed_size(n_codes: int, levels: int) -> int:
    """Bytes that ``pack`` makes of ``n_codes`` codes.

    Raises:
        CodeError: a negative number of codes, or levels outside 2..256.
    """
    if n_codes < 0:
        raise CodeError(f"the number of codes cannot be {n_codes}")
    return (n_codes * bits_of(levels) + 7) // 8


def pack(codes: npt.ArrayLike, levels: int) -> bytes:
    """Packs codes with ``ceil(log2 levels)`` bits each.

    Args:
        codes: array of any shape and any integer type, values 0..levels-1; read in C order.
        levels: number of levels L, 2 to 256.

    Returns:
        ``packed_size(codes.size, levels)`` bytes.

    Raises:
        CodeError: not integers, a value outside 0..levels-1, or levels outside 2..256.
    """
    bits = bits_of(levels)
    array = np.asarray(codes)
    if array.size == 0:
        return b""
    if array.dtype.kind not in "ui":
        raise CodeError(f"codes must be integers, not {array.dtype}")
    low, high = int(array.min()), int(array.max())
    if low < 0 or high >= levels:
        raise CodeError(f"codes must lie in 0..{levels - 1}, found {low if low < 0 else high}")
    flat = array.astype(np.uint8).reshape(-1)
    if bits == 8:
        return flat.tobytes()
    # One column per bit of a code, lowest first; what np.packbits then sees is the bit stream itself.
    stream = np.unpackbits(flat[:, None], axis=1, count=bits, bitorder="little")
    return np.packbits(stream.reshape(-1), bitorder="little").tobytes()


def unpack(data: bytes | bytearray | memoryview, levels: int, shape: int | tuple[int, ...]) -> Codes:
    """Unpacks what ``pack`` packed.

    Args:
        data: the packed bytes, exactly as many as the shape needs.
        levels: number of levels L, 2 to 256.
        shape: shape of the codes.

    Returns:
        uint8 array of that shape, writable.

    Raises:
        CodeError: wrong number of bytes, a code of ``levels`` or more, padding bits that are not zero,
            a negative shape, or levels outside 2..256.
    """
    bits = bits_of(levels)
    sizes = (shape,) if isinstance(shape, int) else tuple(shape)
    if any(size < 0 for size in sizes):
        raise CodeError(f"the shape of the codes cannot be {sizes}")
    count = math.prod(sizes)
    expected, found = packed_size(count, levels), memoryview(data).nbytes
    if found != expected:
        raise CodeError(
            f"{count} codes of {levels} levels take {expected} bytes, got {found}; "
            "the sender uses another cut, or the data is incomplete"
        )
    raw = np.frombuffer(data, dtype=np.uint8)
    if bits == 8:
        codes = raw.copy()
    else:
        stream = np.unpackbits(raw, bitorder="little")
        if stream[count * bits :].any():
            raise CodeError("the padding bits of the last byte are not zero; the data is damaged")
        columns = stream[: count * bits].reshape(count, bits)
        codes = np.packbits(columns, axis=1, bitorder="little").reshape(-1)
    # Every bit pattern is a code when L is a power of two; otherwise some are not.
    if count and levels != 1 << bits and int(codes.max()) >= levels:
        raise CodeError(f"codes must lie in 0..{levels - 1}, found {int(codes.max())}; the data is damaged")
    shaped: Codes = codes.reshape(sizes)
    return shaped
