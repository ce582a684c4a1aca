"""The graphs a client half has: the one that the manifest names, and variants of it for particular devices.

A variant lies beside it as ``client.NAME.onnx`` (``client.int8-arm64.onnx``, ``client.fp16.onnx``), with its
weights in ``client.NAME.onnx.data`` where they have a file of their own, and the manifest lists both. What
validation found of it is in the manifest too, and by how much its codes may differ.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Final

from qtl_core.bundle import Half, VariantEntry
from qtl_core.errors import InputError

FULL: Final = "fp32"
"""What the manifest's own graph is called."""
_VARIANT: Final = re.compile(r"client[.-](?P<name>[A-Za-z0-9][A-Za-z0-9_.-]*)\.onnx\Z")
_WEIGHTS: Final = ".data"


@dataclass(frozen=True, kw_only=True)
class Variant:
    """One graph of a client half.

    Attributes:
        name: "fp32", or what its file says.
        graph: the file in the half.
        bytes: size of the graph and its weights.
        sha256: of the graph's file, hex.
        entry: what the manifest says of it; None of the manifest's own graph, or where it says nothing.
    """

    name: str
    graph: str
    bytes: int
    sha256: str
    entry: VariantEntry | None = field(default=None, compare=False)

    @property
    def full(self) -> bool:
        """Whether it is the manifest's own graph, at full precision."""
        return self.name == FULL

    @property
    def forced(self) -> bool:
        """Whether validation found it over its bounds, and it was put into the bundle all the same."""
        return self.entry is not None and not self.entry.passed


def variants(half: Half) -> tuple[Variant, ...]:
    """Every graph of a client half, the manifest's own first."""
    own = half.manifest.graph
    found = {match["name"]: name for name in half.manifest.files if (match := _VARIANT.match(name))}
    others = [(name, graph) for name, graph in sorted(found.items()) if graph != own and name != FULL]
    return tuple(_variant(half, name, graph) for name, graph in [(FULL, own), *others])


def variant(half: Half, name: str) -> Variant:
    """The graph of that name; "" is the manifest's own.

    Raises:
        InputError: there is none; the message lists those there are.
    """
    known = variants(half)
    for one in known:
        if one.name == (name or FULL):
            return one
    names = ", ".join(one.name for one in known)
    raise InputError(f"the bundle at {half.path} has no variant {name!r}; it has {names}")


def _variant(half: Half, name: str, graph: str) -> Variant:
    files = half.manifest.files
    entry = half.manifest.variants.get(name)
    # A graph with a fixed batch shares the weights of the manifest's own.
    weights = files.get(entry.weights if entry is not None and entry.weights else graph + _WEIGHTS)
    size = files[graph].size + (0 if weights is None else weights.size)
    return Variant(name=name, graph=graph, bytes=size, sha256=files[graph].sha256, entry=entry)
