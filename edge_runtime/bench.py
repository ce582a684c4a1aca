"""Every variant of a bundle's graph, on every provider, with every number of threads: timed in turns.

Turns, and not one after the other: a device that gets hot or busy half-way slows all of them alike.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Final, Protocol

import numpy as np

from qtl_core.bundle import Cut, Half
from qtl_core.errors import QtlError

from .choice import Choice
from .encoder import CPU, Encoder
from .golden import Bounds, Difference, Golden, difference, golden_of, made_up
from .picture import Pixels
from .variants import Variant, variants

MIN_ROUNDS: Final = 3
MAX_ROUNDS: Final = 50
_MADE_UP: Final = 4
# A graph in memory takes its weights and its working arrays; so many times its file, with room.
_RESIDENT: Final = 1.5
_SHARE_OF_MEMORY: Final = 0.5
# The one that runs nothing here: it sends pictures to somebody's cloud.
_NOT_OURS: Final = frozenset({"AzureExecutionProvider"})


class Runner(Protocol):
    """What is timed: an ``Encoder``, or a fake of one."""

    @property
    def provider(self) -> str:
        """What really runs the graph."""
        ...

    def run(self, batch: Pixels) -> list[bytes]:
        """Pictures uint8 [B, height, width, 3] to payloads."""
        ...


@dataclass(frozen=True)
class Candidate:
    """One way to run the graph; 0 threads leave it to onnxruntime (and to the GPU, where it is one)."""

    variant: Variant
    provider: str
    threads: int

    def __str__(self) -> str:
        return f"{self.variant.name} on {self.provider}, {self.threads or 'its'} threads"


@dataclass
class Timing:
    """What was measured of one candidate.

    Attributes:
        candidate: which.
        ms: milliseconds of each timed picture.
        found: payloads by the number of the picture; each picture's first.
        failed: why it cannot run here; empty if it can.
        codes: its payloads beside those expected; None if it failed.
        refused: why it may not be chosen; empty if it may.
    """

    candidate: Candidate
    ms: list[float] = field(default_factory=list)
    found: dict[int, bytes] = field(default_factory=dict)
    failed: str = ""
    codes: Difference | None = None
    refused: str = ""

    @property
    def median_ms(self) -> float:
        """The median picture."""
        return statistics.median(self.ms)

    @property
    def acceptable(self) -> bool:
        """Whether it ran, and made the codes it should."""
        return not self.failed and not self.refused and bool(self.ms)


Load = Callable[[Candidate], Runner]


def loader(half: Half) -> Load:
    """Loads a candidate's graph into onnxruntime."""
    return lambda one: Encoder(
        half,
        graph=one.variant.graph,
        threads=one.threads,
        providers=() if one.provider == CPU else (one.provider,),
    )


def candidates(
    half: Half,
    available: Sequence[str],
    cores: int,
    *,
    names: Sequence[str] = (),
    providers: Sequence[str] = (),
    threads: Sequence[int] = (),
) -> list[Candidate]:
    """All there is to try.

    Args:
        half: a client half.
        available: the providers this onnxruntime has.
        cores: that may be used.
        names: only these variants; empty for all.
        providers: only these; empty for all that compute on this device.
        threads: only these numbers; empty for 1, 2, 4, ... and all cores. They count on the CPU only.
    """
    graphs = [one for one in variants(half) if not names or one.name in names]
    places = list(providers) or [name for name in available if name not in _NOT_OURS]
    counts = list(threads) or sorted({*(1 << i for i in range(cores.bit_length())), cores})
    counts = [count for count in counts if threads or count <= cores]
    return [
        Candidate(graph, place, count)
        for graph in graphs
        for place in places
        for count in (counts if place == CPU else [0])
    ]


def pictures_for(half: Half) -> Golden:
    """The half's golden pictures; without any, made-up ones that its own graph on the CPU has encoded.

    Raises:
        BundleError: the golden pictures are damaged, or the graph fails.
    """
    golden = golden_of(half)
    if golden is not None:
        return golden
    pictures = made_up(half, _MADE_UP)
    encoder = Encoder(half)
    return Golden(pictures, tuple(encoder.run(one[np.newaxis])[0] for one in pictures))


def fit_together(every: Sequence[Candidate], available: int | None) -> bool:
    """Whether all candidates can stay loaded at once, in half of the memory that is free."""
    wanted = _RESIDENT * sum(one.variant.bytes for one in every)
    return available is not None and wanted < _SHARE_OF_MEMORY * available


def measure(
    every: Sequence[Candidate],
    load: Load,
    golden: Golden,
    cut: Cut,
    *,
    seconds: float,
    keep: bool,
    tolerance: float | None = None,
    clock: Callable[[], float] = time.perf_counter,
    each: Callable[[], None] = lambda: None,
) -> list[Timing]:
    """Times the candidates in turns, one picture at a time, and compares what they make.

    Args:
        every: what to time.
        load: loads one.
        golden: pictures, and the payloads they should become.
        cut: what crosses the cut.
        seconds: when to stop, once every candidate had ``MIN_ROUNDS`` and each picture once.
        keep: keep all loaded; if not, each is loaded anew for its turn, which a small memory needs.
        tolerance: share of codes that may differ for variants of reduced precision and other providers than
            the CPU; None for what the manifest states of each, or ``golden.TOLERANCE``.
        clock: seconds.
        each: called after each turn.

    Returns:
        One for each candidate, in their order.
    """
    timings = [Timing(one) for one in every]
    loaded: dict[Candidate, Runner] = {}
    least = max(MIN_ROUNDS, len(golden.pictures))
    start = clock()
    for round_ in range(MAX_ROUNDS):
        if round_ >= least and clock() - start > seconds:
            break
        for timing in timings:
            if not timing.failed:
                _turn(timing, load, loaded, golden, round_, clock)
            if not keep:
                loaded.clear()
            each()
    for timing in timings:
        _judge(timing, golden, cut, tolerance)
    return timings


def fastest(timings: Sequence[Timing]) -> Timing | None:
    """The acceptable one with the lowest median; None if there is none."""
    return min((one for one in timings if one.acceptable), key=lambda one: one.median_ms, default=None)


def choice(best: Timing, onnxruntime: str, machine: str) -> Choice:
    """What later runs are told.

    Args:
        best: what ``fastest`` returned.
        onnxruntime: the version it was measured with.
        machine: ``Machine.key`` of this device.
    """
    one = best.candidate
    return Choice(
        variant=one.variant.name,
        provider=one.provider,
        threads=one.threads,
        ms=best.median_ms,
        sha256=one.variant.sha256,
        onnxruntime=onnxruntime,
        machine=machine,
    )


def best_of_each(timings: Sequence[Timing]) -> Iterator[Timing]:
    """The fastest number of threads of each variant on each provider."""
    seen = dict.fromkeys((one.candidate.variant.name, one.candidate.provider) for one in timings)
    for name, provider in seen:
        mine = [
            one
            for one in timings
            if (one.candidate.variant.name, one.candidate.provider) == (name, provider) and one.ms
        ]
        if mine:
            yield min(mine, key=lambda one: one.median_ms)


def _turn(
    timing: Timing,
    load: Load,
    loaded: dict[Candidate, Runner],
    golden: Golden,
    round_: int,
    clock: Callable[[], float],
) -> None:
    number = round_ % len(golden.pictures)
    batch = golden.pictures[number][np.newaxis]
    one = timing.candidate
    try:
        runner = loaded.get(one)
        if runner is None:
            runner = loaded[one] = load(one)
            if runner.provider != one.provider:
                timing.failed = f"it does not start here: onnxruntime fell back to {runner.provider}"
                del loaded[one]
                return
            runner.run(batch)  # the first run allocates, and is nobody's usual picture
        start = clock()
        (payload,) = runner.run(batch)
        timing.ms.append(1000 * (clock() - start))
    except QtlError as error:
        timing.failed = str(error)
        loaded.pop(one, None)
        return
    timing.found.setdefault(number, payload)


def _judge(timing: Timing, golden: Golden, cut: Cut, tolerance: float | None) -> None:
    if timing.failed or not timing.found:
        return
    expected = [golden.payloads[number] for number in timing.found]
    timing.codes = difference(cut, expected, list(timing.found.values()))
    one = timing.candidate
    timing.refused = timing.codes.fault(cut, Bounds.of(cut, one.variant, one.provider, tolerance))
    if one.variant.forced:
        timing.refused = "validation at export found it over its bounds"
