"""What ``edge_runtime bench`` prints: a table for people, one JSON object for scripts."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import qtl_core
from qtl_core.bundle import Half

from . import cold
from .bench import Timing, best_of_each
from .cold import Cold
from .golden import Difference
from .machine import Machine, megabytes

Where = tuple[str, str]


def cold_starts(half: Half, timings: Sequence[Timing], link: Mapping[str, Any] | None) -> dict[Where, Cold]:
    """A fresh process of each variant on each provider, with the number of threads that was fastest.

    Args:
        half: what was timed.
        timings: of ``bench.measure``.
        link: settings of ``EdgeClient`` that lead to a server, to ask it a question; None asks none.

    Raises:
        HostError: a process failed that ran here a moment ago.
        ServerUnavailable: the server did not answer.
    """
    found = {}
    for one in best_of_each(timings):
        if not one.failed:
            what = one.candidate
            found[what.variant.name, what.provider] = cold.start(
                half.path, what.variant.name, what.provider, what.threads, link=link
            )
    return found


def table(timings: Sequence[Timing], best: Timing | None) -> str:
    """Rows of the same width; a star marks the choice."""
    head = ("", "variant", "provider", "threads", "ms/picture", "fastest", "codes that differ")
    rows = [head]
    for one in timings:
        what = one.candidate
        shown = (what.variant.name, what.provider.removesuffix("ExecutionProvider"), str(what.threads or "-"))
        if one.failed or not one.ms:
            rows.append((" ", *shown, "-", "-", one.failed or "not timed"))
            continue
        found = _codes(one.codes) + (f"; refused: {one.refused}" if one.refused else "")
        times = (f"{one.median_ms:.2f}", f"{min(one.ms):.2f}")
        rows.append(("*" if one is best else " ", *shown, *times, found))
    widths = [max(len(row[column]) for row in rows) for column in range(len(head))]
    lines = []
    for row in rows:
        cells = [
            cell.rjust(width) if 3 <= column <= 5 else cell.ljust(width)
            for column, (cell, width) in enumerate(zip(row, widths, strict=True))
        ]
        lines.append("  ".join(cells).rstrip())
    return "\n".join(lines)


def cold_lines(timings: Sequence[Timing], colds: Mapping[Where, Cold]) -> list[str]:
    """A line for each cold start."""
    sizes = {one.candidate.variant.name: one.candidate.variant.bytes for one in timings}
    return [_cold(*where, one, sizes[where[0]]) for where, one in colds.items()]


def as_json_object(
    half: Half,
    machine: Machine,
    runtime: str,
    timings: Sequence[Timing],
    best: Timing | None,
    colds: Mapping[Where, Cold],
) -> dict[str, Any]:
    """Everything that was measured.

    Args:
        half: what was timed.
        machine: what it was timed on.
        runtime: version of onnxruntime.
        timings: of ``bench.measure``.
        best: the choice; None if nothing was acceptable.
        colds: of ``cold_starts``.
    """
    manifest = half.manifest
    return {
        "qtl-edge": qtl_core.__version__,
        "onnxruntime": runtime,
        "machine": dataclasses.asdict(machine),
        "bundle": {
            "model": manifest.model,
            "fingerprint": manifest.fingerprint,
            "picture": [manifest.picture.height, manifest.picture.width],
            "gflop": manifest.gflop or None,
            "tiles": manifest.picture.most_tiles,  # what is timed is one of them
        },
        "rows": [_row(one) for one in timings],
        "chosen": None if best is None else _row(best),
        "cold_starts": [
            {
                "variant": name,
                "provider": provider,
                "cold_start_s": one.seconds,
                "first_answer_s": one.answer_seconds,
                "resident_bytes": one.resident,
                "peak_bytes": one.peak,
            }
            for (name, provider), one in colds.items()
        ],
    }


def _row(one: Timing) -> dict[str, Any]:
    what = one.candidate
    return {
        "variant": what.variant.name,
        "provider": what.provider,
        "threads": what.threads,
        "graph_bytes": what.variant.bytes,
        "ms": one.median_ms if one.ms else None,
        "fastest_ms": min(one.ms) if one.ms else None,
        "runs": len(one.ms),
        "codes": None if one.codes is None else dataclasses.asdict(one.codes),
        "acceptable": one.acceptable,
        "why_not": one.failed or one.refused,
    }


def _codes(codes: Difference | None) -> str:
    return "-" if codes is None else f"{codes.differ:,} of {codes.compared:,}"


def _cold(name: str, provider: str, one: Cold, size: int) -> str:
    times = "" if one.resident is None else f", {one.resident / size:.2f}x the graph's {megabytes(size)}"
    answer = "" if one.answer_seconds is None else f", first answer {one.answer_seconds:.2f} s"
    where = f"{name} on {provider.removesuffix('ExecutionProvider')}"
    return (
        f"{where}: first codes {one.seconds:.2f} s after a cold start{answer}; "
        f"{megabytes(one.resident)} in memory{times}"
    )
