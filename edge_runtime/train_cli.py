"""``edge_runtime train``: parse, call one function, print."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Literal

import click

from qtl_core.shipped import BUNDLE, SERVER

from .options import LINK, Given, with_options

_EXAMPLE = """
\b
Example:
  qtl-export --trainable recipe.toml -o bundle                          where PyTorch is
  qtl-train serve recipe.toml --bind tcp://0.0.0.0:5555 --keys keys     on the GPU host
  edge_runtime train --bundle bundle --data mine.json --pictures photos \\
      --server tcp://10.0.0.2:5555 --key me.key_secret --server-key server.key
"""
_PATH = click.Path(path_type=Path)


@click.command(epilog=_EXAMPLE)
@with_options(*LINK)
@click.option(
    "--data", type=_PATH, metavar="FILE", required=True, help="Conversations in LLaVA's JSON, or JSON lines."
)
@click.option(
    "--pictures",
    type=_PATH,
    metavar="DIR",
    help="The folder that they name pictures in.  [default: the data's own]",
)
@click.option(
    "--run",
    "run_folder",
    type=_PATH,
    metavar="DIR",
    help="The run's folder; a run that is there goes on.  [default: runs/NAME-client]",
)
@click.option("--fresh", is_flag=True, help="Begin anew, forgetting what the run's folder holds.")
@click.option(
    "--on-bad-sample",
    type=click.Choice(["stop", "skip"]),
    default="stop",
    show_default=True,
    help="What to do about samples that cannot be trained on.",
)
@click.option(
    "--threads",
    type=click.IntRange(min=0),
    default=0,
    metavar="N",
    help="Threads of the graphs, 0 for onnxruntime's own number.  [default: 0]",
)
@click.option(
    "--cache-mib",
    type=click.IntRange(min=0),
    default=256,
    show_default=True,
    metavar="N",
    help="Memory for the tower's features of pictures; those of further ones are computed each time.",
)
@click.option(
    "--comeback",
    type=click.FloatRange(min=0.1),
    default=600.0,
    show_default=True,
    metavar="SECONDS",
    help="That a lost server has to come back.",
)
@click.option("--json", "as_json", is_flag=True, help="Print one line of JSON at the end.")
@click.pass_obj
def train(
    given: Given,
    /,
    data: Path,
    pictures: Path | None,
    run_folder: Path | None,
    fresh: bool,
    on_bad_sample: Literal["stop", "skip"],
    threads: int,
    cache_mib: int,
    comeback: float,
    as_json: bool,
    **options: Any,
) -> int:
    """Train the client partition on this device, without PyTorch, with a server that has the language model.

    Needs a bundle of `qtl-export --trainable RECIPE`, and `qtl-train serve` with the same recipe. Codes and
    texts go up, gradients of the codes' values come back; pictures and features stay here. A run that was
    killed goes on when the same command is given again.
    """
    from .config import EdgeConfig
    from .training.running import TrainConfig
    from .training.running import train as train_here

    chosen = given.with_later(options)
    config = TrainConfig(
        edge=EdgeConfig(
            bundle=Path(chosen["bundle"] or BUNDLE),
            server=chosen["server"] or SERVER,
            key=None if chosen["key"] is None else Path(chosen["key"]),
            server_key=None if chosen["server_key"] is None else Path(chosen["server_key"]),
            insecure=bool(chosen["insecure"]),
            timeout=30.0 if chosen["timeout"] is None else chosen["timeout"],
            threads=threads,
        ),
        data=data,
        pictures=pictures,
        run=run_folder,
        fresh=fresh,
        comeback=comeback,
        cache_mib=cache_mib,
        on_bad_sample=on_bad_sample,
    )
    from edge_runtime.training.telling import lines

    result = train_here(config, lambda text: click.echo(text, err=True))
    if as_json:
        click.echo(json.dumps(result))
        return 0
    for told in lines(result):
        click.echo(told)
    click.echo(
        "the server has the whole checkpoint now: export that one (qtl-export CHECKPOINT), and bring its "
        "client half here"
    )
    return 0
