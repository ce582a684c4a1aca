"""Seconds a picture to expect on a device, from what ``edge_runtime bench --json`` said there.

The rate at which the device computed its bundle's client graph is taken for the rate at which it computes
another one. From one base tower to others that held within 11 % where it was tried (docs/devices.md); a tiny
graph spends a larger share of its time on other things than arithmetic, and says less.
"""

from __future__ import annotations

from pathlib import Path

import msgspec

from qtl_core.errors import InputError

ROUGH = 4.0
"""How many times more or fewer operations the graph that was timed may have before that is pointed out."""


class Pace(msgspec.Struct, frozen=True, kw_only=True):
    """One way to run the graph there.

    Attributes:
        variant, provider, threads: which.
        gflop_per_s: at which it computed the graph that was timed.
        seconds: to expect for a picture.
        chosen: whether it is the one that runs on that device use.
    """

    variant: str
    provider: str
    threads: int
    gflop_per_s: float
    seconds: float
    chosen: bool


class Expected(msgspec.Struct, frozen=True, kw_only=True):
    """What a device takes for a checkpoint's client graph.

    Attributes:
        device: its board, or its processor where the board is not known.
        timed_model: the bundle that was timed there.
        timed_gflop: of that bundle's client graph.
        paces: for each variant and provider the fastest that made the right codes, fastest first.
        memory: bytes the device has; None if unknown.
        fits: whether the estimate of the graph's memory is below that; None if unknown.
        assumed: what the seconds rest on.
    """

    device: str
    timed_model: str
    timed_gflop: float
    paces: tuple[Pace, ...]
    memory: int | None
    fits: bool | None
    assumed: str


class _Row(msgspec.Struct, frozen=True, kw_only=True):
    variant: str
    provider: str
    threads: int
    ms: float | None
    acceptable: bool


class _Machine(msgspec.Struct, frozen=True, kw_only=True):
    board: str
    cpu: str
    memory: int | None


class _Bundle(msgspec.Struct, frozen=True, kw_only=True):
    model: str
    gflop: float | None = None


class _Bench(msgspec.Struct, frozen=True, kw_only=True):
    machine: _Machine
    bundle: _Bundle
    rows: list[_Row]
    chosen: _Row | None


def expect(bench: Path, gflop: float, peak_bytes: int) -> Expected:
    """Scales a device's measurement to another client graph.

    Args:
        bench: the file that ``edge_runtime bench --json`` wrote on the device.
        gflop: of the client graph in question, for one picture.
        peak_bytes: of memory it takes.

    Raises:
        InputError: no such output, one of a bundle that does not say its GFLOP, or one without a graph that
            made the right codes.
    """
    said = _read(bench)
    timed = said.bundle.gflop
    if not timed:
        raise InputError(
            f"{bench}: the bundle that was timed, {said.bundle.model}, does not say its GFLOP; export it "
            "again and run edge_runtime bench once more"
        )
    fastest: dict[tuple[str, str], tuple[float, _Row]] = {}
    for row in said.rows:
        where = row.variant, row.provider
        if row.acceptable and row.ms and (where not in fastest or row.ms < fastest[where][0]):
            fastest[where] = row.ms, row
    if not fastest:
        raise InputError(
            f"{bench}: no graph made the codes it should on that device; see edge_runtime doctor"
        )
    paces = [
        Pace(
            variant=row.variant,
            provider=row.provider,
            threads=row.threads,
            gflop_per_s=1000 * timed / ms,
            seconds=gflop / timed * ms / 1000,
            chosen=row == said.chosen,
        )
        for ms, row in sorted(fastest.values(), key=lambda one: one[0])
    ]
    machine = said.machine
    return Expected(
        device=machine.board if machine.board != "unknown" else machine.cpu,
        timed_model=said.bundle.model,
        timed_gflop=timed,
        paces=tuple(paces),
        memory=machine.memory,
        fits=None if machine.memory is None else peak_bytes < machine.memory,
        assumed=_assumed(gflop / timed),
    )


def rows_of(expected: Expected) -> list[tuple[str, str]]:
    """Rows for a terminal: what to expect, of what, and what was assumed."""
    rows = [
        (
            f"on {expected.device}" if number == 0 else "",
            f"{pace.seconds:,.2f} s a picture: {pace.variant} on "
            f"{pace.provider.removesuffix('ExecutionProvider')}, {pace.threads or 'its'} threads, "
            f"{pace.gflop_per_s:,.1f} GFLOP/s",
        )
        for number, pace in enumerate(expected.paces)
    ]
    rows.append(("", f"assumed: {expected.assumed}"))
    if expected.memory is not None:
        verdict = "fits into" if expected.fits else "does not fit into"
        rows.append(("", f"{verdict} {expected.memory / 1e6:,.0f} MB in float32"))
    return rows


def _assumed(times: float) -> str:
    same = "the rate of the graph that was timed"
    if times > ROUGH:
        return f"{same}, which has {times:,.0f} times fewer operations: a rough guide"
    if times < 1 / ROUGH:
        return f"{same}, which has {1 / times:,.0f} times more operations: a rough guide"
    return same


def _read(bench: Path) -> _Bench:
    try:
        return msgspec.json.decode(bench.read_bytes(), type=_Bench)
    except OSError as error:
        raise InputError(f"cannot read {bench}: {error.strerror}") from error
    except msgspec.DecodeError as error:
        raise InputError(
            f"{bench} is no output of edge_runtime bench --json ({error}); write one on the device"
        ) from error
