"""A server as a real process: signals in the middle of an answer."""

from __future__ import annotations

import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import pytest
import zmq

from qtl_core.messages import Token
from tests.server.conftest import make_manifest
from tests.server.peer import PATIENCE_S, Peer, eventually


@dataclass
class Process:
    """A running fake_server."""

    popen: subprocess.Popen[str]
    endpoint: str
    go: Path

    def finish(self) -> tuple[int, str, str]:
        out, err = self.popen.communicate(timeout=3 * PATIENCE_S)
        return self.popen.returncode, out, err


Start = Callable[..., Process]


@pytest.fixture
def start(tmp_path: Path, source_env: dict[str, str], repo_root: Path) -> Iterator[Start]:
    with ExitStack() as opened:

        def begin(endpoint: str = "tcp://127.0.0.1:*") -> Process:
            ready, go = tmp_path / "ready", tmp_path / "go"
            ready.unlink(missing_ok=True)
            popen = subprocess.Popen(
                [sys.executable, "-m", "tests.server.fake_server", endpoint, str(ready), str(go)],
                cwd=repo_root,
                env={**source_env, "PYTHONUNBUFFERED": "1"},
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
            )
            opened.enter_context(popen)
            opened.callback(popen.kill)
            assert eventually(lambda: ready.exists() or popen.poll() is not None)
            assert popen.poll() is None, popen.communicate()
            return Process(popen, ready.read_text().strip(), go)

        yield begin


@pytest.fixture
def peer_of() -> Iterator[Callable[[Process], Peer]]:
    with ExitStack() as opened:
        context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        opened.callback(context.term)

        def connect(process: Process) -> Peer:
            peer = Peer(context, process.endpoint, make_manifest())
            opened.callback(peer.close)
            return peer

        yield connect


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_signal_in_the_middle_of_an_answer(
    start: Start, peer_of: Callable[[Process], Peer], number: signal.Signals
) -> None:
    process = start()
    peer = peer_of(process)
    peer.hello()
    peer.ask(1, stream=True)
    assert peer.receive() == Token(1, 0, "a")
    process.popen.send_signal(number)
    peer.ask(2)  # refused, whether it came before the signal (it waits then) or after
    error = peer.error()
    assert (error.id, error.code) == (2, "closing")
    process.go.touch()
    tokens, answer = peer.streamed()
    assert [token.text for token in tokens] == ["b", "c"]
    assert answer.text == "abc"
    error = peer.error()
    assert (error.id, error.code) == (0, "closing")
    code, out, err = process.finish()
    assert code == 0, err
    assert out.startswith(f"qtl-server ready on {process.endpoint} (model test-model, 5 levels, fingerprint ")
    assert "Traceback" not in err
    assert "1 answered" in err


def test_second_signal_ends_it_at_once(start: Start, peer_of: Callable[[Process], Peer]) -> None:
    process = start()
    peer = peer_of(process)
    peer.hello()
    peer.ask(1, stream=True)
    assert peer.receive() == Token(1, 0, "a")
    peer.ask(2)
    process.popen.terminate()
    assert peer.error().id == 2
    process.popen.terminate()
    error = peer.error()
    assert (error.id, error.code) == (1, "closing")
    code, _, err = process.finish()
    assert code == 0, err


def test_idle_server_ends_at_once(start: Start) -> None:
    process = start()
    process.popen.terminate()
    code, out, err = process.finish()
    assert code == 0, err
    assert len(out.splitlines()) == 1


def test_killed_server_can_be_started_again_and_is_found_by_its_clients(
    start: Start, peer_of: Callable[[Process], Peer]
) -> None:
    process = start()
    peer = peer_of(process)
    session = peer.hello().session
    peer.ask(1, stream=True)
    assert peer.receive() == Token(1, 0, "a")
    process.popen.kill()
    assert process.finish()[0] == -signal.SIGKILL
    assert peer.hears_nothing()
    again = start(process.endpoint)
    again.go.touch()
    welcome = peer.hello(resume=session)  # the same socket: libzmq reconnects
    assert not welcome.resumed
    peer.ask(1, stream=True)
    assert peer.streamed()[1].text == "abc"


def test_taken_port_is_one_line(
    start: Start, source_env: dict[str, str], repo_root: Path, tmp_path: Path
) -> None:
    process = start()
    done = subprocess.run(
        [
            sys.executable,
            "-m",
            "tests.server.fake_server",
            process.endpoint,
            str(tmp_path / "r2"),
            str(process.go),
        ],
        cwd=repo_root,
        env=source_env,
        capture_output=True,
        text=True,
        timeout=3 * PATIENCE_S,
        check=False,
    )
    assert done.returncode == 9
    [line] = done.stderr.splitlines()
    assert line.startswith(f"error: cannot listen on {process.endpoint}: another program listens there")
