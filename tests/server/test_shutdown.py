"""Stopping: nothing new is accepted, the current answer is finished, everybody is told."""

from __future__ import annotations

import pytest

from qtl_core.bundle import Manifest
from qtl_core.errors import BindError, HostError
from qtl_core.messages import Error, Token
from server_runtime import FakeEngine, Server, ServerConfig
from tests.server.conftest import Connect, Serve
from tests.server.peer import PATIENCE_S, Clock, Hold, eventually


def test_current_answer_is_finished_and_everybody_is_told(
    serve: Serve, connect: Connect, manifest: Manifest
) -> None:
    hold = Hold()
    running = serve(FakeEngine(manifest, "abc", before_piece=hold))
    asking, waiting, idle = connect(running), connect(running), connect(running)
    for peer in (asking, waiting, idle):
        peer.hello()
    asking.ask(1, stream=True)
    hold.wait_reached()
    waiting.ask(8)
    assert eventually(lambda: running.server._worker.load() == 2)
    running.server.stop()
    error = waiting.error()
    assert (error.code, error.id) == ("closing", 8)
    waiting.ask(9)
    error = waiting.error()
    assert (error.code, error.id) == ("closing", 9)
    idle.send(idle.hello_message())
    assert idle.error().code == "closing"
    hold.let(3)
    tokens, answer = asking.streamed()
    assert "".join(token.text for token in tokens) == answer.text == "abc"
    for peer in (asking, waiting, idle):
        assert peer.error() == Error(0, "closing", "the server is shutting down")
    running.stop()
    assert running.engine.closed
    assert running.server.counts.answered == 1


def test_grace_ends_an_answer_that_takes_too_long(serve: Serve, connect: Connect, manifest: Manifest) -> None:
    clock, hold = Clock(), Hold()
    running = serve(FakeEngine(manifest, "abc", before_piece=hold), clock=clock, grace_s=5)
    peer = connect(running)
    peer.hello()
    peer.ask(4, stream=True)
    hold.let(1)
    assert peer.receive() == Token(4, 0, "a")
    running.server.stop()
    assert peer.hears_nothing(0.05)
    clock.now += 5
    error = peer.error()
    assert (error.code, error.id) == ("closing", 4)
    assert peer.error().id == 0
    peer.close()
    hold.let(2)
    running.stop()


def test_second_stop_does_not_wait(serve: Serve, connect: Connect, manifest: Manifest) -> None:
    hold = Hold()
    running = serve(FakeEngine(manifest, "abc", before_piece=hold), grace_s=1000)
    peer = connect(running)
    peer.hello()
    peer.ask(4)
    hold.wait_reached()
    running.server.stop()
    running.server.stop()
    error = peer.error()
    assert (error.code, error.id) == ("closing", 4)
    hold.let(3)
    running.stop()


def test_no_new_session_while_stopping(serve: Serve, connect: Connect, manifest: Manifest) -> None:
    hold = Hold()
    running = serve(FakeEngine(manifest, before_piece=hold))
    peer, late = connect(running), connect(running)
    peer.hello()
    peer.ask(1)
    hold.wait_reached()
    running.server.stop()
    late.send(late.hello_message())
    assert late.error() == Error(0, "closing", "the server is shutting down: come back later")
    hold.let(1)
    assert peer.answer().text == "four"


def test_engine_thread_that_dies_ends_the_server(
    serve: Serve, connect: Connect, manifest: Manifest, caplog: pytest.LogCaptureFixture
) -> None:
    class Gone(BaseException):
        """Not an Exception: what nobody expects."""

    def raises(index: int) -> None:
        raise Gone

    running = serve(FakeEngine(manifest, before_piece=raises))
    peer = connect(running)
    peer.hello()
    peer.ask(1)
    running.thread.join(PATIENCE_S)
    [failure] = running.failures
    assert isinstance(failure, HostError)
    assert "Gone" in caplog.text
    running.failures.clear()


def test_close_without_serve_frees_everything(manifest: Manifest) -> None:
    engine = FakeEngine(manifest)
    with Server(ServerConfig(bind="tcp://127.0.0.1:*"), engine) as server:
        endpoint = server.endpoint
    assert engine.closed
    server.close()
    server.stop()
    again = Server(ServerConfig(bind=endpoint), FakeEngine(manifest))
    again.close()


def test_failed_construction_closes_the_engine(manifest: Manifest) -> None:
    with Server(ServerConfig(bind="tcp://127.0.0.1:*"), FakeEngine(manifest)) as first:
        engine = FakeEngine(manifest)
        with pytest.raises(BindError, match="another program"):
            Server(ServerConfig(bind=first.endpoint), engine)
        assert engine.closed
