"""``qtl-train serve`` and ``qtl-train client``: parse, call one function, print."""

from __future__ import annotations

import json
import logging
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from qtl_core import shipped
from qtl_training.extras import need_train

_SERVE_EXAMPLE = """\
\b
Example:
  qtl-train serve training/recipes/digits-split.toml --run runs/server
"""

_CLIENT_EXAMPLE = """\
\b
Example:
  qtl-train client training/recipes/digits-split.toml --server tcp://127.0.0.1:5555 --run runs/client
"""

_PATH = click.Path(path_type=Path)


def data_options(command: Callable[..., None]) -> Callable[..., None]:
    """The options of a side that has the pictures."""
    options = [
        click.option(
            "--data",
            type=_PATH,
            metavar="FILE",
            help="Conversations in LLaVA's JSON, for the recipe's.",
        ),
        click.option("--pictures", type=_PATH, metavar="DIR", help="The folder that they name pictures in."),
        click.option(
            "--on-bad-sample",
            type=click.Choice(["stop", "skip"]),
            help="What to do about samples that cannot be trained on.  [default: the recipe's, or stop]",
        ),
    ]
    for option in reversed(options):
        command = option(command)
    return command


@click.command(epilog=_SERVE_EXAMPLE)
@click.argument("recipe", type=_PATH)
@click.option(
    "--run", "run_folder", type=_PATH, metavar="DIR", help="The run's folder.  [default: runs/NAME-server]"
)
@click.option("--bind", default=shipped.SERVER, show_default=True, metavar="ADDRESS", help="Where to listen.")
@click.option(
    "--keys",
    type=_PATH,
    metavar="DIR",
    help="Encrypt, and let in only the clients in DIR (qtl-server keygen).",
)
@click.option("--insecure", is_flag=True, help="Allow plaintext on an address that other machines can reach.")
@click.option("--start", metavar="DIR", help="Start from this checkpoint instead of the recipe's.")
@click.option(
    "--seed", type=click.IntRange(min=0), metavar="N", help="Use this seed instead of the recipe's."
)
@click.option("--fresh", is_flag=True, help="Begin anew, forgetting what the run's folder holds.")
@click.option(
    "--threads",
    type=click.IntRange(min=1),
    metavar="N",
    help="Threads to compute with.  [default: all cores]",
)
@click.option(
    "--device",
    type=click.Choice(["cpu", "cuda", "auto"]),
    default="cpu",
    show_default=True,
    help="Where to compute. Only on a CPU are the weights those of qtl-train local, bit for bit.",
)
@click.option("--ready-file", type=_PATH, metavar="FILE", help="Write the address there once ready.")
@click.option("--json", "as_json", is_flag=True, help="Print one line of JSON at the end.")
def serve(
    recipe: Path,
    run_folder: Path | None,
    bind: str,
    keys: Path | None,
    insecure: bool,
    start: str | None,
    seed: int | None,
    fresh: bool,
    threads: int | None,
    device: str,
    ready_file: Path | None,
    as_json: bool,
) -> None:
    """Train the server partition with a client that has the pictures.

    Waits for `qtl-train client` with the same recipe, and ends when the recipe does. A run that was killed
    goes on when the same command is given again, from the newest snapshot that both sides hold.
    """
    need_train()
    from qtl_training.split.running import serve_run

    logging.basicConfig(level=logging.WARNING, format="%(levelname)s %(name)s: %(message)s")
    chosen, folder = _chosen(recipe, run_folder, "server", start, seed, threads)
    result = serve_run(
        chosen, folder, bind=bind, keys=keys, insecure=insecure, fresh=fresh, ready_file=ready_file,
        say=click.echo, stop_on=(signal.SIGTERM, signal.SIGINT), progress=sys.stderr.isatty(), device=device,
    )  # fmt: skip
    if result:
        _print(result, as_json)


@click.command(epilog=_CLIENT_EXAMPLE)
@click.argument("recipe", type=_PATH)
@click.option(
    "--server", default=shipped.SERVER, show_default=True, metavar="ADDRESS", help="The server's address."
)
@click.option(
    "--run", "run_folder", type=_PATH, metavar="DIR", help="The run's folder.  [default: runs/NAME-client]"
)
@click.option(
    "--key",
    type=_PATH,
    metavar="FILE",
    help="This client's .key_secret file; with --server-key everything is encrypted.",
)
@click.option("--server-key", type=_PATH, metavar="FILE", help="The server's .key file.")
@click.option("--insecure", is_flag=True, help="Speak plaintext to another machine.")
@data_options
@click.option("--start", metavar="DIR", help="Start from this checkpoint instead of the recipe's.")
@click.option(
    "--seed", type=click.IntRange(min=0), metavar="N", help="Use this seed instead of the recipe's."
)
@click.option("--fresh", is_flag=True, help="Begin anew, forgetting what the run's folder holds.")
@click.option(
    "--threads",
    type=click.IntRange(min=1),
    metavar="N",
    help="Threads to compute with.  [default: all cores]",
)
@click.option(
    "--timeout",
    type=click.FloatRange(min=0.1),
    default=30.0,
    show_default=True,
    metavar="SECONDS",
    help="To wait for a connection, and while another client trains there.",
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
def client(
    recipe: Path,
    server: str,
    run_folder: Path | None,
    key: Path | None,
    server_key: Path | None,
    insecure: bool,
    data: Path | None,
    pictures: Path | None,
    on_bad_sample: str | None,
    start: str | None,
    seed: int | None,
    fresh: bool,
    threads: int | None,
    timeout: float,
    comeback: float,
    as_json: bool,
) -> None:
    """Train the client partition, where the pictures are, with a server that has the language model.

    Codes and texts go up, gradients of the codes' values come back; pictures and features stay here.
    """
    need_train()
    from qtl_training.split.running import client_run

    data_said = {"data": data, "pictures": pictures, "on_bad_sample": on_bad_sample}
    chosen, folder = _chosen(recipe, run_folder, "client", start, seed, threads, data_said)
    result = client_run(
        chosen, folder, server=server, key=key, server_key=server_key, insecure=insecure, fresh=fresh,
        timeout=timeout, comeback=comeback, progress=sys.stderr.isatty(),
    )  # fmt: skip
    _print(result, as_json)


def _chosen(
    recipe: Path,
    run_folder: Path | None,
    side: str,
    start: str | None,
    seed: int | None,
    threads: int | None,
    data_said: dict[str, Any] | None = None,
) -> tuple[Any, Path]:
    import torch

    from qtl_training.recipe import override, read_recipe

    if threads is not None:
        torch.set_num_threads(threads)
    chosen = override(read_recipe(recipe), start=start, seed=seed, **(data_said or {}))
    folder = run_folder if run_folder is not None else Path("runs") / f"{chosen.name}-{side}"
    if run_folder is None:
        click.echo(f"run folder: {folder} (default)", err=True)
    return chosen, folder


def _print(result: dict[str, Any], as_json: bool) -> None:
    if as_json:
        click.echo(json.dumps(result))
        return
    from edge_runtime.training.telling import lines

    for told in lines(result):
        click.echo(told)
