"""The prompt that ``edge_runtime`` alone opens: a picture once, then many questions about it."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable
from pathlib import Path

import click

from qtl_core import shipped
from qtl_core.errors import CheckpointError, QtlError
from qtl_core.exits import say

from .client import EdgeClient, Encoded
from .report import Stream, summary

HELP = "Type a question about the picture; /image FILE takes another picture, /quit ends."

Read = Callable[[str], "str | None"]
"""Shows a prompt and returns a line without its end, or None at the end of the input."""


class Prompt:
    """Reads questions and prints answers until /quit or the end of the input.

    Args:
        client: asks the questions.
        read: where lines come from.
        max_tokens: of one answer; 0 leaves it to the server.
    """

    def __init__(self, client: EdgeClient, read: Read, *, max_tokens: int = 0) -> None:
        self._client = client
        self._read = read
        self._max_tokens = max_tokens
        self._picture: Encoded | None = None
        self.exit_code = 0

    def run(self, image: str | None = None) -> int:
        """Runs the prompt.

        Args:
            image: the first picture; asked for if not given.

        Returns:
            0, or the exit code of the first error.
        """
        if image is not None:
            self._take(image)
        else:
            self._ask_for_picture()
        if self._picture is not None:
            click.echo(HELP, err=True)
        while self._picture is not None:
            line = self._read("? ")
            if line is None or not self._handle(line.strip()):
                break
        return self.exit_code

    def _ask_for_picture(self) -> None:
        example = _example()
        default = f" (enter for {example})" if example else ""
        while self._picture is None:
            line = self._read(f"picture{default}: ")
            if line is None or line.strip() == "/quit":
                return
            name = line.strip().removeprefix("/image").strip() or (str(example) if example else "")
            if name:
                self._take(name)

    def _handle(self, line: str) -> bool:
        """One line; False ends the prompt."""
        command, _, rest = line.partition(" ")
        if command in ("/quit", "/exit"):
            return False
        if command == "/image" and rest.strip():
            self._take(rest.strip())
        elif line.startswith("/"):
            click.echo(HELP, err=True)
        elif line:
            self._answer(line)
        return True

    def _take(self, name: str) -> None:
        try:
            self._picture = self._client.encode(Path(name).expanduser())
        except QtlError as error:
            self._report(error)

    def _answer(self, question: str) -> None:
        if self._picture is None:
            return
        stream = Stream()
        try:
            answer = self._client.ask(
                self._picture, question, max_tokens=self._max_tokens, on_token=stream.piece
            )
        except QtlError as error:
            stream.abandon()
            self._report(error)
            return
        except KeyboardInterrupt:
            # Ctrl-C stops waiting for this answer, not the prompt; what still comes of it is dropped.
            stream.abandon()
            click.echo("stopped", err=True)
            return
        stream.finish(answer)
        click.echo(summary(answer), err=True)

    def _report(self, error: QtlError) -> None:
        code = say(error)
        self.exit_code = self.exit_code or code


def read_line(text: str) -> str | None:
    """A line from the terminal, with editing; from a pipe without showing the prompt. None at the end."""
    if not sys.stdin.isatty():
        line = sys.stdin.readline()
        return line.rstrip("\n") if line else None
    with contextlib.suppress(ImportError):  # not everywhere
        import readline  # noqa: F401 - gives input() editing and a history
    try:
        return input(text)
    except EOFError:
        click.echo(err=True)
        return None


def _example() -> Path | None:
    try:
        return shipped.picture()
    except CheckpointError:
        return None
