"""The command ``qtl-train tables``: parse, measure, print."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import click

from qtl_core.codes import MAX_LEVELS, MIN_LEVELS
from qtl_training.extras import need_train

_EXAMPLE = """\
\b
Example:
  qtl-train tables runs/mine/checkpoint --levels 4

\b
Exit codes: 3 too few scenes, 4 checkpoint, 8 missing extra, 9 this machine.
"""


@click.command(epilog=_EXAMPLE)
@click.argument("checkpoint", type=click.Path(path_type=Path))
@click.option(
    "--quantizer",
    default="",
    metavar="NAME",
    help="One of the checkpoint's further quantizers, by default at its own number of levels.",
)
@click.option(
    "--levels",
    type=click.IntRange(MIN_LEVELS, MAX_LEVELS),
    multiple=True,
    metavar="L",
    help="Level count. May be repeated.  [default: 2 4 8 16 32]",
)
@click.option(
    "--scenes",
    type=click.IntRange(min=1),
    default=3000,
    show_default=True,
    metavar="N",
    help="Training scenes to measure on.",
)
@click.option("--json", "as_json", is_flag=True, help="Print one line of JSON.")
def tables(checkpoint: Path, quantizer: str, levels: tuple[int, ...], scenes: int, as_json: bool) -> None:
    """Measure the entropy coder's tables of CHECKPOINT on training scenes and write them into it.

    qtl-export then ships them, instead of tables measured on the checkpoint's few held-out pictures.
    """
    need_train()
    from qtl_training.tables import add_tables, table

    rows = add_tables(checkpoint, levels, quantizer=quantizer, scenes=scenes, progress=sys.stderr.isatty())
    click.echo(json.dumps(rows) if as_json else table(rows))
