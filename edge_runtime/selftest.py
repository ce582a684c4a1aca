"""The golden pictures on this device: do they become the codes they should, and how fast.

The report names the board and the versions and nothing about who runs it: no host name, user, path or key.
"""

from __future__ import annotations

import dataclasses
import importlib
import math
import os
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Final

import msgspec
import numpy as np

import qtl_core
from qtl_core.bundle import Half
from qtl_core.errors import BundleError, HostError, StorageError
from qtl_core.exits import storage_error

from .bench import Candidate, Load
from .choice import Choice
from .cold import Cold
from .encoder import CPU
from .golden import Bounds, Golden, difference, golden_of
from .heat import Heat
from .machine import Machine
from .resident import peak_bytes, resident_bytes
from .variants import variants

SCHEMA: Final = 1
_REPEATS: Final = 5
"""Each golden picture is encoded so many times; the first run of all is apart."""
_MODULES: Final = ("numpy", "onnxruntime", "zmq", "msgspec", "PIL")


class Row(msgspec.Struct, frozen=True, kw_only=True):
    """One graph on one provider.

    Attributes:
        variant: name of the graph.
        provider: onnxruntime execution provider.
        threads: of one run; 0 leaves it to onnxruntime.
        graph_bytes: size of the graph and its weights.
        compared: codes (16-bit features where there is no quantizer).
        differ: of them, those that are not what they should be.
        largest: the largest difference in levels; of features, over the largest feature.
        share_bound: share of them that may differ: at reduced precision the variant's own, of the manifest.
        largest_bound: the largest difference allowed; None for any.
        fault: what is over its bound; empty if nothing is.
        first_ms: milliseconds of the first picture after loading.
        median_ms: of the others.
        slowest_ms: of the others.
        runs: how many others there are.
    """

    variant: str
    provider: str
    threads: int
    graph_bytes: int
    compared: int
    differ: int
    largest: float
    share_bound: float
    largest_bound: float | None
    fault: str
    first_ms: float
    median_ms: float
    slowest_ms: float
    runs: int


def golden(half: Half) -> Golden:
    """The golden pictures.

    Raises:
        BundleError: damaged, or none: the bundle was exported without validation.
    """
    found = golden_of(half)
    if found is None:
        raise BundleError(
            f"the client half at {half.path} has no golden pictures: it was exported without validation; "
            "export it again without --validate 0"
        )
    return found


def places(half: Half, available: Sequence[str], choice: Choice | None) -> list[Candidate]:
    """What is tested: every graph on the CPU, and what bench chose where that is something else.

    Args:
        half: the client half.
        available: providers of this onnxruntime.
        choice: what bench chose; its threads are taken for all of the same provider.
    """
    threads = choice.threads if choice is not None and choice.provider == CPU else 0
    every = [Candidate(one, CPU, threads) for one in variants(half)]
    if choice is not None and choice.provider != CPU and choice.provider in available:
        every += [Candidate(one, choice.provider, 0) for one in variants(half) if one.name == choice.variant]
    return every


def test(
    every: Sequence[Candidate],
    load: Load,
    pictures: Golden,
    half: Half,
    *,
    tolerance: float | None = None,
    clock: Callable[[], float] = time.perf_counter,
    each: Callable[[], None] = lambda: None,
) -> Iterator[Row]:
    """Encodes the golden pictures, one graph after the other, so that one is in memory at a time.

    Args:
        every: what to test.
        load: loads one.
        pictures: what goes in, and what should come out.
        half: the client half they are of.
        tolerance: share of codes that may differ at reduced precision; None for what the manifest states.
        clock: seconds.
        each: called after each run.

    Raises:
        BundleError: a graph cannot be loaded, or fails.
    """
    for one in every:
        yield _row(one, load, pictures, half, tolerance, clock, each)


def runs(every: Sequence[Candidate], pictures: Golden) -> int:
    """How often ``each`` is called."""
    return len(every) * _REPEATS * len(pictures.pictures)


def report(
    half: Half,
    machine: Machine,
    rows: Sequence[Row],
    *,
    before: Heat,
    after: Heat,
    cold: Cold | None,
    choice: Choice | None,
    now: float,
) -> dict[str, Any]:
    """All of it as one JSON object.

    Args:
        half: what was tested.
        machine: what it was tested on.
        rows: what ``test`` found.
        before: the temperature before.
        after: the temperature after.
        cold: a fresh process of the first row; None if that was left out.
        choice: what bench chose, if it has.
        now: seconds since 1970.
    """
    manifest = half.manifest
    model = rows[0].graph_bytes
    return {
        "schema": SCHEMA,
        "passed": not any(row.fault for row in rows),
        "date": time.strftime("%Y-%m-%d", time.gmtime(now)),
        "machine": {
            name: value for name, value in dataclasses.asdict(machine).items() if name != "available"
        },
        "versions": {
            "qtl-edge": qtl_core.__version__,
            "python": machine.python,
            **{name: str(importlib.import_module(name).__version__) for name in _MODULES},
        },
        "bundle": {
            "model": manifest.model,
            "fingerprint": manifest.fingerprint,
            "bits": manifest.cut.bits,
            "levels": manifest.cut.levels,
            "made_by": manifest.made_by,
        },
        "chosen_by_bench": None if choice is None else str(choice),
        "graphs": [msgspec.to_builtins(row) for row in rows],
        "memory": {
            "peak_bytes": peak_bytes(),
            "resident_bytes": resident_bytes(),
            "first_graph_alone_bytes": None if cold is None else cold.resident,
            "resident_over_model": None if cold is None or cold.resident is None else cold.resident / model,
        },
        "cold_start_s": None if cold is None else cold.seconds,
        "throttling": {"before": dataclasses.asdict(before), "after": dataclasses.asdict(after)},
    }


def line(row: Row) -> str:
    """A row for people."""
    return (
        f"{row.variant} on {row.provider}: {row.differ:,} of {row.compared:,} codes differ "
        f"({100 * row.share_bound:g} % may), "
        f"{row.median_ms:.2f} ms a picture" + (f"; FAULT: {row.fault}" if row.fault else "")
    )


def write(path: Path, text: str) -> None:
    """Writes the report, in one step.

    Raises:
        StorageError: it cannot be written there.
    """
    fresh = path.with_name(f"{path.name}.{os.getpid()}.new")
    try:
        fresh.write_text(text, "utf-8")
        os.replace(fresh, path)
    except OSError as error:
        said = storage_error(error) or StorageError(
            f"cannot write {path}: {error.strerror}; name another file"
        )
        raise said from error


def _row(
    one: Candidate,
    load: Load,
    pictures: Golden,
    half: Half,
    tolerance: float | None,
    clock: Callable[[], float],
    each: Callable[[], None],
) -> Row:
    runner = load(one)
    if runner.provider != one.provider:
        raise HostError(
            f"onnxruntime cannot start {one.provider} here and fell back to {runner.provider}; "
            "run `edge_runtime bench` again, which chooses what works"
        )
    ms: list[float] = []
    found: list[bytes] = []
    for repeat in range(_REPEATS):
        for picture in pictures.pictures:
            start = clock()
            (payload,) = runner.run(picture[np.newaxis])
            ms.append(1000 * (clock() - start))
            if not repeat:
                found.append(payload)
            each()
    apart = difference(half.manifest.cut, pictures.payloads, found)
    bounds = Bounds.of(half.manifest.cut, one.variant, one.provider, tolerance)
    return Row(
        variant=one.variant.name,
        provider=one.provider,
        threads=one.threads,
        graph_bytes=one.variant.bytes,
        compared=apart.compared,
        differ=apart.differ,
        largest=apart.largest,
        share_bound=bounds.share,
        largest_bound=bounds.largest if math.isfinite(bounds.largest) else None,
        fault=apart.fault(half.manifest.cut, bounds),
        first_ms=ms[0],
        median_ms=statistics.median(ms[1:]),
        slowest_ms=max(ms[1:]),
        runs=len(ms) - 1,
    )
