"""The protocol's client side over a fake transport: every wait is virtual, so every timeout can be tested."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Iterator

import pytest

from edge_runtime.exchange import Exchange, Patience, Reply
from edge_runtime.session import Session, Traffic
from edge_runtime.transport import Down, Event, Failed, FakeClock, FakeTransport, Received, Up
from qtl_core import messages as m
from qtl_core import wire
from qtl_core.errors import (
    HandshakeRefused,
    MalformedMessage,
    MessageTooLarge,
    QuestionError,
    RequestRefused,
    ServerBusy,
    ServerLost,
    ServerUnavailable,
)

LIMITS = m.Limits(max_payload=64, max_question=40, max_tokens=8, idle_ms=1000)
HELLO = m.Hello(protocol=1, fingerprint=b"f" * 16, codecs=(0,), text="plain", agent="test")
WELCOME = m.Welcome(protocol=1, session=b"session1", limits=LIMITS, credits=1, agent="fake")
ANSWER = m.Answer(id=7, text="four red", tokens=2, server_us=900)

Out = tuple[float, "Event | m.Message"]
Peer = Callable[[m.Message], Iterable[Out]]


class World:
    """A client at one end, a function from message to consequences at the other."""

    def __init__(self, peer: Peer, first: Iterable[tuple[float, Event]] = ((0.0, Up()),)) -> None:
        self.clock = FakeClock()
        self.heard: list[m.Message] = []
        self._peer = peer
        self.transport = FakeTransport(self.clock, self._answer, first)
        self.session = Session(self.transport, HELLO, timeout=10.0, clock=self.clock)
        self.pieces: list[str] = []

    def ask(
        self, *, stream: bool = True, question: str = "how many?", payload: bytes = b"abc", pad: int = 0
    ) -> Reply:
        ask = m.Ask(id=7, frames=(wire.frame_codes("v", payload),), question=question)
        return Exchange(
            self.session,
            ask,
            [payload],
            patience=Patience(answer=60.0, comeback=2.0),
            on_token=self.pieces.append if stream else None,
            rng=random.Random(1),
            pad=pad,
        ).run()

    def count(self, kind: type[object]) -> int:
        return len([message for message in self.heard if isinstance(message, kind)])

    def _answer(self, frames: list[bytes]) -> Iterable[tuple[float, Event]]:
        message, _ = wire.split(frames, LIMITS)
        self.heard.append(message)
        for after, what in self._peer(message):
            event = what if isinstance(what, Up | Down | Failed | Received) else Received(wire.join(what))
            yield after, event


def greeting(then: Peer) -> Peer:
    """A peer that welcomes, answers pings, and leaves the rest to ``then``."""

    def peer(message: m.Message) -> Iterable[Out]:
        if isinstance(message, m.Hello):
            return [(0.0, WELCOME)]
        if isinstance(message, m.Ping):
            return [(0.0, m.Pong(id=message.id))]
        return then(message)

    return peer


def silent(_: m.Message) -> Iterable[Out]:
    return []


def piece(index: int, text: str, ident: int = 7) -> m.Token:
    return m.Token(id=ident, index=index, text=text)


def test_answer_streams_and_is_billed() -> None:
    replies: list[m.Message] = [piece(0, "four"), piece(1, " red"), ANSWER]
    world = World(greeting(lambda _: [(0.5, reply) for reply in replies]))
    reply = world.ask()
    assert reply.answer == ANSWER
    assert world.pieces == ["four", " red"]
    assert reply.seconds == pytest.approx(0.5)
    assert reply.traffic.up == wire.wire_size(world.transport.sent[1])
    assert reply.traffic.down == sum(wire.wire_size(wire.join(each)) for each in replies)
    assert world.session.handshakes == Traffic(
        up=wire.wire_size(wire.join(HELLO)), down=wire.wire_size(wire.join(WELCOME))
    )


def test_stream_is_asked_for_only_when_somebody_listens() -> None:
    world = World(greeting(lambda _: [(0.0, ANSWER)]))
    world.ask(stream=False)
    assert isinstance(world.heard[-1], m.Ask) and not world.heard[-1].stream


def test_pieces_out_of_order_come_with_the_answer() -> None:
    world = World(greeting(lambda _: [(0.0, piece(0, "four")), (0.0, piece(2, "?")), (0.0, ANSWER)]))
    world.ask()
    assert "".join(world.pieces) == "four red"


def test_nobody_there() -> None:
    world = World(silent, first=())
    with pytest.raises(ServerUnavailable, match=r"tcp://127\.0\.0\.1:5555 within 10 s"):
        world.ask()
    assert world.clock.now == pytest.approx(10.0)


def test_connection_that_says_nothing() -> None:
    with pytest.raises(ServerUnavailable, match="did not answer our HELLO"):
        World(silent).ask()


def test_connection_that_breaks_at_once_is_tried_again() -> None:
    first: list[tuple[float, Event]] = [(0.0, Up()), (0.1, Down()), (1.0, Up())]
    hellos = 0

    def peer(message: m.Message) -> Iterable[Out]:
        nonlocal hellos
        if isinstance(message, m.Hello):
            hellos += 1
            return [] if hellos == 1 else [(0.0, WELCOME)]
        return [(0.0, ANSWER)]

    assert World(peer, first).ask().answer == ANSWER
    assert hellos == 2


def test_reject_is_told() -> None:
    reject = m.Reject(reason="fingerprint", message="this server serves 00ff, you hold f00d")
    with pytest.raises(HandshakeRefused, match="serves 00ff") as caught:
        World(lambda _: [(0.0, reject)]).ask()
    assert caught.value.reason == "fingerprint"


def test_other_protocol_is_told() -> None:
    newer = m.Welcome(protocol=2, session=b"session1", limits=LIMITS, credits=1, agent="fake")
    with pytest.raises(HandshakeRefused, match="speaks protocol 2"):
        World(lambda _: [(0.0, newer)]).ask()


def test_error_instead_of_welcome() -> None:
    error = m.Error(id=0, code="malformed", message="what?")
    with pytest.raises(HandshakeRefused, match="what\\?"):
        World(lambda _: [(0.0, error)]).ask()


def test_connection_that_can_never_be() -> None:
    with pytest.raises(HandshakeRefused, match="does not encrypt") as caught:
        World(silent, first=[(0.0, Failed("it does not encrypt as we do"))]).ask()
    assert caught.value.reason == "auth"


def test_server_that_answers_pings_is_waited_for() -> None:
    world = World(greeting(lambda _: [(25.0, ANSWER)]))
    assert world.ask().answer == ANSWER
    assert world.count(m.Ping) == 9  # every 2.5 s of silence


def test_pings_are_billed() -> None:
    world = World(greeting(lambda _: [(3.0, ANSWER)]))
    reply = world.ask(stream=False)
    ping, pong = wire.join(m.Ping(id=7)), wire.join(m.Pong(id=7))
    assert reply.traffic.up == wire.wire_size(world.transport.sent[1]) + wire.wire_size(ping)
    assert reply.traffic.down == wire.wire_size(wire.join(ANSWER)) + wire.wire_size(pong)


def test_patience_ends() -> None:
    world = World(greeting(silent))
    with pytest.raises(ServerLost, match="no answer within 60 s"):
        world.ask()
    assert world.clock.now == pytest.approx(60.0)


def test_server_that_falls_silent() -> None:
    world = World(lambda message: [(0.0, WELCOME)] if isinstance(message, m.Hello) else [])
    with pytest.raises(ServerLost, match=r"fell silent.*10 s"):
        world.ask()
    assert world.clock.now == pytest.approx(10.0)


def test_lost_server_comes_back_and_is_asked_again_under_the_same_id() -> None:
    asked = 0

    def peer(_: m.Message) -> Iterable[Out]:
        nonlocal asked
        asked += 1
        if asked == 1:
            return [(0.1, piece(0, "four")), (0.2, Down()), (1.0, Up())]
        return [(0.0, piece(0, "four")), (0.0, piece(1, " red")), (0.0, ANSWER)]

    world = World(greeting(peer))
    assert world.ask().answer == ANSWER
    assert world.pieces == ["four", " red"]
    hellos = [each for each in world.heard if isinstance(each, m.Hello)]
    asks = [each for each in world.heard if isinstance(each, m.Ask)]
    assert [each.resume for each in hellos] == [b"", WELCOME.session]
    assert asks[0] == asks[1]


def test_lost_server_that_stays_away() -> None:
    world = World(greeting(lambda _: [(0.5, Down())]))
    with pytest.raises(ServerLost, match="did not come back within 2 s"):
        world.ask()
    assert world.clock.now == pytest.approx(2.5)


def test_server_lost_twice() -> None:
    world = World(greeting(lambda _: [(0.1, Down()), (0.2, Up())]))
    with pytest.raises(ServerLost, match="lost twice"):
        world.ask()


def test_connection_lost_between_questions() -> None:
    world = World(greeting(lambda _: [(0.0, ANSWER)]), first=[(0.0, Up()), (5.0, Down()), (5.5, Up())])
    world.ask()
    world.clock.now = 8.0
    world.ask()
    assert world.count(m.Hello) == 2


def test_forgotten_session_is_opened_again_once() -> None:
    gone = m.Error(id=7, code="no_session", message="who are you?")
    asked = 0

    def peer(_: m.Message) -> Iterable[Out]:
        nonlocal asked
        asked += 1
        return [(0.0, gone if asked == 1 else ANSWER)]

    assert World(greeting(peer)).ask().answer == ANSWER
    with pytest.raises(RequestRefused, match="who are you"):
        World(greeting(lambda _: [(0.0, gone)])).ask()


def test_damaged_frame_is_sent_again_once() -> None:
    damaged = m.Error(id=7, code="checksum", message="CRC-32 differs")
    asked = 0

    def peer(_: m.Message) -> Iterable[Out]:
        nonlocal asked
        asked += 1
        return [(0.0, damaged if asked == 1 else ANSWER)]

    assert World(greeting(peer)).ask().answer == ANSWER
    with pytest.raises(RequestRefused, match="CRC-32"):
        World(greeting(lambda _: [(0.0, damaged)])).ask()


def test_busy_server_is_asked_again_when_it_says() -> None:
    asked = 0

    def peer(_: m.Message) -> Iterable[Out]:
        nonlocal asked
        asked += 1
        return [(0.0, m.Busy(id=7, retry_ms=1000) if asked < 4 else ANSWER)]

    world = World(greeting(peer))
    assert world.ask().answer == ANSWER
    assert 3.0 <= world.clock.now <= 3.0 * 1.25


def test_busy_server_that_stays_busy() -> None:
    world = World(greeting(lambda _: [(0.0, m.Busy(id=7, retry_ms=0))]))
    with pytest.raises(ServerBusy) as caught:
        world.ask()
    assert caught.value.retry_ms == 0
    assert world.clock.now <= 10.0
    assert world.count(m.Ask) < 20  # it backs off


@pytest.mark.parametrize(
    "code", ["malformed", "codes", "internal", "duplicate", "cancelled", "something-new"]
)
def test_error_reply_is_told(code: str) -> None:
    error = m.Error(id=7, code=code, message="no such thing")
    with pytest.raises(RequestRefused, match="no such thing") as caught:
        World(greeting(lambda _: [(0.0, error)])).ask()
    assert caught.value.reason == code


def test_question_too_long_for_the_model() -> None:
    error = m.Error(id=7, code="question", message="99 tokens, this model takes 8")
    with pytest.raises(QuestionError, match="99 tokens"):
        World(greeting(lambda _: [(0.0, error)])).ask()


def test_limits_are_kept_before_sending() -> None:
    world = World(greeting(silent))
    with pytest.raises(QuestionError, match="takes 40: shorten"):
        world.ask(question="é" * 21)
    with pytest.raises(MessageTooLarge, match="payload has 65 bytes"):
        world.ask(payload=b"x" * 65)
    # Said as such, and not as a header that cannot be padded.
    with pytest.raises(QuestionError, match="takes 40: shorten"):
        world.ask(question="x" * 20_000, pad=64)
    assert world.count(m.Ask) == 0


def test_retries_of_a_padded_question_are_the_same_bytes() -> None:
    damaged = m.Error(id=7, code="checksum", message="damaged")
    replies: Iterator[m.Message] = iter([m.Busy(id=7, retry_ms=50), damaged, ANSWER])
    world = World(greeting(lambda _: [(0.0, next(replies))]))
    assert world.ask(pad=64, stream=False).answer == ANSWER
    first, *others = [frames for frames in world.transport.sent if len(frames) == 2]
    assert others == [first, first]
    assert [wire.wire_size([frame]) for frame in first] == [64, 64]


def test_closing_server_is_waited_out() -> None:
    closing = m.Error(id=7, code="closing", message="the server is shutting down")
    asked = 0

    def peer(_: m.Message) -> Iterable[Out]:
        nonlocal asked
        asked += 1
        return [(0.0, closing), (1.0, Down()), (1.5, Up())] if asked == 1 else [(0.0, ANSWER)]

    assert World(greeting(peer)).ask().answer == ANSWER
    with pytest.raises(RequestRefused, match="shutting down") as caught:
        World(greeting(lambda _: [(0.0, closing)])).ask()
    assert caught.value.reason == "closing"


def test_hello_to_a_closing_server_waits_for_the_next() -> None:
    closing = m.Error(id=0, code="closing", message="the server is shutting down")
    hellos = 0

    def peer(message: m.Message) -> Iterable[Out]:
        nonlocal hellos
        if isinstance(message, m.Hello):
            hellos += 1
            return [(0.0, closing), (1.0, Down()), (2.0, Up())] if hellos == 1 else [(0.0, WELCOME)]
        return [(0.0, ANSWER)]

    assert World(peer).ask().answer == ANSWER
    with pytest.raises(ServerUnavailable, match="is shutting down"):
        World(lambda _: [(0.0, closing)]).ask()


def test_goodbye_without_an_answer() -> None:
    with pytest.raises(ServerLost, match="ended the session without an answer"):
        World(greeting(lambda _: [(0.0, m.Bye())])).ask()


def test_late_replies_are_dropped_and_invented_ones_are_not() -> None:
    late = m.Answer(id=6, text="old", tokens=1, server_us=1)
    world = World(greeting(lambda _: [(0.0, piece(0, "old", 6)), (0.0, late), (0.1, ANSWER)]))
    assert world.ask().answer == ANSWER
    assert "".join(world.pieces) == "four red"
    invented = m.Answer(id=8, text="future", tokens=1, server_us=1)
    with pytest.raises(MalformedMessage, match="request 8, which was never made"):
        World(greeting(lambda _: [(0.0, invented)])).ask()


def test_replies_that_are_no_replies() -> None:
    with pytest.raises(MalformedMessage, match="HELLO, which only clients send"):
        World(greeting(lambda _: [(0.0, HELLO)])).ask()
    with pytest.raises(MalformedMessage):
        World(greeting(lambda _: [(0.0, Received([b"\x00random"]))])).ask()
    with pytest.raises(HandshakeRefused, match="full"):
        World(greeting(lambda _: [(0.0, m.Reject(reason="full", message="full"))])).ask()


def test_close_says_goodbye_only_to_somebody() -> None:
    world = World(greeting(lambda _: [(0.0, ANSWER)]))
    world.ask()
    world.session.close()
    assert world.count(m.Bye) == 1 and world.transport.closed
    nobody = World(silent, first=())
    nobody.session.close()
    assert nobody.transport.closed and not nobody.heard
