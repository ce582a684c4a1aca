"""The command ``qtl-eval``: accuracy of a bundle through the real path."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import click

from qtl_core import __version__, shipped
from qtl_core.exits import run
from qtl_training.extras import need_train

_EXAMPLE = """\
\b
Example:
  qtl-export --bits 2 && qtl-eval --bundle bundle --data digits --split test --json

\b
Exit codes: 2 wrong command line, 4 bundle, 5 server, 6 refused, 7 protocol, 8 missing extra.
"""


@click.command(epilog=_EXAMPLE)
@click.option(
    "--bundle",
    type=click.Path(path_type=Path),
    metavar="DIR",
    help=f"The bundle, both halves.  [default: {shipped.BUNDLE}]",
)
@click.option(
    "--data", type=click.Choice(["digits"]), default="digits", show_default=True, help="What to ask about."
)
@click.option("--split", type=click.Choice(["validation", "test"]), default="test", show_default=True)
@click.option("--server", metavar="ADDRESS", help="Ask this server.  [default: start one on the bundle]")
@click.option(
    "--each-type",
    type=click.IntRange(min=1),
    default=480,
    show_default=True,
    metavar="N",
    help="Questions of each of the 13 types.",
)
@click.option("--json", "as_json", is_flag=True, help="Print one line of JSON.")
@click.version_option(__version__, prog_name="qtl-eval")
def cli(
    bundle: Path | None, data: str, split: str, server: str | None, each_type: int, as_json: bool
) -> None:
    """Ask a bundle thousands of questions and count the right answers.

    Everything is real: the device's code and graph, the socket, the server in a process of its own.
    """
    need_train()
    from qtl_training.real_evaluation import evaluate_bundle, table

    if bundle is None:
        bundle = Path(shipped.BUNDLE)
        click.echo(f"bundle: {bundle} (default)", err=True)
    result = evaluate_bundle(bundle, split, each_type=each_type, server=server, progress=sys.stderr.isatty())
    click.echo(json.dumps(result) if as_json else table(result))


def main() -> None:
    """Entry point of the console script."""
    sys.exit(run(lambda: cli.main(standalone_mode=False)))


if __name__ == "__main__":
    main()
