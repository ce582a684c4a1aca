"""The command ``qtl-train levels``: parse, measure, print."""

from __future__ import annotations

import sys
from pathlib import Path

import click

from qtl_core.codes import MAX_LEVELS, MIN_LEVELS
from qtl_core.level_selection import BATCHES
from qtl_training.extras import need_train

_EXAMPLE = """\
\b
Example:
  qtl-train levels --data digits --json levels.json --plot levels.png

\b
Exit codes: 3 too few pictures, or features that are damaged; 4 checkpoint, 8 missing extra, 9 this machine.
"""


@click.command(epilog=_EXAMPLE)
@click.argument("checkpoint", required=False, type=click.Path(path_type=Path))
@click.option(
    "--data", type=click.Choice(["digits"]), default="digits", show_default=True, help="What to look at."
)
@click.option("--split", type=click.Choice(["validation", "test"]), default="validation", show_default=True)
@click.option(
    "--quantizer",
    default="",
    metavar="NAME",
    help="One of the checkpoint's further quantizers.  [default: its own]",
)
@click.option(
    "--levels",
    type=click.IntRange(MIN_LEVELS, MAX_LEVELS),
    multiple=True,
    metavar="L",
    help="Level count to measure. May be repeated.  [default: 2 3 4 6 8 16 32, and the rule's choice]",
)
@click.option(
    "--batches",
    type=click.IntRange(min=1),
    default=BATCHES,
    show_default=True,
    metavar="N",
    help="Batches of pictures that the entropy is estimated in.",
)
@click.option(
    "--each-type",
    type=click.IntRange(min=1),
    default=480,
    show_default=True,
    metavar="N",
    help="Questions of each of the 13 types.",
)
@click.option(
    "--json",
    "json_file",
    type=click.Path(path_type=Path, dir_okay=False),
    metavar="FILE",
    help="Write the numbers here.",
)
@click.option(
    "--plot",
    type=click.Path(path_type=Path, dir_okay=False),
    metavar="FILE",
    help="Draw the figure here (PNG).",
)
@click.option(
    "--page",
    type=click.Path(path_type=Path, dir_okay=False, exists=True),
    metavar="FILE",
    help="Renew the table between the marks <!-- levels:start --> and <!-- levels:end --> of this page.",
)
def levels(
    checkpoint: Path | None,
    data: str,
    split: str,
    quantizer: str,
    levels: tuple[int, ...],
    batches: int,
    each_type: int,
    json_file: Path | None,
    plot: Path | None,
    page: Path | None,
) -> None:
    """How many levels the features' entropy asks for, beside bytes and accuracy at each level count.

    The rule takes the smallest L whose log2 is at least the differential entropy of the features in units
    of sigma; docs/levels.md derives it. `qtl-export --bits auto` goes by the same rule.
    """
    need_train()
    from qtl_core import shipped
    from qtl_training.levels.measuring import LEVELS, measure_levels
    from qtl_training.levels.report import draw, renew, table, write_json

    if checkpoint is None:
        checkpoint = shipped.digits()
        click.echo(f"checkpoint: {checkpoint} (shipped)", err=True)
    result = measure_levels(
        checkpoint,
        levels or LEVELS,
        quantizer=quantizer,
        split=split,
        batches=batches,
        each_type=each_type,
        progress=sys.stderr.isatty(),
    )
    click.echo(table(result))
    if json_file is not None:
        write_json(result, json_file)
    if plot is not None:
        draw(result, plot)
    if page is not None:
        renew(result, page)
