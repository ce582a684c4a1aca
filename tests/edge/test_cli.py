"""The command: what it prints where, and one line and the right exit code for everything that goes wrong."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

from edge_runtime import cli
from qtl_core import messages as m
from tests.edge import tiny
from tests.edge.peer import Die, Request, ScriptedServer, four

Serve = Callable[..., ScriptedServer]

KEYS = {
    "answer": str,
    "bits": int,
    "levels": int,
    "tiles": int,
    "tokens": int,
    "code_dim": int,
    "payload_bytes": int,
    "packed_bytes": int,
    "codec": str,
    "bytes_up": int,
    "bytes_down": int,
    "feature_bytes_16bit": int,
    "jpeg_bytes": int,
    "ms": dict,
}
MS = ("preprocess", "encode", "round_trip", "server", "total")


@dataclass
class Outcome:
    code: int
    out: str
    err: str

    @property
    def error(self) -> str:
        """The one error line."""
        (line,) = [each for each in self.err.splitlines() if each.startswith("error: ")]
        return line


Run = Callable[..., Outcome]


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], half: Path) -> Run:
    """Runs the command in this process; ``server`` and the bundle are filled in."""

    def runs(*args: object, server: ScriptedServer | str | None = None, stdin: bytes = b"") -> Outcome:
        argv = ["edge_runtime", *map(str, args)]
        if server is not None:
            address = server if isinstance(server, str) else server.endpoint
            argv[2:2] = ["--server", address, "--bundle", str(half), "--threads", "1"]
        monkeypatch.setattr(sys, "argv", argv)
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(stdin), encoding="utf-8"))
        code = cli.main()
        captured = capsys.readouterr()
        return Outcome(code, captured.out, captured.err)

    return runs


def test_answer_streams_to_stdout_and_the_summary_to_stderr(run: Run, serve: Serve, image: Path) -> None:
    outcome = run("ask", "--image", image, "how many?", server=serve())
    assert (outcome.code, outcome.out) == (0, "four red\n")
    (summary,) = outcome.err.splitlines()
    assert summary.startswith("payload 12 B (16 tokens x 3 codes x 2 bit);")
    for part in (" B up, ", " B down;", "16-bit features 96 B (8.0x)", "as JPEG "):
        assert part in summary


def test_json_has_exactly_the_keys(run: Run, serve: Serve, image: Path) -> None:
    server = serve()
    outcome = run("ask", "--image", image, "--json", "how many?", server=server)
    assert (outcome.code, outcome.err) == (0, "")
    (line,) = outcome.out.splitlines()
    found = json.loads(line)
    assert {name: type(value) for name, value in found.items()} == KEYS
    assert tuple(found["ms"]) == MS and all(value >= 0 for value in found["ms"].values())
    assert found["answer"] == "four red"
    assert (found["bytes_up"], found["bytes_down"]) == (server.bytes_up, server.bytes_down)
    assert not server.requests[0].ask.stream


def test_standard_input(run: Run, serve: Serve, image: Path) -> None:
    outcome = run("ask", "--image", "-", "what?", server=serve(), stdin=image.read_bytes())
    assert (outcome.code, outcome.out) == (0, "four red\n")
    empty = run("ask", "--image", "-", "what?", server=serve())
    assert empty.code == 3 and "standard input is empty" in empty.error


def test_several_pictures_share_a_connection(run: Run, serve: Serve, image: Path, tmp_path: Path) -> None:
    other = tmp_path / "other.jpg"
    other.write_bytes(tiny.file_bytes(tiny.scene(9), "JPEG"))
    server = serve()
    images = ("--image", image, "--image", other, "--image", "-")
    outcome = run("ask", *images, "--json", "what?", server=server, stdin=image.read_bytes())
    assert outcome.code == 0
    assert [json.loads(line)["image"] for line in outcome.out.splitlines()] == [str(image), str(other), "-"]
    assert len(server.hellos) == 1 and len(server.requests) == 3
    plain = run("ask", *images, "what?", server=server, stdin=image.read_bytes())
    assert plain.out == f"{image}: four red\n{other}: four red\n-: four red\n"
    assert len(plain.err.splitlines()) == 3


def test_broken_picture_among_others(run: Run, serve: Serve, image: Path, tmp_path: Path) -> None:
    broken = tmp_path / "broken.png"
    broken.write_bytes(image.read_bytes()[:60])
    images = ("--image", image, "--image", broken, "--image", tmp_path / "absent.png", "--image", image)
    outcome = run("ask", *images, "--json", "what?", server=serve())
    assert outcome.code == 3
    assert len(outcome.out.splitlines()) == 2
    first, second = outcome.err.splitlines()
    assert first.startswith(f"error: {broken} is broken or truncated")
    assert second.startswith("error: there is no picture at")


def test_refused_question_among_others(run: Run, serve: Serve, image: Path) -> None:
    def refuse_the_first(request: Request) -> None:
        if request.number == 0:
            request.tokens("fo")
            request.error("internal", "it failed")
        else:
            four(request)

    images = ("--image", image, "--image", image)
    outcome = run("ask", *images, "what?", server=serve(refuse_the_first))
    assert outcome.code == 6
    assert outcome.out == f"{image}: fo\n{image}: four red\n"
    assert "it failed" in outcome.error


def test_defaults_are_told(run: Run, monkeypatch: pytest.MonkeyPatch, half: Path, image: Path) -> None:
    monkeypatch.chdir(half.parent.parent)
    monkeypatch.setattr(cli, "SERVER", "tcp://127.0.0.1:1")
    outcome = run("ask", "--timeout", "0.2", "--image", image, "what?")
    assert outcome.code == 5
    first, second = outcome.err.splitlines()
    assert first == "using bundle ./bundle and server tcp://127.0.0.1:1 (default)"
    assert "no server at tcp://127.0.0.1:1 within 0.2 s" in second


def test_options_before_the_command_count(run: Run, serve: Serve, half: Path, image: Path) -> None:
    server = serve()
    outcome = run("--server", server.endpoint, "--bundle", half, "--image", image, "ask", "what?")
    assert (outcome.code, outcome.out) == (0, "four red\n")
    limited = run(
        "--server", "tcp://127.0.0.1:1", "--bundle", half, "--max-tokens", 3, "ask", "--image", image,
        "--server", server.endpoint, "what?",
    )  # fmt: skip
    assert limited.code == 0 and server.requests[-1].ask.max_tokens == 3


@pytest.mark.parametrize(
    "args",
    [
        ("ask",),
        ("ask", "what?"),
        ("ask", "--image", "-", "--image", "-", "what?"),
        ("ask", "--timeout", "0", "--image", "x", "what?"),
        ("ask", "--max-tokens", "0", "--image", "x", "what?"),
        ("ask", "--no-such-option", "what?"),
        ("no-such-command",),
        ("--image", "a", "--image", "b"),
        ("--image", "-"),
    ],
)
def test_wrong_command_line(run: Run, args: tuple[str, ...]) -> None:
    outcome = run(*args)
    assert outcome.code == 2 and outcome.out == ""
    assert "Usage:" in outcome.err and "Error:" in outcome.err


def test_terminal_is_no_picture(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    class Terminal(io.TextIOWrapper):
        def isatty(self) -> bool:
            return True

    monkeypatch.setattr(io, "TextIOWrapper", Terminal)
    outcome = run("ask", "--image", "-", "what?")
    assert outcome.code == 2 and "terminal" in outcome.err


def test_help_has_an_example(run: Run) -> None:
    for args in (("--help",), ("-h",), ("ask", "--help")):
        outcome = run(*args)
        assert outcome.code == 0
        assert 'edge_runtime ask --image scene.png "how many red digits are there?"' in outcome.out
    assert run("--version").out.startswith("edge_runtime, version ")


def one_error(outcome: Outcome, code: int, says: str) -> None:
    assert outcome.code == code, outcome
    assert outcome.out == ""
    assert says in outcome.error
    assert "Traceback" not in outcome.err


def test_bad_pictures(run: Run, serve: Serve, tmp_path: Path) -> None:
    server = serve()
    (tmp_path / "broken.jpg").write_bytes(tiny.file_bytes(tiny.scene(), "JPEG")[:200])
    (tmp_path / "text.png").write_text("hello")
    (tmp_path / "large.png").write_bytes(tiny.file_bytes(tiny.scene(0, 1001, 1001)))
    for name, says in (
        ("absent.png", "there is no picture at"),
        ("broken.jpg", "broken or truncated"),
        ("text.png", "no PNG, JPEG or WebP"),
        ("large.png", "1001 x 1001 pixels, more than the 1000000"),
        (".", "is a directory"),
    ):
        one_error(run("ask", "--image", tmp_path / name, "what?", server=server), 3, says)
    assert not server.requests


def test_bad_questions(run: Run, serve: Serve, image: Path, nobody: str) -> None:
    one_error(run("ask", "--image", image, "  ", server=nobody), 3, "the question is empty")
    one_error(run("ask", "--image", image, "x" * 300, server=serve()), 3, "takes 200: shorten it")
    long = serve(
        lambda request: request.error("question", "it has 20 tokens, this model takes 8: shorten it")
    )
    one_error(run("ask", "--image", image, "a b", server=long), 3, "takes 8: shorten it")


def test_bad_bundles(run: Run, image: Path, half: Path, nobody: str) -> None:
    one_error(run("ask", "--bundle", half / "x", "--image", image, "what?"), 4, "does not exist")
    graph = half / "client.onnx"
    graph.write_bytes(graph.read_bytes()[:-1] + b"x")
    one_error(run("ask", "--image", image, "what?", server=nobody), 4, "SHA-256 differs")
    tiny.edit_manifest(half, half="server")
    one_error(run("ask", "--image", image, "what?", server=nobody), 4, "give the client half")


def test_bundle_of_a_newer_version(run: Run, image: Path, half: Path, nobody: str) -> None:
    tiny.edit_manifest(half, schema=2)
    says = "has schema 2, this version reads 1; install a newer qtl-edge"
    one_error(run("ask", "--image", image, "what?", server=nobody), 4, says)


def test_bad_servers(run: Run, serve: Serve, image: Path, nobody: str) -> None:
    def die(request: Request) -> None:
        raise Die

    asked = ("ask", "--timeout", "2", "--image", image, "what?")
    one_error(run(*asked, server=nobody), 5, f"no server at {nobody} within 2 s")
    one_error(run(*asked, server=serve(lambda request: None, pongs=False)), 5, "fell silent")
    one_error(run(*asked, server=serve(die)), 5, "lost in the middle of an answer")
    reject = m.Reject(reason="fingerprint", message="aa is not bb")
    one_error(run(*asked, server=serve(welcome=lambda hello: reject)), 6, "aa is not bb")
    one_error(run(*asked, server=serve(lambda request: request.error("codes", "out of range"))), 6, "range")
    busy = serve(lambda request: request.send(m.Busy(id=request.ask.id, retry_ms=5000)))
    one_error(run(*asked, server=busy), 6, "busy")
    one_error(run(*asked, server=serve(welcome=lambda hello: b"\x00")), 7, "error: ")


def test_bad_settings(run: Run, image: Path, half: Path, tmp_path: Path) -> None:
    asked = ("ask", "--bundle", half, "--image", image, "what?")
    one_error(run(*asked, "--server", "nonsense"), 3, "is no address")
    one_error(run(*asked, "--server", "tcp://10.0.0.2:5555"), 3, "--insecure")
    one_error(run(*asked, "--provider", "NoSuch"), 3, "NoSuch")
    one_error(run(*asked, "--key", "x"), 3, "without --server-key")
    keys = ("--key", tmp_path / "x", "--server-key", tmp_path / "y")
    one_error(run(*asked, *keys), 9, "cannot read the key file")


def test_server_cannot_steer_the_terminal(run: Run, serve: Serve, image: Path) -> None:
    evil = serve(lambda request: request.answer("\x1b]0;gotcha\x07red\u202e\nline"))
    outcome = run("ask", "--image", image, "what?", server=evil)
    assert outcome.out.startswith("\\x1b]0;gotcha\\x07red\\u202e") and outcome.out.endswith("\nline\n")
    refusing = serve(lambda request: request.error("internal", "a\x1b[2Jb"))
    assert "\x1b" not in run("ask", "--image", image, "what?", server=refusing).err


def test_empty_answer_is_an_empty_line(run: Run, serve: Serve, image: Path) -> None:
    outcome = run("ask", "--image", image, "what?", server=serve(lambda request: request.answer("")))
    assert (outcome.code, outcome.out) == (0, "\n")


def test_answer_that_is_not_what_was_streamed(run: Run, serve: Serve, image: Path) -> None:
    def revise(request: Request) -> None:
        request.tokens("three")
        request.answer("four")

    assert run("ask", "--image", image, "what?", server=serve(revise)).out == "three\nfour\n"


def test_python_dash_m_is_the_same_program(
    serve: Serve, half: Path, image: Path, source_env: dict[str, str]
) -> None:
    args = ["ask", "--bundle", str(half), "--server", serve().endpoint, "--image", "-", "--json", "what?"]
    # An ASCII locale must not keep a script from its answer.
    env = {**source_env, "LC_ALL": "C", "PYTHONIOENCODING": "ascii"}
    done = subprocess.run(
        [sys.executable, "-m", "edge_runtime", *args],
        input=image.read_bytes(), capture_output=True, env=env, timeout=60, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["answer"] == "four red"


def test_reader_that_leaves_is_no_traceback(
    serve: Serve, half: Path, image: Path, source_env: dict[str, str]
) -> None:
    args = ["ask", "--bundle", str(half), "--server", serve().endpoint, "--image", str(image), "what?"]
    read, write = os.pipe()
    os.close(read)
    done = subprocess.run(
        [sys.executable, "-m", "edge_runtime", *args],
        stdout=write, stderr=subprocess.PIPE, env=source_env, timeout=60, check=False,
    )  # fmt: skip
    os.close(write)
    assert done.returncode == 141 and b"Traceback" not in done.stderr
