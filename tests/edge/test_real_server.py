"""The client against the real server's front, with its fake engine: do both ends agree?"""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest

from edge_runtime import EdgeClient
from qtl_core import bundle, codes, keys
from qtl_core.errors import HandshakeRefused, QuestionError, RequestRefused, ServerLost
from tests.edge import tiny
from tests.edge.test_cli import Run, run

# The front needs no torch, so that this runs in the bare tier too.
server_runtime = pytest.importorskip("server_runtime")

__all__ = ["run"]

Connect = Callable[..., EdgeClient]
Start = Callable[..., Any]


@pytest.fixture
def start(half: Path) -> Iterator[Start]:
    """Starts real servers over a fake engine; they end with the test."""
    with ExitStack() as stack:
        client = bundle.open_half(half, "client").manifest
        manifest = msgspec.structs.replace(client, half="server")

        def starts(
            pieces: Any = ("four", " red"), *, change: Any = None, engine: Any = None, **settings: Any
        ) -> Any:
            its = msgspec.structs.replace(manifest, **(change or {}))
            settings.setdefault("bind", "tcp://127.0.0.1:*")
            fake = server_runtime.FakeEngine(its, pieces, **(engine or {}))
            server = server_runtime.Server(server_runtime.ServerConfig(**settings), fake)
            thread = threading.Thread(target=server.serve)
            thread.start()

            def stop() -> None:
                server.stop()
                thread.join(20)
                assert not thread.is_alive()

            stack.callback(stop)
            server.ends, server.fake = stop, fake
            return server

        yield starts


def test_question_arrives_and_answer_comes_back(start: Start, connect: Connect) -> None:
    server = start()
    pixels = tiny.scene(11)
    pieces: list[str] = []
    client = connect(server.endpoint)
    answer = client.ask(pixels, "how many are red?", on_token=pieces.append)
    assert answer.text == "four red" and pieces == ["four", " red"]
    assert answer.answer_tokens == 2 and answer.finish == "stop"
    (prompt,) = server.fake.prompts
    assert prompt.question == "how many are red?"
    expected = codes.unpack(tiny.payload(pixels), tiny.LEVELS, (tiny.TOKENS, tiny.CODE_DIM))
    assert np.array_equal(prompt.vision, expected)
    shortened = client.ask(pixels, "how many are red?", max_tokens=1)
    assert shortened.text == "four" and shortened.finish == "length"


def test_bytes_are_the_servers_bytes(start: Start, connect: Connect, image: Path) -> None:
    server = start()
    client = connect(server.endpoint)
    client.ask(image, "one?")
    client.ask(image, "two?")
    client.close()
    server.ends()
    counts, goodbye = server.counts, 4
    assert counts.bytes_out == client.bytes_down + client._handshakes.down
    assert counts.bytes_in == client.bytes_up + client._handshakes.up + goodbye


def test_refusals(start: Start, connect: Connect, image: Path) -> None:
    client = connect(start(max_question=30).endpoint)
    with pytest.raises(QuestionError, match="this server takes 30"):
        client.ask(image, "x" * 31)
    with pytest.raises(QuestionError, match="tokens, this model takes 8"):
        client.ask(image, "a b c d e f g h i")
    assert client.ask(image, "a b c").text == "four red"
    with pytest.raises(HandshakeRefused) as caught:
        connect(start(change={"fingerprint": "0" * 32}).endpoint).ask(image, "what?")
    assert caught.value.reason == "fingerprint"
    assert "0" * 32 in str(caught.value) and client.manifest.fingerprint in str(caught.value)


def test_engine_that_fails(start: Start, connect: Connect, image: Path) -> None:
    def fail(prompt: Any) -> Any:
        if prompt.question == "fail":
            raise ValueError("no")
        return ("fine",)

    client = connect(start(fail).endpoint)
    with pytest.raises(RequestRefused) as caught:
        client.ask(image, "fail")
    assert caught.value.reason == "internal"
    assert client.ask(image, "work").text == "fine"


def test_restart_between_and_loss_during_questions(start: Start, connect: Connect, image: Path) -> None:
    held, reached = threading.Event(), threading.Event()

    def hold(index: int) -> None:
        if index == 1:
            reached.set()
            held.wait(20)

    first = start()
    client = connect(first.endpoint, timeout=30, comeback=0.5)
    client.ask(image, "one?")
    first.ends()
    second = start(bind=first.endpoint, engine={"before_piece": hold}, grace_s=0.0)
    pieces: list[str] = []
    ended: list[BaseException] = []

    def ask() -> None:
        try:
            client.ask(image, "two?", on_token=pieces.append)
        except BaseException as error:
            ended.append(error)

    asking = threading.Thread(target=ask)
    asking.start()
    assert reached.wait(20)
    second.stop()
    asking.join(20)
    held.set()
    assert pieces == ["four"]
    assert isinstance(ended[0], ServerLost | RequestRefused), ended


def test_server_restarted_during_a_question(start: Start, connect: Connect, image: Path) -> None:
    held, reached = threading.Event(), threading.Event()

    def hold(index: int) -> None:
        reached.set()
        held.wait(20)

    first = start(engine={"before_piece": hold}, grace_s=0.0)
    client = connect(first.endpoint, timeout=30, comeback=20)
    answers: list[Any] = []
    asking = threading.Thread(target=lambda: answers.append(client.ask(image, "what?")))
    asking.start()
    assert reached.wait(20)
    first.stop()
    held.set()
    first.ends()
    start(bind=first.endpoint)
    asking.join(30)
    assert answers[0].text == "four red"


def test_forgotten_session(start: Start, connect: Connect, image: Path) -> None:
    server = start(idle_s=1.0)
    client = connect(server.endpoint)
    client.ask(image, "one?")
    while server.sessions:
        threading.Event().wait(0.05)
    assert client.ask(image, "two?").text == "four red"


def test_encrypted(start: Start, connect: Connect, image: Path, tmp_path: Path) -> None:
    folder = tmp_path / "keys"
    server_files = keys.generate(folder, "server")
    me = keys.generate(tmp_path / "me", "me")
    stranger = keys.generate(tmp_path / "stranger", "stranger")
    (folder / "clients").mkdir(mode=0o700)
    (folder / "clients" / "me.key").write_bytes(me.public.read_bytes())
    server = start(keys=folder)
    client = connect(server.endpoint, key=me.secret, server_key=server_files.public)
    assert client.ask(image, "what?").text == "four red"
    with pytest.raises(HandshakeRefused, match="key"):
        connect(server.endpoint, timeout=30, key=stranger.secret, server_key=server_files.public).ask(
            image, "what?"
        )
    with pytest.raises(HandshakeRefused, match="encrypt"):
        connect(server.endpoint, timeout=30).ask(image, "what?")


def test_command(run: Run, start: Start, image: Path) -> None:
    outcome = run("ask", "--image", image, "--image", image, "--json", "what?", server=start().endpoint)
    assert outcome.code == 0
    assert [json.loads(line)["answer"] for line in outcome.out.splitlines()] == ["four red"] * 2
