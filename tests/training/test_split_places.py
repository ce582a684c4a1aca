"""Who may train at a server: one client at a time, and who comes after it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from edge_runtime.training.client import Link, TrainingClient
from edge_runtime.transport import FakeClock, FakeTransport, Received, Up
from qtl_core.errors import HandshakeRefused, ServerUnavailable
from qtl_core.messages import CAN_TRAIN, PROTOCOL, Bye, Hello, Limits, Message, Ping, Reject, decode_header
from qtl_core.wire import join
from qtl_training.split.server import TrainingServer
from server_runtime.listener import Received as Arrived
from tests.training.together import Quiet

LIMITS = Limits(1000, 0, 0, 0)
PRINT = bytes(range(16))


class Listener:
    """What a server says, by route."""

    encrypted, gate, endpoint = False, None, "tcp://127.0.0.1:1"

    def __init__(self) -> None:
        self.said: list[tuple[bytes, Message]] = []
        self.gone: list[int] = []

    def send(self, route: bytes, frames: list[bytes]) -> bool:
        self.said.append((route, decode_header(frames[0])))
        return True

    def departures(self) -> Iterator[int]:
        gone, self.gone = self.gone, []
        return iter(gone)


class Nothing:
    """A run that remembers only what happened to it."""

    finished = False

    def __init__(self) -> None:
        self.opened_times = 0

    def limits(self) -> Limits:
        return LIMITS

    def opened(self) -> None:
        self.opened_times += 1

    def hear(self, message: Message, payloads: Any) -> list[Any]:
        return []


class Front:
    """A training server without sockets."""

    def __init__(self) -> None:
        self.clock, self.listener, self.run = FakeClock(), Listener(), Nothing()
        listener: Any = self.listener
        run: Any = self.run
        self.server = TrainingServer(run, PRINT, listener, clock=self.clock)

    def says(self, route: bytes, message: Message, link: int = 1) -> Any:
        before = len(self.listener.said)
        self.server._notice_departures()
        self.server._hear(Arrived(route, link, "", join(message)))
        replies = self.listener.said[before:]
        return replies[0][1] if replies else None


def hello(resume: bytes = b"") -> Hello:
    return Hello(PROTOCOL, PRINT, (), "train", "test", resume=resume, capabilities=(CAN_TRAIN,))


def test_a_hello_that_comes_again_opens_nothing_new() -> None:
    front = Front()
    first = front.says(b"a", hello())
    assert front.says(b"a", hello()) == first and not first.resumed
    assert front.run.opened_times == 1
    again = front.says(b"b", hello(first.session))
    assert again.resumed and again.session == first.session
    assert front.says(b"b", hello(first.session)) == again
    assert front.run.opened_times == 1


def test_one_client_at_a_time() -> None:
    front = Front()
    front.says(b"a", hello())
    assert front.says(b"b", hello(), link=2).reason == "full"
    front.says(b"a", Bye())
    assert not front.says(b"b", hello(), link=2).resumed
    front.listener.gone.append(2)
    assert not front.says(b"c", hello(), link=3).resumed
    assert front.run.opened_times == 3


def test_a_silent_client_gives_its_place_to_one_that_asks() -> None:
    front = Front()
    front.says(b"a", hello())
    front.clock.now = 500
    front.says(b"a", Ping(1))
    front.clock.now = 1000
    assert front.says(b"b", hello()).reason == "full"
    front.clock.now = 1101
    assert front.says(b"b", hello()).credits > 0
    assert front.says(b"a", Ping(2)).code == "no_session"
    assert front.says(b"a", hello(b"12345678")).reason == "full"


def test_a_lost_client_is_waited_for_at_the_end() -> None:
    front = Front()
    front.says(b"a", hello(), link=4)
    front.run.finished = True
    assert front.server._needed()
    front.listener.gone.append(4)
    front.server._notice_departures()
    front.clock.now = 89
    assert front.server._needed()
    front.clock.now = 91
    assert not front.server._needed()


def test_a_goodbye_counts_although_its_connection_is_gone() -> None:
    front = Front()
    front.says(b"a", hello(), link=4)
    front.run.finished = True
    front.listener.gone.append(4)
    assert front.says(b"a", Bye(), link=4) is None
    assert not front.server._needed()


def test_a_goodbye_of_one_who_is_gone_does_not_send_the_next_away() -> None:
    front = Front()
    front.says(b"a", hello(), link=4)
    front.listener.gone.append(4)
    front.says(b"b", hello(), link=5)
    assert front.says(b"a", Bye(), link=4).code == "no_session"
    assert front.says(b"c", hello(), link=6).reason == "full"


class Waiting:
    """As much of a run as a client needs to ask for a place."""

    name, stages, seeds, crossing, largest, fingerprint, log_every = "w", (), (), None, 1000, PRINT, 1


def test_a_client_waits_for_a_place() -> None:
    clock = FakeClock()
    asked: list[float] = []

    def peer(frames: list[bytes]) -> Iterator[tuple[float, Received]]:
        if isinstance(decode_header(frames[0]), Hello):
            asked.append(clock.now)
            yield 0.1, Received(join(Reject("full", "a client is training here already")))

    transport = FakeTransport(clock, peer, first=[(0.0, Up())])
    run: Any = Waiting()
    client = TrainingClient(
        run,
        Link(server="tcp://127.0.0.1:1", timeout=5.0),
        watch=Quiet(),
        clock=clock,
        transport=lambda largest: transport,
    )
    with pytest.raises(HandshakeRefused, match="training here already"):
        client.train()
    assert 4 <= len(asked) <= 7 and transport.closed


def test_a_client_without_a_server_is_told_which_one_to_start() -> None:
    clock = FakeClock()
    run: Any = Waiting()
    client = TrainingClient(
        run,
        Link(server="tcp://127.0.0.1:1", timeout=2.0),
        watch=Quiet(),
        clock=clock,
        transport=lambda largest: FakeTransport(clock, lambda frames: iter(()), first=[]),
    )
    with pytest.raises(ServerUnavailable, match="start qtl-train serve there"):
        client.train()
