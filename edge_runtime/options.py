"""The options of ``edge_runtime`` and its commands: each is declared once, and means the same everywhere."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final, TypeVar

import click

from qtl_core.limits import MAX_MULTIPLE
from qtl_core.shipped import BUNDLE, SERVER

F = TypeVar("F", bound=Callable[..., Any])

LINK: Final = (
    click.option("--bundle", metavar="DIR", help=f"The bundle, or its client half.  [default: {BUNDLE}]"),
    click.option("--server", metavar="ADDRESS", help=f"Where qtl-server listens.  [default: {SERVER}]"),
    click.option("--key", metavar="FILE", help="This client's .key_secret file: encrypt everything (CURVE)."),
    click.option("--server-key", metavar="FILE", help="The server's .key file; goes with --key."),
    click.option("--insecure", is_flag=True, default=None, help="Speak plaintext to another machine."),
    click.option(
        "--timeout",
        type=click.FloatRange(min=0, min_open=True),
        metavar="SECONDS",
        help="How long to wait for the server: to connect, between signs of life, while busy.  [default: 10]",
    ),
)
"""Which bundle, and how to reach its server."""

CLIENT: Final = (
    *LINK,
    click.option(
        "--max-tokens",
        type=click.IntRange(min=1),
        metavar="N",
        help="Longest answer in tokens.  [default: the server's]",
    ),
    click.option(
        "--threads",
        type=click.IntRange(min=0),
        metavar="N",
        help="Threads of the graph, 0 for onnxruntime's own number.  [default: what edge_runtime bench chose "
        "for this bundle, else 0]",
    ),
    click.option(
        "--variant",
        metavar="NAME",
        help="Which of the bundle's graphs.  [default: what bench chose, else fp32]",
    ),
    click.option(
        "--pad",
        type=click.IntRange(min=0, max=MAX_MULTIPLE),
        metavar="N",
        help="Make both frames of each question multiples of N bytes long. Of the lengths of picture and "
        "question an eavesdropper then sees only which multiple; not hidden are the number and timing of "
        "messages and the answer's length.  [default: 0, as long as they are]",
    ),
    click.option(
        "--provider",
        multiple=True,
        metavar="NAME",
        help="onnxruntime execution provider, best first; may be repeated.  [default: what bench "
        "chose, else CPUExecutionProvider]",
    ),
)
"""All that a client can be told."""


@dataclass(frozen=True)
class Given:
    """The options that were given before the command; those after it win."""

    options: dict[str, Any]
    images: tuple[str, ...]

    def with_later(self, options: dict[str, Any]) -> dict[str, Any]:
        """These options, overruled by those given after the command."""
        return {**self.options, **{name: value for name, value in options.items() if value not in (None, ())}}


def with_options(*options: Callable[[Any], Any]) -> Callable[[F], F]:
    """A decorator that gives a command these options, in this order in its help."""

    def decorate(command: F) -> F:
        for option in reversed(options):
            command = option(command)
        return command

    return decorate


def version_option(command: F) -> F:
    """``--version`` that looks the version up when it is asked for: reading metadata costs 20 ms."""

    def show(ctx: click.Context, parameter: click.Parameter, value: bool) -> None:
        if not value or ctx.resilient_parsing:
            return
        from qtl_core import __version__

        click.echo(f"edge_runtime, version {__version__}", color=ctx.color)
        ctx.exit()

    decorated: F = click.option(
        "--version",
        is_flag=True,
        expose_value=False,
        is_eager=True,
        callback=show,
        help="Show the version and exit.",
    )(command)
    return decorated
