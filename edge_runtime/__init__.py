"""The device's half: picture in, codes out over the wire, answer back. No PyTorch.

Submodules load when they are first used: ``edge_runtime --help`` should not wait for onnxruntime.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .answer import Answer
    from .client import EdgeClient, Encoded

__all__ = ["EdgeClient", "Answer", "Encoded"]


def __getattr__(name: str) -> object:
    if name == "Answer":
        from .answer import Answer

        return Answer
    if name in __all__:
        from . import client

        return getattr(client, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
