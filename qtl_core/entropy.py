"""Codes as bytes, entropy-coded: lossless, and as few bytes as the tables allow.

``encode`` picks one of two forms by the number of tokens and the tables alone, so that both ends agree on it
and no byte is spent on saying so: a range coder where the payload is short and its end would otherwise cost
more than its codes (``qtl_core.range_coder``), interleaved rANS where it is long and must be fast
(``qtl_core.rans``). docs/protocol.md describes both byte by byte.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final, TypeAlias

import numpy as np
import numpy.typing as npt

from . import range_coder, rans
from .codes import Codes
from .entropy_tables import Flat, Index, Tables
from .errors import CodeError
from .range_coder import TOTAL

__all__ = ["Tables", "encode", "decode", "encode_batch", "decode_batch", "lanes_for"]

LANE_BYTES: Final = 1024
"""Expected bytes for each lane: the three that a lane's state costs are then 0.3 % of them."""
MIN_LANES: Final = 16
"""With fewer, one symbol after another is as fast, and ends in fewer bytes."""
MAX_LANES: Final = 512

# From so many on, short payloads are decoded faster side by side than one by one.
_FEW_PAYLOADS: Final = 96


Decoder: TypeAlias = range_coder.Decoder | rans.Decoder


def lanes_for(rows: int, tables: Tables) -> int:
    """How many rANS lanes code ``rows`` tokens; 0 means the range coder.

    Whole numbers decide, so that every machine comes to the same.
    """
    expected = rows * tables.row_bits // (256 * 8)
    most = min(rows, expected // LANE_BYTES, MAX_LANES)
    if most < MIN_LANES:
        return 0
    # As even as can be: 729 tokens on at most 256 lanes are three blocks of 243.
    return -(-rows // -(-rows // most))


def encode(codes: npt.ArrayLike, tables: Tables) -> bytes:
    """Codes an array of codes.

    Args:
        codes: integers of any shape whose last axis is the tables' channels; read in C order.
        tables: measured on codes of the same cut.

    Returns:
        The bytes; none for no codes.

    Raises:
        CodeError: not integers, a value outside 0..levels-1, or another number of channels.
    """
    rows = tables.checked_rows(codes)
    return _encode(rows, tables.choose(rows), tables)


def encode_batch(codes: npt.ArrayLike, tables: Tables) -> list[bytes]:
    """Codes many arrays of the same shape: ``[encode(one, tables) for one in codes]``, classes found at once.

    Raises:
        CodeError: as ``encode``.
    """
    array = np.asarray(codes)
    if not array.ndim:
        raise CodeError("a batch of codes needs an axis to go along")
    rows = tables.checked_rows(array)
    each = tables.rows_of(array.shape[1:])
    classes = tables.choose(rows)
    slices = [slice(each * index, each * (index + 1)) for index in range(len(array))]
    return [_encode(rows[part], classes[part], tables) for part in slices]


def decode(data: bytes | bytearray | memoryview, tables: Tables, shape: int | tuple[int, ...]) -> Codes:
    """Decodes what ``encode`` made of codes of this shape, under the same tables.

    Args:
        data: the bytes, all of them and nothing else.
        tables: the encoder's.
        shape: of the codes; the last axis is the tables' channels.

    Returns:
        uint8 array of that shape, writable.

    Raises:
        CodeError: data that was cut short or extended, most other damage, or a shape that does not fit the
            tables. What gets past this (one flipped bit in 35 in short data) a checksum has to find.
    """
    sizes = (shape,) if isinstance(shape, int) else tuple(shape)
    rows = tables.rows_of(sizes)
    return _decode([bytes(data)], tables, rows).reshape(sizes)


def decode_batch(payloads: Sequence[bytes], tables: Tables, shape: int | tuple[int, ...]) -> Codes:
    """Decodes many payloads of the same shape at once, faster than one by one.

    Returns:
        uint8 [payloads, *shape].

    Raises:
        CodeError: as ``decode``; the message says which payload.
    """
    sizes = (shape,) if isinstance(shape, int) else tuple(shape)
    rows = tables.rows_of(sizes)
    return _decode(payloads, tables, rows).reshape(len(payloads), *sizes)


def _encode(rows: Codes, classes: Index, tables: Tables) -> bytes:
    if not len(rows):
        return b""
    starts, frequencies = tables.of_rows(rows, classes)
    lanes = lanes_for(len(rows), tables)
    if not lanes:
        return range_coder.encode(starts.ravel().tolist(), frequencies.ravel().tolist())
    blocks = -(-len(rows) // lanes)
    missing = ((0, blocks * lanes - len(rows)), (0, 0))
    # A lane without a token in the last block codes symbols that are certain, which cost and change nothing.
    return rans.encode(
        _by_step(np.pad(starts, missing), blocks),
        _by_step(np.pad(frequencies, missing, constant_values=TOTAL), blocks),
    )


def _by_step(symbols: rans.U32, blocks: int) -> rans.U32:
    """Symbols [tokens, columns] in the order of rANS steps, [blocks * columns, lanes]."""
    lanes, columns = len(symbols) // blocks, symbols.shape[1]
    steps = symbols.reshape(blocks, lanes, columns).transpose(0, 2, 1)
    return np.ascontiguousarray(steps).reshape(blocks * columns, lanes)


def _decode(payloads: Sequence[bytes], tables: Tables, rows: int) -> Codes:
    """Codes uint8 [payloads, rows, channels]."""
    out = np.empty((len(payloads), rows, tables.channels), np.uint8)
    lanes = lanes_for(rows, tables)
    for index, payload in enumerate(payloads):
        try:
            if lanes:
                rans.check_length(payload, lanes)
            elif not rows and payload:
                raise CodeError(f"no codes take no bytes, got {len(payload)}; the sender uses another cut")
            elif rows and len(payloads) < _FEW_PAYLOADS:
                data = range_coder.decode(payload, rows, tables.of_classes, tables.of_class)
                out[index] = np.frombuffer(data, np.uint8).reshape(rows, -1)
        except CodeError as error:
            raise _named(str(error), index, len(payloads)) from error
    if lanes and payloads:
        _decode_at_once(rans.Decoder(payloads, lanes), lanes, tables, out)
    elif rows and len(payloads) >= _FEW_PAYLOADS:
        _decode_at_once(range_coder.Decoder(payloads), 1, tables, out)
    return out


def _decode_at_once(
    decoder: rans.Decoder | range_coder.Decoder, lanes: int, tables: Tables, out: Codes
) -> None:
    """Decodes blocks of tokens, one token of each lane of each payload at a time."""
    count, rows, channels = out.shape
    flat, classes = tables.flat, tables.flat_classes
    token = np.tile(np.arange(lanes), count)
    for block in range(-(-rows // lanes)):
        here = block * lanes + token < rows
        chosen = np.zeros(len(token), np.intp)
        if tables.classes > 1:
            chosen = _next(decoder, classes, np.where(here, 0, classes.certain))
        at = np.where(here, chosen * channels * flat.stride, flat.certain)
        step = np.where(here, flat.stride, 0)
        found = np.empty((channels, len(token)), np.uint8)
        for channel in range(channels):
            found[channel] = _next(decoder, flat, at)
            at += step
        part = slice(block * lanes, min((block + 1) * lanes, rows))
        out[:, part] = found.T.reshape(count, lanes, channels)[:, : part.stop - part.start]
    for index, wrong in enumerate(decoder.finish()):
        if wrong:
            raise _named(wrong, index, count)


def _next(decoder: Decoder, flat: Flat, tables: Index) -> Index:
    """The next symbol of every lane, under the tables at these places."""
    slots = decoder.slots()
    symbols, starts, frequencies = flat.find(slots, tables)
    decoder.take(slots, starts, frequencies)
    return symbols


def _named(message: str, index: int, count: int) -> CodeError:
    return CodeError(message if count == 1 else f"payload {index}: {message}")
