"""``qtl-train scenes``: parse, call one function, print."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import click

from qtl_training.extras import need_train

_EXAMPLE = """\
\b
Example:
  qtl-train scenes digits-data --count 2000
  qtl-train local training/recipes/digits-conversations.toml
"""


@click.command(epilog=_EXAMPLE)
@click.argument("folder", type=click.Path(path_type=Path))
@click.option(
    "--count", type=click.IntRange(min=1), default=1000, show_default=True, metavar="N", help="To train on."
)
@click.option(
    "--held-out",
    type=click.IntRange(min=1),
    metavar="N",
    help="To evaluate on.  [default: a tenth of --count]",
)
@click.option(
    "--turns",
    type=click.IntRange(min=1),
    default=3,
    show_default=True,
    metavar="N",
    help="Questions of a sample at most.",
)
@click.option("--seed", type=click.IntRange(min=0), default=1, show_default=True, metavar="N")
@click.option("--json", "as_json", is_flag=True, help="Print one line of JSON.")
def scenes(folder: Path, count: int, held_out: int | None, turns: int, seed: int, as_json: bool) -> None:
    """Write digit scenes as training data: PNG pictures, and conversations in LLaVA's JSON.

    FOLDER gets train/ and held-out/, each with conversations.json and pictures/. Most samples are about one
    picture, some about two or none. No handwritten digit is in both parts.
    """
    need_train()
    from qtl_training.digits.conversations import write_parts

    others = max(1, count // 10) if held_out is None else held_out
    pictures = write_parts(folder, count, others, turns=turns, seed=seed, progress=sys.stderr.isatty())
    samples = {"train": count, "held-out": others}
    if as_json:
        click.echo(json.dumps({"folder": str(folder), "samples": samples, "pictures": pictures}))
        return
    for part, number in samples.items():
        click.echo(f"{folder / part}: {number} samples, {pictures[part]} pictures")
