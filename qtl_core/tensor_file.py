"""Named arrays as safetensors, in numpy: what a device without that library reads and writes.

The layout is the library's own: the header's length in 8 bytes (little-endian), the header (JSON, filled up
with spaces to a multiple of 8), the tensors' bytes in C order.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from typing import Any, Final

import msgspec
import numpy as np
from numpy.typing import NDArray

from qtl_core.errors import InputError

_DTYPES: Final = {"F64": "<f8", "I64": "<i8", "F32": "<f4", "I32": "<i4", "F16": "<f2", "U8": "u1"}
_NAMES: Final = {np.dtype(kind): name for name, kind in _DTYPES.items()}
_ALIGNED: Final = 8
_LENGTH: Final = 8


class _Entry(msgspec.Struct, frozen=True):
    dtype: str
    shape: tuple[int, ...]
    data_offsets: tuple[int, int]


def dump(tensors: Mapping[str, NDArray[Any]]) -> bytes:
    """A file's bytes, of float64, int64, float32, int32, float16 or uint8 arrays by name.

    Raises:
        KeyError: an array of another type.
    """
    arrays = {name: np.asarray(value) for name, value in tensors.items()}
    kinds = {name: _NAMES[value.dtype.newbyteorder("<")] for name, value in arrays.items()}
    # The largest types first, so that every tensor begins at a multiple of its type's size.
    order = sorted(arrays, key=lambda name: (-arrays[name].dtype.itemsize, name))
    header, start = {}, 0
    for name in order:
        end = start + arrays[name].nbytes
        header[name] = {"dtype": kinds[name], "shape": arrays[name].shape, "data_offsets": (start, end)}
        start = end
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % _ALIGNED)
    parts = [len(text).to_bytes(_LENGTH, "little"), text]
    parts += [np.ascontiguousarray(arrays[name], _DTYPES[kinds[name]]).tobytes() for name in order]
    return b"".join(parts)


def load(data: bytes, name: str) -> dict[str, NDArray[Any]]:
    """What ``dump`` or the library wrote, as writable arrays.

    Args:
        data: the whole file.
        name: of the file, for the message.

    Raises:
        InputError: no such file, or one with a type of tensor that ``dump`` does not write.
    """
    try:
        length = int.from_bytes(data[:_LENGTH], "little")
        header = json.loads(data[_LENGTH : _LENGTH + length])
        entries = {key: value for key, value in header.items() if key != "__metadata__"}
        body = memoryview(data)[_LENGTH + length :]
        return {key: _array(body, msgspec.convert(value, _Entry)) for key, value in entries.items()}
    except (ValueError, KeyError, AttributeError, RecursionError, msgspec.MsgspecError) as error:
        raise InputError(f"{name} holds no tensors that can be read ({error}); it is damaged") from error


def _array(body: memoryview, entry: _Entry) -> NDArray[Any]:
    start, end = entry.data_offsets
    kind = np.dtype(_DTYPES[entry.dtype])
    if (
        min(*entry.shape, start, 0) < 0
        or end > len(body)
        or end - start != math.prod(entry.shape) * kind.itemsize
    ):
        raise ValueError(f"a tensor of shape {entry.shape} from byte {start} to {end}")
    return np.frombuffer(body[start:end], kind).reshape(entry.shape).copy()
