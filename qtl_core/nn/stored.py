"""Tensors that a model's modules have in files and not in memory: filled in when they are needed, or copied
from file to file without being held.

``weights.fill`` without loading notes where the tensors of each module lie. ``load_weights`` fills a module
then, and the ``Source`` of a tensor reads it piece by piece.
"""

from __future__ import annotations

import ctypes
import gc
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Protocol
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

PIECE = 16 << 20
"""Bytes of a tensor that are read at once, about; a row at least."""


class Files(Protocol):
    """Weight files, as ``weights.Weights`` is."""

    def shape(self, name: str) -> tuple[int, ...]:
        """Shape of a tensor, without reading it."""

    def dtype(self, name: str) -> torch.dtype:
        """Type a tensor is stored in, without reading it."""

    def pieces(self, name: str) -> Iterator[Tensor]:
        """A tensor as consecutive blocks of rows, each of which is of use until the next one is asked for."""


@dataclass(frozen=True, eq=False)
class Source:
    """A tensor in a file.

    Attributes:
        files: where it is.
        name: what it is called there.
    """

    files: Files
    name: str

    @property
    def shape(self) -> tuple[int, ...]:
        """Its shape."""
        return self.files.shape(self.name)

    @property
    def dtype(self) -> torch.dtype:
        """The type it is stored in."""
        return self.files.dtype(self.name)

    def pieces(self) -> Iterator[Tensor]:
        """Blocks of its rows, in order."""
        return self.files.pieces(self.name)

    def read(self) -> Tensor:
        """The whole tensor in memory of its own; what is floating-point comes as float32."""
        kind = torch.float32 if self.dtype.is_floating_point else self.dtype
        whole = torch.empty(self.shape, dtype=kind)
        if not whole.ndim:
            for piece in self.pieces():
                whole.copy_(piece)
            return whole
        start = 0
        for piece in self.pieces():
            whole[start : start + len(piece)].copy_(piece)
            start += len(piece)
        return whole


# By the module that owns a parameter or buffer: its names, and where they lie.
_NOTES: WeakKeyDictionary[nn.Module, dict[str, Source]] = WeakKeyDictionary()


def note(module: nn.Module, sources: Mapping[str, Source]) -> None:
    """Remembers where a module's tensors lie, by their names in its ``state_dict``."""
    for name, source in sources.items():
        owner, _, own = name.rpartition(".")
        _NOTES.setdefault(module.get_submodule(owner), {})[own] = source


def sources_of(module: nn.Module) -> dict[str, Source]:
    """Where a module's tensors lie, by their names in its ``state_dict``; of those that are noted."""
    return {
        f"{prefix}.{name}" if prefix else name: source
        for prefix, owner in module.named_modules()
        for name, source in _NOTES.get(owner, {}).items()
    }


def load_weights(module: nn.Module, *, but: nn.Module | None = None) -> None:
    """Fills the noted tensors of a module, in float32, one after the other.

    Args:
        module: what to fill.
        but: a part of it that stays as it is.
    """
    if module is but:
        return
    if but is None or but not in set(module.modules()):
        load_from(module, sources_of(module))
        return
    load_from(module, _NOTES.get(module, {}))
    for child in module.children():
        load_weights(child, but=but)


def load_from(module: nn.Module, sources: Mapping[str, Source]) -> None:
    """Fills tensors of a module from files, in float32, one after the other; then ties what is tied."""
    for name, source in sources.items():
        owner, _, own = name.rpartition(".")
        module.get_submodule(owner).load_state_dict({own: source.read()}, assign=True, strict=False)
    if sources:
        _tie(module)


def drop_weights(module: nn.Module) -> None:
    """Gives a module's memory back: it has shapes and no values afterwards."""
    before = [*module.parameters(), *module.buffers()]
    module.to("meta")
    for tensor in before:
        # Emptied, too: PyTorch's exporter still holds what it was given.
        tensor.data = torch.empty(0, dtype=tensor.dtype)
    gc.collect()
    _trim()


def _tie(module: nn.Module) -> None:
    tie = getattr(module, "tie_weights", None)
    if callable(tie):
        tie()
        return
    for child in module.children():
        _tie(child)


def _trim() -> None:
    """Asks the C library to give free memory back to the system; only glibc keeps it and can be asked."""
    with suppress(AttributeError, OSError, TypeError):
        ctypes.CDLL(None).malloc_trim(0)
