"""The agreement between the two sides of the cut: quantizer, codes, messages, wire, bundle, keys, errors.

Needs numpy, msgspec and pyzmq, never torch. Submodules load when they are first used, so that importing one
does not pay for the others; ``qtl_core.nn``, the model in PyTorch, is imported by its own name only.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from . import (
        bundle,
        codes,
        density,
        entropy,
        errors,
        exits,
        keys,
        level_selection,
        messages,
        quantizer,
        shipped,
        sockets,
        wire,
    )
    from .errors import QtlError

    __version__: str

__all__ = [
    "QtlError",
    "__version__",
    "bundle",
    "codes",
    "density",
    "entropy",
    "errors",
    "exits",
    "keys",
    "level_selection",
    "messages",
    "quantizer",
    "shipped",
    "sockets",
    "wire",
]


def __getattr__(name: str) -> object:
    if name == "__version__":
        return _version()
    if name == "QtlError":
        from .errors import QtlError

        return QtlError
    if name in __all__:
        return importlib.import_module(f"{__name__}.{name}")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})


def _version() -> str:
    from importlib import metadata

    try:
        return metadata.version("qtl-edge")
    except metadata.PackageNotFoundError:  # run from a source tree that is not installed
        return "0+unknown"
