"""ASK and its answers: streaming, limits, retries, credits, reconnects."""

from __future__ import annotations

import msgspec
import numpy as np
import pytest

from qtl_core.bundle import Manifest
from qtl_core.codes import unpack
from qtl_core.messages import Answer, Ask, Busy, Token
from qtl_core.wire import join, wire_size
from server_runtime import FakeEngine
from tests.server.conftest import CODE_DIM, TOKENS, Connect, Serve, make_manifest
from tests.server.peer import Clock, Hold, eventually


@pytest.mark.parametrize("levels", [2, 3, 4, 5, 100, 256])
def test_engine_gets_the_codes_that_were_sent(serve: Serve, connect: Connect, levels: int) -> None:
    running = serve(make_manifest(levels))
    peer = connect(running)
    peer.hello()
    peer.ask(question="wie viele? ü")
    assert peer.answer().text == "four"
    [prompt] = running.engine.prompts
    np.testing.assert_array_equal(prompt.vision, unpack(peer.payload(), levels, (TOKENS, CODE_DIM)))
    assert prompt.question == "wie viele? ü"
    assert prompt.text_codes is None


def test_tokens_stream_in_order_and_join_to_the_answer(
    serve: Serve, connect: Connect, manifest: Manifest
) -> None:
    running = serve(FakeEngine(manifest, ["a", "", " ü", "b"]))
    peer = connect(running)
    peer.hello()
    peer.ask(3, stream=True)
    tokens, answer = peer.streamed()
    assert tokens == [Token(3, 0, "a"), Token(3, 1, " ü"), Token(3, 2, "b")]
    assert (answer.id, answer.text, answer.tokens, answer.finish) == (3, "a üb", 4, "stop")


def test_answer_alone_without_stream(serve: Serve, connect: Connect, manifest: Manifest) -> None:
    peer = connect(serve(FakeEngine(manifest, "abc")))
    peer.hello()
    peer.ask(stream=False)
    assert peer.answer().text == "abc"


def test_empty_answer(serve: Serve, connect: Connect, manifest: Manifest) -> None:
    peer = connect(serve(FakeEngine(manifest, [])))
    peer.hello()
    peer.ask(stream=True)
    answer = peer.answer()
    assert (answer.text, answer.tokens, answer.finish) == ("", 0, "stop")


@pytest.mark.parametrize(("asked", "got"), [(0, 4), (2, 2), (4, 4), (1_000_000, 4)])
def test_max_tokens(serve: Serve, connect: Connect, manifest: Manifest, asked: int, got: int) -> None:
    peer = connect(serve(FakeEngine(manifest, "abcdefgh"), max_tokens=4))
    peer.hello()
    peer.ask(max_tokens=asked)
    answer = peer.answer()
    assert answer.text == "abcdefgh"[:got]
    assert answer.finish == "length"


def test_server_time_is_from_arrival_to_answer(serve: Serve, connect: Connect, manifest: Manifest) -> None:
    clock, hold = Clock(), Hold()
    peer = connect(serve(FakeEngine(manifest, before_piece=hold), clock=clock))
    peer.hello()
    peer.ask()
    hold.wait_reached()
    clock.now += 0.25
    hold.let(1)
    assert peer.answer().server_us == 250_000


def test_retry_of_an_answered_question_is_not_computed_again(
    serve: Serve, connect: Connect, manifest: Manifest
) -> None:
    running = serve(FakeEngine(manifest, "ab"))
    peer = connect(running)
    peer.hello()
    peer.ask(1, stream=True)
    first = peer.streamed()
    peer.ask(1, stream=True)
    assert peer.streamed() == first
    peer.ask(1, stream=False)
    assert peer.answer() == first[1]
    assert len(running.engine.prompts) == 1
    assert running.server.counts.replayed == 2


def test_retry_after_reconnect_with_resume(serve: Serve, connect: Connect, manifest: Manifest) -> None:
    running = serve(FakeEngine(manifest, "ab"))
    peer = connect(running)
    peer.hello()
    peer.ask(1, stream=True)
    first = peer.streamed()
    peer.reconnect()
    assert peer.hello(resume=peer.session).resumed
    peer.ask(1, stream=True)
    assert peer.streamed() == first
    peer.ask(2, stream=False)
    assert peer.answer().text == "ab"
    assert len(running.engine.prompts) == 2


def test_retry_in_flight_after_reconnect_gets_all_tokens(
    serve: Serve, connect: Connect, manifest: Manifest
) -> None:
    hold = Hold()
    running = serve(FakeEngine(manifest, "abcd", before_piece=hold))
    peer = connect(running)
    peer.hello()
    peer.ask(1, stream=True)
    hold.let(2)
    assert peer.receive() == Token(1, 0, "a")
    assert peer.receive() == Token(1, 1, "b")
    peer.reconnect()
    assert eventually(lambda: running.server.counts.lost == 1)
    hold.let(1)  # "c" is computed while nobody is there to hear it
    assert eventually(lambda: running.server.counts.unsent == 1)
    assert peer.hello(resume=peer.session).resumed
    peer.ask(1, stream=True)
    assert [peer.receive() for _ in range(3)] == [Token(1, i, t) for i, t in enumerate("abc")]
    hold.let(1)
    tokens, answer = peer.streamed()
    assert tokens == [Token(1, 3, "d")]
    assert answer.text == "abcd"
    assert len(running.engine.prompts) == 1


def test_answer_follows_a_resumed_session_without_a_retry(
    serve: Serve, connect: Connect, manifest: Manifest
) -> None:
    hold = Hold()
    running = serve(FakeEngine(manifest, before_piece=hold))
    peer = connect(running)
    peer.hello()
    peer.ask(1)
    hold.wait_reached()
    peer.reconnect()
    peer.hello(resume=peer.session)
    hold.let(1)
    assert peer.answer().text == "four"


def test_old_connection_of_a_resumed_session_has_none(serve: Serve, connect: Connect) -> None:
    running = serve()
    old, new = connect(running), connect(running)
    old.hello()
    new.hello(resume=old.session)
    old.ask()
    assert old.error().code == "no_session"
    new.ask()
    assert new.answer().text == "four"


def test_duplicate_id_in_flight(serve: Serve, connect: Connect, manifest: Manifest) -> None:
    hold = Hold()
    running = serve(FakeEngine(manifest, before_piece=hold))
    peer, other = connect(running), connect(running)
    peer.hello()
    other.hello()
    peer.ask(1)
    hold.wait_reached()
    peer.ask(1)
    error = peer.error()
    assert (error.code, error.id) == ("duplicate", 1)
    hold.let(2)
    assert peer.answer().text == "four"
    other.ask(1)  # ids are a session's own
    assert other.answer().text == "four"
    assert len(running.engine.prompts) == 2


@pytest.mark.parametrize("answered", [False, True])
def test_same_id_for_another_question(
    serve: Serve, connect: Connect, manifest: Manifest, answered: bool
) -> None:
    hold = Hold()
    running = serve(FakeEngine(manifest, before_piece=hold))
    peer = connect(running)
    peer.hello()
    peer.ask(1, "first?")
    if answered:
        hold.let(1)
        assert peer.answer().text == "four"
    peer.ask(1, "second?")
    assert peer.error().code == "duplicate"
    hold.let(1)
    if not answered:
        assert peer.answer().text == "four"
    assert [prompt.question for prompt in running.engine.prompts] == ["first?"]


def test_kept_answers_are_bounded(serve: Serve, connect: Connect) -> None:
    running = serve(kept_answers=2)
    peer = connect(running)
    peer.hello()
    for id in (1, 2, 3):
        peer.ask(id)
        peer.answer()
    peer.ask(2)
    peer.answer()
    assert len(running.engine.prompts) == 3
    peer.ask(1)  # no longer kept: computed again
    peer.answer()
    assert len(running.engine.prompts) == 4


def test_credits_bound_what_one_client_has_in_flight(
    serve: Serve, connect: Connect, manifest: Manifest
) -> None:
    hold = Hold()
    running = serve(FakeEngine(manifest, before_piece=hold), credits=2)
    greedy, other = connect(running), connect(running)
    greedy.hello()
    other.hello()
    for id in (1, 2, 3):
        greedy.ask(id)
    busy = greedy.receive()
    assert isinstance(busy, Busy)
    assert busy.id == 3
    assert 20 <= busy.retry_ms <= 10_000
    other.ask(1)
    hold.let(4)
    assert [greedy.answer().id, greedy.answer().id] == [1, 2]
    assert other.answer().id == 1
    greedy.ask(3)  # what was BUSY is asked again
    assert greedy.answer().id == 3
    assert running.server.counts.busy == 1


def test_full_queue_is_busy_for_everybody(serve: Serve, connect: Connect, manifest: Manifest) -> None:
    hold = Hold()
    running = serve(FakeEngine(manifest, before_piece=hold), credits=8, max_waiting=1)
    first, second = connect(running), connect(running)
    first.hello()
    second.hello()
    first.ask(1)
    hold.wait_reached()
    first.ask(2)
    second.ask(1)
    busy = second.receive()
    assert isinstance(busy, Busy)
    hold.let(3)
    assert [first.answer().id, first.answer().id] == [1, 2]
    second.ask(1)
    assert second.answer().id == 1


def test_questions_of_a_session_that_ended_are_not_computed(
    serve: Serve, connect: Connect, manifest: Manifest
) -> None:
    hold = Hold()
    running = serve(FakeEngine(manifest, "ab", before_piece=hold))
    leaver, other = connect(running), connect(running)
    leaver.hello()
    other.hello()
    leaver.ask(1)
    hold.wait_reached()
    leaver.ask(2)
    leaver.bye()
    assert eventually(lambda: running.server.sessions == 1)
    hold.let(4)
    other.ask(1)
    assert other.answer().text == "ab"
    assert len(running.engine.prompts) == 2
    assert running.server.counts.answered == 1


def test_bytes_are_counted_whole(serve: Serve, connect: Connect) -> None:
    running = serve()
    peer = connect(running)
    welcome = peer.hello()
    data = peer.payload()
    ask = Ask(1, (peer.frame(data),), "q", 0, False)
    peer.send(ask, [data])
    answer = peer.answer()
    counts = running.server.counts
    assert counts.bytes_in == wire_size(join(peer.hello_message())) + wire_size(join(ask, [data]))
    out = wire_size(join(welcome)) + wire_size(join(answer))
    assert eventually(lambda: counts.bytes_out == out)  # counted once it is sent


def test_many_clients_get_their_own_answers(serve: Serve, connect: Connect, manifest: Manifest) -> None:
    running = serve(FakeEngine(manifest, lambda prompt: [prompt.question[::-1]]))
    peers = [connect(running) for _ in range(12)]
    for peer in peers:
        peer.hello()
    for number, peer in enumerate(peers):
        for id in (1, 2, 3):
            peer.ask(id, f"question-{number}-{id}")
    for number, peer in enumerate(peers):
        for id in (1, 2, 3):
            answer = peer.answer()
            assert (answer.id, answer.text) == (id, f"question-{number}-{id}"[::-1])


def test_answer_equality_is_by_value() -> None:
    # Retries are compared above; that only means something if messages compare by their fields.
    answer = Answer(1, "a", 1, 5)
    assert answer == msgspec.structs.replace(answer)
    assert answer != msgspec.structs.replace(answer, text="b")
