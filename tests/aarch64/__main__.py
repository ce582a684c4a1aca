"""The device's install on aarch64, emulated, beside this machine: ``make aarch64-check``.

    python -m tests.aarch64

makes an arm64 Debian in a folder (about ten minutes and 600 MB, once), installs the wheel of this checkout
and what it needs there, encodes the same pictures on both processors, compares the codes, runs the device's
tests and commands, and writes docs/aarch64.json and docs/aarch64.md. It needs root.
"""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Final

import click

from qtl_core.exits import run

CHECKOUT: Final = Path(__file__).resolve().parents[2]
COMMAND: Final = "make aarch64-check"
_QUICK: Final = 20_000
_SELFTESTS: Final = ("bits2", "levels256", "tiny")
_LOOK_S: Final = 2.0
"""How often the tests are looked at."""

_EPILOG: Final = """\b
Example:
  sudo make aarch64-check
\b
Exit codes: 0 all as it should be, 1 something is not (the record says what), 2 wrong command line, 9 it
cannot run here: no root, no debootstrap or qemu-user-static, no network, no room."""


@click.command(epilog=_EPILOG)
@click.option(
    "--codes", default=1_000_000, show_default=True, help="Codes to compare on either side of 16 levels."
)
@click.option("--quick", is_flag=True, help="Few codes and no tests; nothing is written to docs/.")
@click.option(
    "--jobs",
    default=os.cpu_count() or 1,
    type=click.IntRange(1),
    metavar="N",
    help="Processes that encode on either side.  [default: the cores]",
)
@click.option(
    "--resume",
    is_flag=True,
    help="Go on with what an earlier run exported and encoded; only where nothing of either changed since.",
)
@click.option("--fresh", is_flag=True, help="Make the emulated system again.")
@click.option("--debian", default="bookworm", show_default=True, metavar="NAME", help="Which release.")
@click.option("--mirror", metavar="URL", help="Where Debian's packages come from.  [default: debootstrap's]")
@click.option(
    "--wheels",
    type=click.Path(path_type=Path, exists=True, file_okay=False),
    metavar="DIR",
    help="Take aarch64 wheels from this folder.  [default: pip's index]",
)
@click.option(
    "--work",
    type=click.Path(path_type=Path),
    default=CHECKOUT / "build" / "aarch64",
    metavar="DIR",
    help="Where the system is kept.  [default: build/aarch64]",
)
@click.option(
    "--docs",
    type=click.Path(path_type=Path),
    default=CHECKOUT / "docs",
    metavar="DIR",
    help="Where the record goes.  [default: docs]",
)
def cli(
    codes: int,
    quick: bool,
    jobs: int,
    resume: bool,
    fresh: bool,
    debian: str,
    mirror: str | None,
    wheels: Path | None,
    work: Path,
    docs: Path,
) -> None:
    """Run the device's install on an emulated aarch64 and compare its codes with this machine's."""
    from qtl_export.progress import Progress
    from tests.aarch64 import bundles, comparing, emulation, every, installing, plan, record, suite

    started = time.monotonic()
    emulation.require()
    # As on Ctrl-C: what was started and registered ends with us.
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))
    progress = Progress()
    with emulation.alone(work), emulation.interpreter(), ExitStack() as stack:
        if fresh:
            emulation.remove(work / "root")
        root = emulation.Root.make(work / "root", work / "check.log", debian, mirror, progress)
        shared = root.path(suite.WORK)
        installing.install(root, CHECKOUT, wheels, progress)
        suite.copy(CHECKOUT, root)
        testing = [
            stack.enter_context(suite.start_tests(root, folder, work / f"tests-{Path(folder).name}.log"))
            for folder in (() if quick else suite.FOLDERS)
        ]
        if resume:
            planned, heads = plan.read(shared)
        else:
            emulation.remove(shared)
            shared.mkdir()
            bundles.make(shared, progress)
            with progress.stage("exporting the graph of all quantizers"):
                heads = every.make(shared)
            planned = plan.make(shared, heads, _QUICK if quick else codes)
        pictures = sum(one.pictures for one in planned)
        with _counted("encoding here", pictures) as each:
            suite.encode_here(CHECKOUT, shared, jobs, each)
        with _counted("encoding under emulation", pictures) as each:
            suite.encode(root, jobs, each)
        compared = comparing.compare_all(shared, planned, heads)
        for row in compared:
            if row.bundle != every.FOLDER or row.fault:
                click.echo(comparing.line(row))
        if quick:
            faults = [comparing.line(row) for row in compared if row.fault]
        else:
            selftests = []
            for name in progress.bar(_SELFTESTS, "doctor and selftest", len(_SELFTESTS), "bundles"):
                selftests.append(suite.selftest(root, name))
            install = suite.install_size(root)
            for one in testing:
                with _counted(f"{one.command[-1]} under emulation, percent", 100) as each:
                    done = 0
                    while not one.wait(_LOOK_S):
                        now = suite.percent(one.said())
                        each(now - done)
                        done = now
                one.check((0, 1))
            aarch64, here = (suite.machine(shared / side) for side in (plan.THERE, plan.HERE))
            made = record.Record(
                date=time.strftime("%Y-%m-%d", time.gmtime()),
                command=COMMAND,
                emulator=emulation.emulator(),
                aarch64=aarch64,
                x86=here,
                codes=compared,
                tests=suite.parse([one.said() for one in testing]),
                selftests=selftests,
                install=install,
                minutes=round((time.monotonic() - started) / 60),
                resumed=resume,
            )
            record.write(made, docs / "aarch64.json", docs / "aarch64.md")
            click.echo(f"written: {docs / 'aarch64.json'}, {docs / 'aarch64.md'}")
            faults = made.faults()
    if faults:
        raise click.ClickException(f"not as it should be: {'; '.join(faults)}")
    click.echo("all as it should be")


@contextmanager
def _counted(what: str, total: int) -> Iterator[Callable[[int], object]]:
    """A bar that goes on by what each call says; silent where nobody watches."""
    from tqdm import tqdm

    with tqdm(total=total, desc=what, disable=None) as bar:
        yield bar.update


if __name__ == "__main__":
    sys.exit(run(lambda: cli.main(prog_name="python -m tests.aarch64", standalone_mode=False)))
