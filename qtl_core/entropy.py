"""Codes as bytes, entropy-coded: lossless, and as few bytes as the tables allow.

A payload takes at most 1 % and 4 bytes more than its codes cost under the tables, whatever codes these are.
The number of tokens and the tables alone say whether it is short or long, so that both ends agree on it and
no byte is spent on saying so. A short one comes from a range coder, as its end would otherwise cost more than
its codes (``qtl_core.range_coder``); a long one has to be fast and comes from interleaved rANS
(``qtl_core.rans``). Where its codes are so likely that the ends of the lanes show, it comes from the range
coder all the same, and its first byte says which. docs/protocol.md describes it byte by byte.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final, TypeAlias

import numpy as np
import numpy.typing as npt

from . import range_coder, rans
from .codes import Codes
from .entropy_tables import Flat, Index, Tables, bits_of_symbols
from .errors import CodeError
from .range_coder import TOTAL

__all__ = ["Tables", "encode", "decode", "encode_batch", "decode_batch", "lanes_for"]

LANE_BYTES: Final = 1024
"""Expected bytes for each lane: the three that a lane's state costs are then 0.3 % of them."""
MIN_LANES: Final = 16
"""With fewer, one symbol after another is as fast, and ends in fewer bytes."""
MAX_LANES: Final = 512

RANS: Final = b"\x00"
RANGE: Final = b"\xff"
"""The first byte of a long payload; no seven flipped bits make one of the other."""

# From so many on, short payloads are decoded faster side by side than one by one.
_FEW_PAYLOADS: Final = 80


Decoder: TypeAlias = range_coder.Decoder | rans.Decoder


def lanes_for(rows: int, tables: Tables) -> int:
    """How many rANS lanes code ``rows`` tokens; 0 means that the payload is short.

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
    lanes, form = lanes_for(len(rows), tables), b""
    if lanes:
        data = RANS + _interleaved(starts, frequencies, lanes)
        if len(data) <= 1.01 * bits_of_symbols(frequencies) / 8 + 4:
            return data
        form = RANGE
    return form + range_coder.encode(starts.ravel().tolist(), frequencies.ravel().tolist())


def _interleaved(starts: rans.U32, frequencies: rans.U32, lanes: int) -> bytes:
    """Symbols [tokens, columns] in rANS of so many lanes."""
    blocks = -(-len(starts) // lanes)
    missing = ((0, blocks * lanes - len(starts)), (0, 0))
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
    interleaved: dict[int, bytes] = {}
    ranged: dict[int, bytes] = {}
    for index, payload in enumerate(payloads):
        form, data = (payload[:1], payload[1:]) if lanes else (RANGE, payload)
        try:
            if form == RANS:
                rans.check_length(data, lanes)
                interleaved[index] = data
            elif form != RANGE:
                raise CodeError(
                    f"coded data of so many codes begins with 00 or ff, not with {form.hex() or 'its end'}; "
                    "the data is damaged"
                )
            elif rows:
                ranged[index] = data
            elif data:
                raise CodeError(f"no codes take no bytes, got {len(data)}; the sender uses another cut")
        except CodeError as error:
            raise _named(str(error), index, len(payloads)) from error
    if interleaved:
        _decode_at_once(rans.Decoder([*interleaved.values()], lanes), lanes, tables, out, [*interleaved])
    if len(ranged) >= _FEW_PAYLOADS:
        _decode_at_once(range_coder.Decoder([*ranged.values()]), 1, tables, out, [*ranged])
    else:
        _decode_one_by_one(ranged, tables, out)
    return out


def _decode_one_by_one(payloads: dict[int, bytes], tables: Tables, out: Codes) -> None:
    """Decodes each of these range-coded payloads to its place in ``out`` [payloads, tokens, channels]."""
    count, rows, _ = out.shape
    for index, payload in payloads.items():
        try:
            codes = range_coder.decode(payload, rows, tables.of_classes, tables.of_class)
        except CodeError as error:
            raise _named(str(error), index, count) from error
        out[index] = np.frombuffer(codes, np.uint8).reshape(rows, -1)


def _decode_at_once(decoder: Decoder, lanes: int, tables: Tables, out: Codes, places: list[int]) -> None:
    """Decodes payloads to these places in ``out``, one token of each lane of each payload at a time."""
    count, (_, rows, channels) = len(places), out.shape
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
        out[places, part] = found.T.reshape(count, lanes, channels)[:, : part.stop - part.start]
    for place, wrong in zip(places, decoder.finish(), strict=True):
        if wrong:
            raise _named(wrong, place, len(out))


def _next(decoder: Decoder, flat: Flat, tables: Index) -> Index:
    """The next symbol of every lane, under the tables at these places."""
    slots = decoder.slots()
    symbols, starts, frequencies = flat.find(slots, tables)
    decoder.take(slots, starts, frequencies)
    return symbols


def _named(message: str, index: int, count: int) -> CodeError:
    return CodeError(message if count == 1 else f"payload {index}: {message}")
