"""Makes the variants of a bundle's client graph, measures each, and says which may go into the bundle."""

from __future__ import annotations

import dataclasses
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import msgspec

from edge_runtime.encoder import Encoder
from edge_runtime.golden import Bounds
from edge_runtime.picture import Pixels
from qtl_core import bundle
from qtl_core.bundle import Half, VariantEntry
from qtl_export.progress import Progress
from qtl_export.variants import FP16, INT8, batch_of
from qtl_export.variants.bounds import bounds_of
from qtl_export.variants.fixed_batch import fix_batch
from qtl_export.variants.half_precision import to_half
from qtl_export.variants.int8 import KINDS, quantize
from qtl_export.variants.judging import Measured, Yardstick, as_measured, judge
from qtl_export.variants.weights import weights_of

CALIBRATION: Final = 32
"""Pictures that static quantization measures the ranges of activations on, at most."""
_WORTH: Final = 0.9
"""A kind of int8 is taken for its speed if it takes at most so much of the other's time."""


@dataclass(frozen=True)
class Made:
    """What came of all variants.

    Attributes:
        entries: for the manifest, by name.
        faults: what is over its bound, each with the variant's name and numbers.
    """

    entries: dict[str, VariantEntry] = field(default_factory=dict)
    faults: list[str] = field(default_factory=list)


def make(
    names: Sequence[str], half: Half, yardstick: Yardstick, calibration: Pixels, progress: Progress
) -> Made:
    """Writes each variant beside the half's graph.

    Of each int8 preset a dynamic and a static graph are made; the one within its bounds is taken, of two the
    one that is faster by a tenth or more, else the one with fewer codes that differ.

    Args:
        names: which, ``checked``.
        half: the client half; its manifest need not list the variants.
        yardstick: what they are held against.
        calibration: pictures for the ranges of static quantization; none of those compared.
        progress: where to show how far it is.
    """
    entries: dict[str, VariantEntry] = {}
    faults: list[str] = []
    for name in names:
        with tempfile.TemporaryDirectory(prefix="variant-", dir=half.path.parent) as scratch:
            tried = {
                kind: _tried(name, graph, half, yardstick, progress)
                for kind, graph in _graphs(name, half, Path(scratch), calibration, progress)
            }
            kind = _better({kind: one.measured for kind, one in tried.items()})
            taken = tried.pop(kind)
            entries[name] = taken.entry(kind, {other: one.measured for other, one in tried.items()}, half)
            taken.move(half.path)
        faults += [f"variant {name}: {fault}" for fault in taken.measured.faults]
    return Made(entries, faults)


def file_of(name: str) -> str:
    """The graph's file, where ``edge_runtime.variants`` looks for it."""
    return f"client.{name}.onnx"


@dataclass(frozen=True)
class _Tried:
    graph: Path
    bounds: Bounds
    measured: Measured

    def entry(self, kind: str, others: dict[str, Measured], half: Half) -> VariantEntry:
        said: dict[str, Any] = as_measured(self.measured)
        if kind:
            said["kind"] = kind
            said["other_kinds"] = {other: as_measured(one) for other, one in others.items()}
        weights = _weights(self.graph, half)
        return VariantEntry(
            graph=self.graph.name,
            weights="" if weights is None else weights.name,
            passed=not self.measured.faults,
            share_bound=self.bounds.share,
            largest_bound=self.bounds.largest,
            measured=said,
        )

    def move(self, folder: Path) -> None:
        for path in (self.graph, weights_of(self.graph)):
            if path.exists() and path.parent != folder:
                shutil.move(path, folder / path.name)
                # The libraries' temporary files are for their owner only, and some stay so.
                shutil.copymode(folder / bundle.MANIFEST, folder / path.name)


def _graphs(
    name: str, half: Half, scratch: Path, calibration: Pixels, progress: Progress
) -> Iterator[tuple[str, Path]]:
    """The graphs to choose from: one of each kind of int8, and one of any other variant."""
    source = half.path / half.manifest.graph
    batch = batch_of(name)
    if batch is not None:
        # Beside its source, whose weights it shares.
        with progress.stage(f"fixing the batch of {name}"):
            fix_batch(source, half.path / file_of(name), batch)
        yield "", half.path / file_of(name)
    elif name == FP16:
        with progress.stage("converting to half precision"):
            to_half(source, scratch / file_of(name))
        yield "", scratch / file_of(name)
    else:
        for kind in KINDS:
            (scratch / kind).mkdir()
            target = scratch / kind / file_of(name)
            with progress.stage(f"quantizing to {name}, {kind}"):
                quantize(source, target, name.removeprefix(INT8), kind, calibration)
            yield kind, target


def _tried(name: str, graph: Path, half: Half, yardstick: Yardstick, progress: Progress) -> _Tried:
    weights = _weights(graph, half)
    files = {path.name: bundle.hash_file(path) for path in (graph, weights) if path is not None}
    # The device's own code runs what a manifest lists; this one is for the time being.
    manifest = msgspec.structs.replace(half.manifest, files=files)
    encoder = Encoder(dataclasses.replace(half, path=graph.parent, manifest=manifest), graph=graph.name)
    bounds = bounds_of(name, yardstick.cut)
    size = sum(entry.size for entry in files.values())
    measured = judge(
        encoder, yardstick, bounds, name=name, batch=batch_of(name) or 1, size=size, progress=progress
    )
    return _Tried(graph, bounds, measured)


def _weights(graph: Path, half: Half) -> Path | None:
    """Where a graph's weights are, if not in it."""
    own, shared = weights_of(graph), weights_of(half.path / half.manifest.graph)
    if own.exists():
        return own
    return shared if graph.parent == half.path and shared.exists() else None


def _better(tried: dict[str, Measured]) -> str:
    """The kind to take."""
    good = {kind: one for kind, one in tried.items() if not one.faults} or tried
    # In turns with the same graph, so that both were measured with the same ruler.
    quickest = min(good, key=lambda kind: good[kind].over_full)
    exact = min(good, key=lambda kind: good[kind].share)
    return quickest if good[quickest].over_full <= _WORTH * good[exact].over_full else exact
