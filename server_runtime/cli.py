"""The command line of the server: ``qtl-server [SERVER_HALF] ...`` and ``qtl-server keygen DIR``."""

from __future__ import annotations

import logging
from contextlib import ExitStack
from pathlib import Path

import click

from qtl_core import __version__, exits, shipped
from qtl_core.bundle import open_half
from qtl_core.entropy_file import tables_of
from server_runtime.admission import largest_payload
from server_runtime.config import DEVICES, DTYPES, LONGEST_QUESTION, ServerConfig
from server_runtime.keygen import instructions, make_keys
from server_runtime.listener import Listener
from server_runtime.process import run
from server_runtime.server import Server

_DEFAULTS = ServerConfig()


class _ServeByDefault(click.Group):
    """A group whose command ``serve`` needs no name: ``qtl-server HALF`` is ``qtl-server serve HALF``."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        if not args or (args[0] not in self.commands and args[0] not in ("-h", "--help", "--version")):
            args = ["serve", *args]
        return super().parse_args(ctx, args)

    def format_usage(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        formatter.write_usage(ctx.command_path, "[SERVER_HALF] [OPTIONS]")
        formatter.write_usage(ctx.command_path, "keygen DIR [--client NAME]")

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        # What people look for under --help is how to serve.
        serve.format_options(ctx, formatter)
        self.format_commands(ctx, formatter)


@click.group(cls=_ServeByDefault, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="qtl-server")
def cli() -> None:
    """Answer questions about pictures that devices have encoded.

    SERVER_HALF is the server half of a bundle that qtl-export wrote, or the bundle itself; by default
    ./bundle. The server listens on tcp://127.0.0.1:5555 unless told otherwise, and ends on SIGTERM or Ctrl-C
    after the answer it is working on.
    """


@cli.command()
@click.argument("server_half", required=False, type=click.Path(path_type=Path))
@click.option(
    "--bind", metavar="ADDRESS", help=f"Where to listen, port * for a free one. [default: {shipped.SERVER}]"
)
@click.option(
    "--device",
    type=click.Choice(DEVICES),
    default=_DEFAULTS.device,
    show_default=True,
    help="Where to compute.",
)
@click.option(
    "--dtype",
    type=click.Choice(DTYPES),
    default=_DEFAULTS.dtype,
    show_default=True,
    help="Precision of weights and activations.",
)
@click.option(
    "--keys",
    metavar="DIR",
    type=click.Path(path_type=Path),
    help="Encrypt, and let in only the clients in DIR (see keygen).",
)
@click.option("--insecure", is_flag=True, help="Allow plaintext on an address that other machines can reach.")
@click.option(
    "--credits",
    "credits_",
    type=click.IntRange(1, 10_000),
    default=_DEFAULTS.credits,
    show_default=True,
    help="Questions one client may have in flight.",
)
@click.option(
    "--max-sessions",
    type=click.IntRange(1, 1_000_000),
    default=_DEFAULTS.max_sessions,
    show_default=True,
    help="Clients served at once.",
)
@click.option(
    "--max-waiting",
    type=click.IntRange(1, 1_000_000),
    default=_DEFAULTS.max_waiting,
    show_default=True,
    help="Questions that may wait for the model, over all clients.",
)
@click.option(
    "--max-question",
    metavar="BYTES",
    type=click.IntRange(1, LONGEST_QUESTION),
    default=_DEFAULTS.max_question,
    show_default=True,
    help="Longest question in UTF-8 bytes.",
)
@click.option(
    "--max-tokens",
    type=click.IntRange(1, 1_000),
    default=_DEFAULTS.max_tokens,
    show_default=True,
    help="Longest answer in tokens.",
)
@click.option(
    "--idle",
    metavar="SECONDS",
    type=click.FloatRange(1),
    default=_DEFAULTS.idle_s,
    show_default=True,
    help="Forget a client that is silent for so long.",
)
@click.option(
    "--grace",
    metavar="SECONDS",
    type=click.FloatRange(0),
    default=_DEFAULTS.grace_s,
    show_default=True,
    help="How long the current answer may go on after SIGTERM.",
)
@click.option(
    "--ready-file",
    metavar="FILE",
    type=click.Path(path_type=Path),
    help="Write the address there once ready.",
)
@click.option("--verbose", is_flag=True, help="Log what was answered, refused and counted, every 30 seconds.")
def serve(
    server_half: Path | None,
    bind: str | None,
    device: str,
    dtype: str,
    keys: Path | None,
    insecure: bool,
    credits_: int,
    max_sessions: int,
    max_waiting: int,
    max_question: int,
    max_tokens: int,
    idle: float,
    grace: float,
    ready_file: Path | None,
    verbose: bool,
) -> None:
    """Serve a bundle's server half (what qtl-server does when no command is named)."""
    logging.basicConfig(
        level=logging.INFO if verbose else logging.WARNING,
        format="%(asctime)s %(levelname)s %(name)s: %(message)s",
    )
    config = ServerConfig(
        bind=shipped.SERVER if bind is None else bind,
        keys=keys,
        insecure=insecure,
        device=device,
        dtype=dtype,
        credits=credits_,
        max_sessions=max_sessions,
        max_waiting=max_waiting,
        max_question=max_question,
        max_tokens=max_tokens,
        idle_s=idle,
        grace_s=grace,
    )
    for missing, default in ((server_half, f"bundle {shipped.BUNDLE}"), (bind, f"address {shipped.SERVER}")):
        if missing is None:
            _note(f"using the default {default}")
    half = open_half(Path(shipped.BUNDLE) if server_half is None else server_half, "server")
    tables = tables_of(half)
    with ExitStack() as opened:
        # Bound before the model is loaded: a taken port should not cost a minute to find out.
        listener = Listener(config, max_payload=largest_payload(half.manifest))
        opened.callback(listener.close)
        if listener.gate is not None and not len(listener.gate):
            _note(f"no client is authorised yet: qtl-server keygen {keys} --client NAME")
        from server_runtime.torch_engine import TorchEngine

        engine = TorchEngine(half, config)
        server = Server(config, engine, listener=listener, tables=tables)
        opened.pop_all()
    run(server, half.manifest, say=click.echo, ready_file=ready_file)


@cli.command()
@click.argument("folder", metavar="DIR", type=click.Path(path_type=Path))
@click.option("--client", metavar="NAME", help="Also make a key for this client, and let it in.")
def keygen(folder: Path, client: str | None) -> None:
    """Make the server's key in DIR, and clients' keys beside it; prints what to copy where."""
    click.echo(instructions(folder, make_keys(folder, client)))


def _note(text: str) -> None:
    click.echo(f"qtl-server: {text}", err=True)


def main(args: list[str] | None = None) -> int:
    """The console entry point; returns the exit code."""
    return exits.run(lambda: cli.main(args=args, prog_name="qtl-server", standalone_mode=False))
