"""``edge_runtime doctor``, ``bench`` and ``selftest``: what a device can say about itself."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import click

from qtl_core.errors import HostError
from qtl_core.shipped import BUNDLE

from .options import LINK, Given, with_options

if TYPE_CHECKING:
    from click._termui_impl import ProgressBar

    from qtl_core.bundle import Half

    from .doctor import Finding

REPORT: Final = "selftest.json"
_SECONDS: Final = 20.0

_BUNDLE = LINK[0]
_JSON = click.option("--json", "as_json", is_flag=True, help="Print one JSON object instead.")
_TOLERANCE = click.option(
    "--tolerance",
    type=click.FloatRange(0, 1),
    metavar="SHARE",
    help="Share of the codes that may differ on variants of reduced precision and on other providers than "
    "the CPU; the fp32 graph on the CPU has the bounds of validation.  [default: what the bundle states of "
    "each variant, 0.1 where it states nothing]",
)


@click.command()
@with_options(*LINK)
@_JSON
@click.pass_obj
def doctor(given: Given, /, as_json: bool, **options: Any) -> int:
    """Find what keeps this device from answering.

    Looks at machine, packages, temperature, bundle and memory, clock, keys and the server (a whole
    handshake), and prints one line for each; a problem's line names the remedy. Without --server, a server
    that is not there is no problem. The exit code is 0 without problems, else that of the first one.
    """
    from .doctor import Patient, as_json_object, examine

    chosen = given.with_later(options)
    patient = Patient(
        bundle=chosen["bundle"],
        server=chosen["server"],
        key=chosen["key"],
        server_key=chosen["server_key"],
        insecure=bool(chosen["insecure"]),
        timeout=5.0 if chosen["timeout"] is None else chosen["timeout"],
    )
    if as_json:
        found = examine(patient)
        click.echo(json.dumps(as_json_object(found)))
        return found.exit_code
    found = examine(patient, each=_show)
    problems = sum(not one.well for one in found.findings)
    click.echo("no problems" if not problems else f"{problems} problem{'s' if problems > 1 else ''}")
    return found.exit_code


@click.command()
@with_options(*LINK)
@click.option("--variant", multiple=True, metavar="NAME", help="Only this graph; may be repeated.")
@click.option("--provider", multiple=True, metavar="NAME", help="Only this provider; may be repeated.")
@click.option(
    "--threads",
    multiple=True,
    type=click.IntRange(1),
    metavar="N",
    help="Only so many threads; may be repeated.  [default: 1, 2, 4, ... and all cores]",
)
@click.option(
    "--seconds",
    type=click.FloatRange(min=0, min_open=True),
    default=_SECONDS,
    show_default=True,
    metavar="S",
    help="How long to time; longer where a few rounds of all take longer.",
)
@_TOLERANCE
@click.option("--no-store", is_flag=True, help="Do not keep the choice.")
@_JSON
@click.pass_obj
def bench(
    given: Given,
    /,
    variant: tuple[str, ...],
    provider: tuple[str, ...],
    threads: tuple[int, ...],
    seconds: float,
    tolerance: float | None,
    no_store: bool,
    as_json: bool,
    **options: Any,
) -> int:
    """Time every graph of a bundle on this device, and keep the fastest for later runs.

    Takes every variant, execution provider and number of threads in turns, on the bundle's golden pictures,
    and prints a table. The fastest whose codes are right is stored in $XDG_STATE_HOME/qtl (by default
    ~/.local/state/qtl); edge_runtime and edge_runtime ask use it, and say so, unless --variant, --provider or
    --threads is given. With --server it also times the first answer after a cold start.
    """
    from . import bench as timing
    from . import bench_report
    from .choice import store
    from .encoder import onnxruntime_module
    from .machine import look
    from .variants import variant as known

    chosen = given.with_later(options)
    half = _open(given, chosen["bundle"])
    for name in variant:
        known(half, name)
    runtime, machine = onnxruntime_module(), look()
    every = timing.candidates(
        half,
        runtime.get_available_providers(),
        machine.cores,
        names=variant,
        providers=provider,
        threads=threads,
    )
    pictures = timing.pictures_for(half)
    total = len(every) * max(timing.MIN_ROUNDS, len(pictures.pictures))
    begun = time.monotonic()
    with _progress("timing") as advance:
        turns = 0

        def each() -> None:
            nonlocal turns
            turns += 1
            advance(min(turns / total, (time.monotonic() - begun) / seconds))

        timings = timing.measure(
            every,
            timing.loader(half),
            pictures,
            half.manifest.cut,
            seconds=seconds,
            keep=timing.fit_together(every, machine.available),
            tolerance=tolerance,
            each=each,
        )
    best = timing.fastest(timings)
    if not as_json:
        click.echo(bench_report.table(timings, best))
    if best is not None and not no_store:
        path = store(half, timing.choice(best, runtime.__version__, machine.key))
        click.echo(f"stored in {path}; later runs use it (with --threads 0 they do not)", err=True)
    colds = bench_report.cold_starts(half, timings, _link(chosen))
    if as_json:
        found = bench_report.as_json_object(half, machine, runtime.__version__, timings, best, colds)
        click.echo(json.dumps(found))
    else:
        click.echo("\n".join(bench_report.cold_lines(timings, colds)))
    if best is None:
        raise HostError(
            f"no graph of {half.path} makes the codes it should here: see the table and `edge_runtime doctor`"
        )
    return 0


@click.command()
@with_options(_BUNDLE)
@click.option(
    "-o",
    "--output",
    metavar="FILE",
    type=click.Path(path_type=Path, dir_okay=False),
    default=Path(REPORT),
    show_default=True,
    help="Where the report goes.",
)
@_TOLERANCE
@_JSON
@click.pass_obj
def selftest(
    given: Given, /, bundle: str | None, output: Path, tolerance: float | None, as_json: bool
) -> int:
    """Encode the bundle's golden pictures, and write a report to share.

    The report says what board and versions these are, how many codes were compared and differ, how fast it
    was, how much memory it took, and whether the device slowed itself down. It names no user, host, path or
    key. The exit code is 0 if every graph made the codes it should, 9 if not.
    """
    from . import selftest as testing
    from .bench import loader
    from .choice import stored
    from .cold import start
    from .encoder import onnxruntime_module
    from .heat import feel
    from .machine import look

    half, machine, runtime = _open(given, bundle), look(), onnxruntime_module()
    pictures = testing.golden(half)
    choice = stored(half, onnxruntime=runtime.__version__, machine=machine.key).choice
    every = testing.places(half, runtime.get_available_providers(), choice)
    before = feel()
    total, done = testing.runs(every, pictures), 0
    with _progress("encoding") as advance:

        def each() -> None:
            nonlocal done
            done += 1
            advance(done / total)

        rows = list(
            testing.test(
                every,
                loader(half),
                pictures,
                half,
                tolerance=tolerance,
                each=each,
            )
        )
    first = every[0]
    cold = start(half.path, first.variant.name, first.provider, first.threads)
    report = testing.report(
        half, machine, rows, before=before, after=feel(), cold=cold, choice=choice, now=time.time()
    )
    testing.write(output, json.dumps(report, indent=1) + "\n")
    if as_json:
        click.echo(json.dumps(report))
    else:
        for row in rows:
            click.echo(testing.line(row))
        click.echo(f"{'passed' if report['passed'] else 'FAILED'}; the report is in {output}")
    faults = [f"{row.variant} on {row.provider}: {row.fault}" for row in rows if row.fault]
    if faults:
        raise HostError(
            f"this device makes other codes than it should ({'; '.join(faults)}); update onnxruntime, or "
            "report it with the file"
        )
    return 0


def _open(given: Given, bundle: str | None) -> Half:
    from qtl_core.bundle import open_half

    path = given.options["bundle"] if bundle is None else bundle
    if path is None:
        click.echo(f"using bundle {BUNDLE} (default)", err=True)
    return open_half(BUNDLE if path is None else path, "client")


def _link(chosen: dict[str, Any]) -> dict[str, Any] | None:
    """The settings of ``EdgeClient`` that lead to the server; None if no server was named."""
    if chosen["server"] is None:
        return None
    link = {name: chosen[name] for name in ("server", "key", "server_key")}
    timeout = {} if chosen["timeout"] is None else {"timeout": chosen["timeout"]}
    return {**link, **timeout, "insecure": bool(chosen["insecure"])}


def _show(finding: Finding) -> None:
    mark = "ok " if finding.well else "BAD"
    remedy = f"; {finding.remedy}" if finding.remedy else ""
    click.echo(f"{mark} {finding.name}: {finding.said}{remedy}")


class _Silent:
    def __call__(self, share: float) -> None:
        pass


class _Bar:
    def __init__(self, bar: ProgressBar[int]) -> None:
        self._bar = bar
        self._done = 0

    def __call__(self, share: float) -> None:
        done = int(_STEPS * min(share, 1.0))
        self._bar.update(done - self._done)
        self._done = done


_STEPS: Final = 1000


@contextmanager
def _progress(label: str) -> Iterator[_Bar | _Silent]:
    """Takes the share that is done, from 0 to 1; silent where nobody watches."""
    if sys.stderr is None or not sys.stderr.isatty():
        yield _Silent()
        return
    with click.progressbar(length=_STEPS, label=label, file=sys.stderr) as bar:
        yield _Bar(bar)
