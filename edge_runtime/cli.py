"""The command ``edge_runtime``: parse, call the client, print."""

from __future__ import annotations

import io
import sys
from typing import TYPE_CHECKING, Any

import click

from qtl_core.errors import PictureError, QtlError, RequestRefused, ServerBusy
from qtl_core.exits import run, say
from qtl_core.shipped import BUNDLE, SERVER

from .device_cli import bench, doctor, selftest
from .options import CLIENT, Given, version_option, with_options
from .train_cli import train

if TYPE_CHECKING:
    from .client import EdgeClient

STDIN = "-"

_EXAMPLE = """
\b
Examples:
  edge_runtime ask --image scene.png "how many red digits are there?"
  edge_runtime ask --server tcp://10.0.0.2:5555 --key me.key_secret --server-key server.key \\
      --image a.jpg --image b.jpg --json "which digit is top left?"
  camera | edge_runtime ask --image - "is there a 7?"
  edge_runtime                      a prompt: one picture, many questions
  edge_runtime doctor               what keeps this device from answering, and the remedy
  edge_runtime bench                the fastest way to run the bundle here, for later runs
  edge_runtime train --data mine.json --server tcp://10.0.0.2:5555    train on pictures that stay here

\b
Exit codes: 2 wrong command line, 3 picture or question, 4 bundle, 5 server not there or lost,
6 refused by the server, 7 broken protocol, 8 missing extra, 9 this machine.
"""


@click.group(
    invoke_without_command=True,
    epilog=_EXAMPLE,
    context_settings={"help_option_names": ["-h", "--help"]},
)
@version_option
@with_options(*CLIENT)
@click.option("--image", multiple=True, metavar="FILE", help="The picture to ask about.")
@click.pass_context
def cli(ctx: click.Context, /, image: tuple[str, ...], **options: Any) -> int | None:
    """Ask a vision-language model about a picture that stays on this device.

    Without a command, opens a prompt: a picture once, then many questions.
    """
    ctx.obj = Given(options, image)
    if ctx.invoked_subcommand is not None:
        return None
    if len(image) > 1 or STDIN in image:
        raise click.UsageError("the prompt takes one --image FILE; use the command ask for more")
    return _prompt(ctx.obj, image[0] if image else None)


@cli.command(epilog=_EXAMPLE)
@with_options(*CLIENT)
@click.option(
    "--image",
    multiple=True,
    metavar="FILE",
    help="A PNG, JPEG or WebP picture, - for standard input; may be repeated.",
)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object per picture, on one line.")
@click.argument("question")
@click.pass_obj
def ask(given: Given, /, image: tuple[str, ...], as_json: bool, question: str, **options: Any) -> int:
    """Ask one QUESTION about one or several pictures.

    Answers go to standard output as they come, the cost of each to standard error.
    """
    images = image or given.images
    if not images:
        raise click.UsageError("no picture was given; name one with --image FILE")
    if images.count(STDIN) > 1:
        raise click.UsageError("standard input can be only one of the pictures")
    if STDIN in images and sys.stdin.isatty():
        raise click.UsageError("--image - reads a picture from standard input, which is a terminal here")
    return _ask(Given(given.with_later(options), images), question, as_json)


for command in (doctor, bench, selftest, train):
    cli.add_command(command)


def main() -> int:
    """Entry point of ``edge_runtime`` and ``python -m edge_runtime``; returns the exit code."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            # An answer in a script that the locale cannot write is better shown escaped than lost.
            stream.reconfigure(errors="backslashreplace")
    return run(lambda: cli.main(prog_name="edge_runtime", standalone_mode=False))


def _client(options: dict[str, Any]) -> EdgeClient:
    # Imported here: --help should not wait for onnxruntime.
    from .client import EdgeClient

    bundle, server = options["bundle"], options["server"]
    taken = [
        text for value, text in ((bundle, f"bundle {BUNDLE}"), (server, f"server {SERVER}")) if value is None
    ]
    if taken:
        click.echo(f"using {' and '.join(taken)} (default)", err=True)
    # Naming one of the three is naming a choice of one's own.
    own = bool(options["variant"] or options["provider"] or options["threads"] is not None)
    client = EdgeClient(
        BUNDLE if bundle is None else bundle,
        SERVER if server is None else server,
        key=options["key"],
        server_key=options["server_key"],
        insecure=bool(options["insecure"]),
        timeout=10.0 if options["timeout"] is None else options["timeout"],
        threads=options["threads"] or 0,
        pad=options["pad"] or 0,
        providers=options["provider"],
        variant=options["variant"] or "",
        measured=not own,
    )
    if client.stored.choice is not None:
        click.echo(f"using what bench chose: {client.stored.choice}", err=True)
    elif client.stored.why_not:
        click.echo(f"not using what bench chose: {client.stored.why_not}", err=True)
    return client


def _prompt(given: Given, image: str | None) -> int:
    from .prompt import Prompt, read_line

    with _client(given.options) as client:
        client.connect()
        return Prompt(client, read_line, max_tokens=given.options["max_tokens"] or 0).run(image)


def _ask(given: Given, question: str, as_json: bool) -> int:
    """Asks about each picture over one connection; returns the exit code of the first error."""
    from .client import check_question

    check_question(question)
    code = 0
    with _client(given.options) as client:
        for name in given.images:
            try:
                _ask_one(client, given, name, question, as_json)
            except (PictureError, RequestRefused, ServerBusy) as error:
                # About this picture only: the others still get their answer. Anything else ends the command.
                if len(given.images) == 1:
                    raise
                mine = say(error)
                code = code or mine
    return code


def _ask_one(client: EdgeClient, given: Given, name: str, question: str, as_json: bool) -> None:
    from . import report
    from .picture import read_stream

    several = len(given.images) > 1
    source = read_stream(sys.stdin.buffer, "standard input") if name == STDIN else name
    max_tokens = given.options["max_tokens"] or 0
    if as_json:
        answer = client.ask(source, question, max_tokens=max_tokens)
        click.echo(report.as_json(answer, name if several else None))
        return
    stream = report.Stream(name if several else "")
    try:
        answer = client.ask(source, question, max_tokens=max_tokens, on_token=stream.piece)
    except QtlError:
        stream.abandon()
        raise
    stream.finish(answer)
    click.echo(report.summary(answer), err=True)
