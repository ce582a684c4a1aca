"""A safetensors file of tensors that need not be in memory: the header first, then one piece after the other.

The library writes a file from tensors it is given all at once. The layout is the library's own, byte for
byte where all tensors are float32: the header's length in 8 bytes (little-endian), the header (JSON, filled
up with spaces to a multiple of 8), the tensors' bytes in C order.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Final

import torch
from torch import Tensor

from qtl_core.bundle import FileEntry
from qtl_core.nn.stored import Source

_KINDS: Final = {
    torch.int64: "I64",
    torch.float32: "F32",
    torch.int32: "I32",
    torch.bfloat16: "BF16",
    torch.float16: "F16",
    torch.int16: "I16",
    torch.uint8: "U8",
    torch.int8: "I8",
    torch.bool: "BOOL",
}
_ALIGNED: Final = 8


def write_tensors(
    path: Path,
    tensors: Mapping[str, Tensor | Source],
    *,
    follow: Callable[[Sequence[str]], Iterable[str]] = iter,
) -> FileEntry:
    """Writes ``tensors``; of those in other files never more than a piece is in memory.

    A tensor keeps the type it has, but float64 becomes float32.

    Args:
        path: the file.
        tensors: by name, in memory or where they lie in files.
        follow: wraps the walk over the names, for a progress bar.

    Returns:
        Size and SHA-256 of what was written.

    Raises:
        TypeError: a tensor of a type that no model's weights have.
        OSError: the disk is full, or the file cannot be written.
    """
    # The largest types first, so that every tensor begins at a multiple of its type's size.
    kinds = {name: _kind(name, tensor) for name, tensor in tensors.items()}
    order = sorted(tensors, key=lambda name: (-kinds[name].itemsize, _KINDS[kinds[name]], name))
    header, start = {}, 0
    for name in order:
        shape = tuple(tensors[name].shape)
        end = start + math.prod(shape) * kinds[name].itemsize
        header[name] = {"dtype": _KINDS[kinds[name]], "shape": shape, "data_offsets": (start, end)}
        start = end
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % _ALIGNED)
    digest, size = hashlib.sha256(), 0
    with path.open("wb") as file:
        for data in _all([len(text).to_bytes(8, "little"), text], tensors, kinds, follow(order)):
            file.write(data)
            digest.update(data)
            size += memoryview(data).nbytes
    return FileEntry(size=size, sha256=digest.hexdigest())


def _all(
    head: list[bytes],
    tensors: Mapping[str, Tensor | Source],
    kinds: Mapping[str, torch.dtype],
    names: Iterable[str],
) -> Iterator[bytes | memoryview]:
    yield from head
    for name in names:
        tensor = tensors[name]
        for piece in [tensor] if isinstance(tensor, Tensor) else tensor.pieces():
            plain = piece.detach().to(kinds[name]).contiguous().reshape(-1)
            if plain.numel():
                yield plain.view(torch.uint8).numpy().data


def _kind(name: str, tensor: Tensor | Source) -> torch.dtype:
    kind = torch.float32 if tensor.dtype == torch.float64 else tensor.dtype
    if kind not in _KINDS:
        raise TypeError(f"{name} is {tensor.dtype}, which no server half holds")
    return kind
