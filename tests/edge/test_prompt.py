"""The prompt: one picture, many questions, and errors that do not end it."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from edge_runtime import EdgeClient, prompt
from edge_runtime.prompt import Prompt
from tests.edge import tiny
from tests.edge.peer import Request, ScriptedServer, four
from tests.edge.test_cli import Run, run

__all__ = ["run"]

Serve = Callable[..., ScriptedServer]
Connect = Callable[..., EdgeClient]


class Typist:
    """Types lines, and remembers what it was asked."""

    def __init__(self, *lines: str) -> None:
        self._lines = iter(lines)
        self.prompts: list[str] = []

    def __call__(self, text: str) -> str | None:
        self.prompts.append(text)
        return next(self._lines, None)


def test_one_picture_many_questions(
    serve: Serve, connect: Connect, image: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    other = tmp_path / "other.png"
    other.write_bytes(tiny.file_bytes(tiny.scene(5)))
    server = serve()
    typist = Typist(str(image), "one?", "", "two?", f"/image {other}", "three?", "/what", "/quit", "never")
    assert Prompt(connect(server), typist, max_tokens=4).run() == 0
    assert [each.ask.question for each in server.requests] == ["one?", "two?", "three?"]
    assert {each.ask.max_tokens for each in server.requests} == {4}
    payloads = [each.payloads["v"] for each in server.requests]
    assert payloads[0] == payloads[1] and payloads[2] == tiny.payload(tiny.scene(5))
    assert len(server.hellos) == 1
    captured = capsys.readouterr()
    assert captured.out == "four red\n" * 3
    assert captured.err.count("payload 12 B") == 3 and captured.err.count("/quit ends") == 2
    assert typist.prompts[0].startswith("picture") and set(typist.prompts[1:]) == {"? "}


def test_errors_are_told_and_the_prompt_goes_on(
    serve: Serve, connect: Connect, image: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def once(request: Request) -> None:
        if request.number == 0:
            request.tokens("fo")
            request.error("internal", "it failed")
        else:
            four(request)

    typist = Typist("absent.png", str(image), "one?", "/image also-absent.png", "two?")
    assert Prompt(connect(serve(once)), typist).run() == 3  # of the first error
    captured = capsys.readouterr()
    assert captured.out == "fo\nfour red\n"
    errors = [line for line in captured.err.splitlines() if line.startswith("error: ")]
    assert len(errors) == 3 and "it failed" in errors[1]


def test_interrupt_stops_the_answer_and_not_the_prompt(
    serve: Serve, connect: Connect, image: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    client = connect(serve())
    real = client.ask
    interrupted: list[bool] = []

    def ask(*args: object, **kwargs: object) -> object:
        if not interrupted:
            interrupted.append(True)
            raise KeyboardInterrupt
        return real(*args, **kwargs)  # type: ignore[arg-type]

    monkeypatch.setattr(client, "ask", ask)
    assert Prompt(client, Typist("one?", "two?")).run(str(image)) == 0


def test_example_is_offered(
    serve: Serve, connect: Connect, image: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(prompt, "_example", lambda: image)
    server = serve()
    typist = Typist("", "what?")
    Prompt(connect(server), typist).run()
    assert str(image) in typist.prompts[0] and len(server.requests) == 1
    monkeypatch.setattr(prompt, "_example", lambda: None)
    typist = Typist("", "", "/quit")
    assert Prompt(connect(server), typist).run() == 0
    assert typist.prompts == ["picture: "] * 3


def test_command_alone_opens_the_prompt(run: Run, serve: Serve, half: Path, image: Path, nobody: str) -> None:
    server = serve()
    given = ("--server", server.endpoint, "--bundle", half, "--threads", "1")
    outcome = run(*given, stdin=f"{image}\nhow many?\n/quit\n".encode())
    assert (outcome.code, outcome.out) == (0, "four red\n")
    outcome = run(*given, "--image", image, stdin=b"how many?\nand now?")
    assert (outcome.code, outcome.out) == (0, "four red\nfour red\n")
    outcome = run("--server", nobody, "--bundle", half, "--timeout", "0.2")
    assert outcome.code == 5 and nobody in outcome.error


def test_lines_from_a_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdin", Terminal())
    typed = iter(["hello"])

    def fake_input(text: str) -> str:
        assert text == "? "
        try:
            return next(typed)
        except StopIteration:
            raise EOFError from None

    monkeypatch.setattr("builtins.input", fake_input)
    assert prompt.read_line("? ") == "hello"
    assert prompt.read_line("? ") is None


class Terminal:
    def isatty(self) -> bool:
        return True
