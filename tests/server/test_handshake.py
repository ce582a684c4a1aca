"""HELLO: who is let in, who is refused and why, and what a session may do."""

from __future__ import annotations

import msgspec
import pytest

from qtl_core.bundle import Manifest
from qtl_core.messages import Hello, Ping, Pong, Reject, Welcome
from server_runtime import FakeEngine
from tests.server.conftest import Connect, Serve, make_manifest
from tests.server.peer import Clock, Hold, eventually


def test_welcome_tells_limits_and_credits(serve: Serve, connect: Connect, manifest: Manifest) -> None:
    peer = connect(serve(manifest, credits=3, max_question=100, max_tokens=9, idle_s=5))
    welcome = peer.hello()
    assert welcome.limits.max_payload == manifest.cut.payload_bytes
    assert welcome.limits.max_question == 100
    assert welcome.limits.max_tokens == 9
    assert welcome.limits.idle_ms == 5000
    assert welcome.credits == 3
    assert len(welcome.session) == 16
    assert welcome.agent.startswith("qtl-server/")
    assert not welcome.resumed


def test_payload_limit_covers_coded_questions(serve: Serve, connect: Connect) -> None:
    manifest = make_manifest(2, text_levels=256)
    welcome = connect(serve(manifest)).hello()
    assert welcome.limits.max_payload == 7 * 4 > manifest.cut.payload_bytes


def test_model_bounds_the_answers_length(serve: Serve, connect: Connect, manifest: Manifest) -> None:
    class Short(FakeEngine):
        @property
        def longest_answer(self) -> int:
            return 2

    peer = connect(serve(Short(manifest, "abcdef"), max_tokens=50))
    assert peer.hello().limits.max_tokens == 2
    peer.ask()
    answer = peer.answer()
    assert (answer.text, answer.tokens, answer.finish) == ("ab", 2, "length")


REFUSED = [
    ("protocol", {"protocol": 0}, "protocol 1"),
    ("fingerprint", {"fingerprint": bytes(16)}, "00000000000000000000000000000000"),
    ("codec", {"codecs": (1, 7)}, "packed"),
    ("codec", {"codecs": ()}, "packed"),
    ("text", {"text": "codes"}, "'plain'"),
    ("text", {"text": "morse"}, "'morse'"),
]


@pytest.mark.parametrize(("reason", "changes", "says"), REFUSED)
def test_reject(serve: Serve, connect: Connect, reason: str, changes: dict[str, object], says: str) -> None:
    running = serve()
    peer, other = connect(running), connect(running)
    peer.send(msgspec.structs.replace(peer.hello_message(), **changes))
    reject = peer.receive()
    assert isinstance(reject, Reject)
    assert reject.reason == reason
    assert says in reject.message
    assert running.server.counts.rejected == {reason: 1}
    peer.ask()
    assert peer.error().code == "no_session"
    other.hello()
    other.ask()
    assert other.answer().text == "four"


def test_both_fingerprints_are_named(serve: Serve, connect: Connect, manifest: Manifest) -> None:
    peer = connect(serve(manifest))
    peer.send(msgspec.structs.replace(peer.hello_message(), fingerprint=b"\xab" * 16))
    reject = peer.receive()
    assert isinstance(reject, Reject)
    assert manifest.fingerprint in reject.message
    assert "ab" * 16 in reject.message


def test_newer_client_is_answered_in_our_protocol(serve: Serve, connect: Connect) -> None:
    peer = connect(serve())
    newer = msgspec.structs.replace(
        peer.hello_message(), protocol=9, capabilities=("deadlines",), codecs=(0, 1, 2)
    )
    # and with a field that this version has never heard of
    peer.send_frames(msgspec.msgpack.encode([1, *msgspec.structs.astuple(newer), "extra"]))
    welcome = peer.receive()
    assert isinstance(welcome, Welcome)
    assert welcome.protocol == 1


def test_rejected_client_may_try_again(serve: Serve, connect: Connect) -> None:
    peer = connect(serve())
    peer.send(msgspec.structs.replace(peer.hello_message(), text="codes"))
    assert isinstance(peer.receive(), Reject)
    peer.hello()
    peer.ask()
    assert peer.answer().text == "four"


def test_ping_is_answered_while_the_engine_computes(
    serve: Serve, connect: Connect, manifest: Manifest
) -> None:
    hold = Hold()
    peer = connect(serve(FakeEngine(manifest, before_piece=hold)))
    peer.hello()
    peer.ask()
    hold.wait_reached()
    peer.send(Ping(77))
    assert peer.receive() == Pong(77)
    hold.let(1)
    assert peer.answer().text == "four"


def test_full_server_rejects_and_makes_room_after_bye(serve: Serve, connect: Connect) -> None:
    running = serve(max_sessions=2)
    first, second, third = connect(running), connect(running), connect(running)
    first.hello()
    second.hello()
    third.send(third.hello_message())
    reject = third.receive()
    assert isinstance(reject, Reject)
    assert reject.reason == "full"
    first.bye()
    assert eventually(lambda: running.server.sessions == 1)
    third.hello()
    second.ask()
    assert second.answer().text == "four"


def test_idle_session_is_forgotten(serve: Serve, connect: Connect) -> None:
    clock = Clock()
    running = serve(max_sessions=1, idle_s=60, clock=clock)
    idle, other = connect(running), connect(running)
    idle.hello()
    clock.now += 59
    idle.send(Ping(1))
    assert idle.receive() == Pong(1)
    clock.now += 59
    other.send(other.hello_message())
    assert isinstance(other.receive(), Reject)
    clock.now += 1
    other.hello()
    idle.ask()
    assert idle.error().code == "no_session"
    other.ask()
    assert other.answer().text == "four"


def test_session_without_connection_makes_room_first(serve: Serve, connect: Connect) -> None:
    running = serve(max_sessions=2)
    gone, stays, new = connect(running), connect(running), connect(running)
    gone.hello()
    stays.hello()
    gone.close()
    assert eventually(lambda: running.server.counts.lost == 1)
    new.hello()
    stays.ask()
    assert stays.answer().text == "four"
    new.ask()
    assert new.answer().text == "four"


def test_second_hello_opens_a_new_session_in_place_of_the_first(serve: Serve, connect: Connect) -> None:
    running = serve(max_sessions=1)
    peer = connect(running)
    first, second = peer.hello(), peer.hello()
    assert first.session != second.session
    assert running.server.sessions == 1


def test_resume_of_an_unknown_session_opens_a_new_one(serve: Serve, connect: Connect) -> None:
    peer = connect(serve())
    welcome = peer.hello(resume=b"never heard of")
    assert not welcome.resumed
    assert welcome.session != b"never heard of"


def test_bye_ends_the_session_and_is_not_a_lost_connection(serve: Serve, connect: Connect) -> None:
    running = serve()
    peer, other = connect(running), connect(running)
    peer.hello()
    other.hello()
    peer.bye()
    peer.socket.close()  # lingers until the BYE is out
    assert eventually(lambda: running.server.sessions == 1)
    other.close()
    assert eventually(lambda: running.server.counts.lost == 1)


def test_hello_struct_is_the_one_the_client_sends(manifest: Manifest) -> None:
    # The replacement in these tests must not hide a renamed field.
    assert Hello.__struct_fields__[:5] == ("protocol", "fingerprint", "codecs", "text", "agent")
