"""The command ``qtl-eval``: accuracy of a bundle through the real path."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import click
from click.core import ParameterSource

from qtl_core import __version__, shipped
from qtl_core.exits import run
from qtl_training.extras import need_train

_DIGITS = "digits"
# Named here too, so that --help needs nothing of what runs them; a test holds the two lists together.
_BENCHMARKS = ("pope", "textvqa", "gqa", "scienceqa", "mme", "mmmu", "mm-vet", "vqav2")
# Which options mean something to digits only, and which to benchmarks only.
_ONLY_DIGITS = {"split": "--split", "each_type": "--each-type"}
_ONLY_BENCHMARKS = {"output": "--output", "limit": "--limit"}

_EXAMPLE = """\
\b
Examples:
  qtl-export --bits 2 && qtl-eval --bundle bundle --data digits --split test --json
  qtl-eval --bundle bundle --data pope eval/pope
  qtl-eval --bundle bundle --data textvqa eval/textvqa --limit 100 --output build/trial

\b
docs/benchmarks.md says which files go into FOLDER and what is written. A run that was stopped goes on
when the same command is given again, and asks nothing twice.

\b
Exit codes: 2 wrong command line, 3 benchmark files, 4 bundle, 5 server, 6 refused, 7 protocol,
8 missing extra, 9 this machine.
"""


@click.command(epilog=_EXAMPLE)
@click.argument("folder", required=False, type=click.Path(path_type=Path))
@click.option(
    "--bundle",
    type=click.Path(path_type=Path),
    metavar="DIR",
    help=f"The bundle, both halves.  [default: {shipped.BUNDLE}]",
)
@click.option(
    "--data",
    type=click.Choice([_DIGITS, *_BENCHMARKS]),
    default=_DIGITS,
    show_default=True,
    help="What to ask about: digits (generated), or a published benchmark, whose files are in FOLDER.",
)
@click.option(
    "--split",
    type=click.Choice(["validation", "test"]),
    default="test",
    show_default=True,
    help="Of digits.",
)
@click.option("--server", metavar="ADDRESS", help="Ask this server.  [default: start one on the bundle]")
@click.option(
    "--each-type",
    type=click.IntRange(min=1),
    default=480,
    show_default=True,
    metavar="N",
    help="Of digits: questions of each of the 13 types.",
)
@click.option(
    "--output",
    type=click.Path(path_type=Path),
    metavar="DIR",
    help="Of a benchmark: where answers, predictions and scores go.  "
    "[default: FOLDER/answers/MODEL-FINGERPRINT]",
)
@click.option(
    "--limit",
    type=click.IntRange(min=1),
    metavar="N",
    help="Of a benchmark: only the first N questions, as a trial; a later run without it goes on.",
)
@click.option("--json", "as_json", is_flag=True, help="Print one line of JSON.")
@click.version_option(__version__, prog_name="qtl-eval")
@click.pass_context
def cli(
    context: click.Context,
    folder: Path | None,
    bundle: Path | None,
    data: str,
    split: str,
    server: str | None,
    each_type: int,
    output: Path | None,
    limit: int | None,
    as_json: bool,
) -> None:
    """Ask a bundle thousands of questions and count the right answers.

    Everything is real: the device's code and graph, the socket, the server in a process of its own.
    """
    _check(context, data, folder)
    need_train()
    if bundle is None:
        bundle = Path(shipped.BUNDLE)
        click.echo(f"bundle: {bundle} (default)", err=True)
    progress = sys.stderr.isatty()
    if folder is None:
        from qtl_training.real_evaluation import evaluate_bundle, table

        result = evaluate_bundle(bundle, split, each_type=each_type, server=server, progress=progress)
        click.echo(json.dumps(result) if as_json else table(result))
    else:
        from qtl_training.paper_benchmarks import run as benchmarks

        result = benchmarks.evaluate_benchmark(
            bundle, data, folder, output=output, server=server, limit=limit, progress=progress
        )
        click.echo(json.dumps(result) if as_json else benchmarks.table(result))


def _check(context: click.Context, data: str, folder: Path | None) -> None:
    """Refuses what does not belong together: digits have no folder, benchmarks need one."""
    if data == _DIGITS and folder is not None:
        raise click.UsageError("digits are generated and take no FOLDER; name the benchmark with --data")
    if data != _DIGITS and folder is None:
        raise click.UsageError(f"--data {data} needs the FOLDER with its files, see docs/benchmarks.md")
    others = _ONLY_BENCHMARKS if data == _DIGITS else _ONLY_DIGITS
    for name, option in others.items():
        if context.get_parameter_source(name) is ParameterSource.COMMANDLINE:
            raise click.UsageError(f"{option} means nothing to --data {data}; leave it out")


def main() -> None:
    """Entry point of the console script."""
    sys.exit(run(lambda: cli.main(standalone_mode=False)))


if __name__ == "__main__":
    main()
