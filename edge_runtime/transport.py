"""The seam between the protocol, which knows messages, and whatever carries frames to the server.

A transport connects by itself, again and again, and tells what happened as events; ``edge_runtime.dealer`` is
the real one. :class:`FakeTransport` lives beside the interface and runs on a clock of its own, so that tests
of the protocol never sleep.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Protocol, TypeAlias


@dataclass(frozen=True)
class Up:
    """A connection stands; the server knows nothing of us on it yet."""


@dataclass(frozen=True)
class Down:
    """The connection is gone; the transport is already trying to get another."""


@dataclass(frozen=True)
class Failed:
    """No connection, and trying again would not help; ``why`` is for people."""

    why: str


@dataclass(frozen=True)
class Received:
    """One whole message."""

    frames: list[bytes]


Event: TypeAlias = Up | Down | Failed | Received


class Transport(Protocol):
    """What the protocol needs from a connection. One thread uses it."""

    @property
    def endpoint(self) -> str:
        """The server's address."""

    @property
    def encrypted(self) -> bool:
        """Whether frames travel under CURVE, which makes them longer."""

    @property
    def hint(self) -> str:
        """What is known about why there is no connection, for people; empty if nothing."""

    def send(self, frames: Sequence[bytes]) -> bool:
        """Hands one message to the connection; False where there is none."""

    def receive(self, timeout: float) -> Event | None:
        """The next thing that happens within ``timeout`` seconds; None if nothing does.

        A message that arrived before the connection was lost comes before its :class:`Down`.
        """

    def close(self) -> None:
        """Ends the connection and frees what it holds."""


class FakeClock:
    """A clock that moves only when somebody waits."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


class FakeTransport:
    """A transport without a network.

    Args:
        clock: moved forward by ``receive``.
        peer: called with each message sent; yields what comes of it as (seconds from now, event).
        first: what happens by itself, as (seconds from the start, event); a connection at once if not given.
    """

    def __init__(
        self,
        clock: FakeClock,
        peer: Callable[[list[bytes]], Iterable[tuple[float, Event]]],
        first: Iterable[tuple[float, Event]] = ((0.0, Up()),),
    ) -> None:
        self._clock = clock
        self._peer = peer
        self._due: list[tuple[float, int, Event]] = []
        self._count = 0
        self._schedule(first)
        self.sent: list[list[bytes]] = []
        self.connected = False
        self.closed = False

    endpoint = "tcp://127.0.0.1:5555"
    encrypted = False
    hint = ""

    def send(self, frames: Sequence[bytes]) -> bool:
        """Remembers the message and asks the peer what comes of it."""
        if not self.connected:
            return False
        self.sent.append(list(frames))
        self._schedule(self._peer(list(frames)))
        return True

    def receive(self, timeout: float) -> Event | None:
        """The next scheduled event; the clock moves to it, or by ``timeout``."""
        if not self._due or self._due[0][0] > self._clock.now + timeout:
            self._clock.now += max(0.0, timeout)
            return None
        due, _, event = self._due.pop(0)
        self._clock.now = max(self._clock.now, due)
        if not isinstance(event, Received):
            self.connected = isinstance(event, Up)
        return event

    def close(self) -> None:
        """Remembers that it was closed."""
        self.closed = True

    def _schedule(self, events: Iterable[tuple[float, Event]]) -> None:
        for after, event in events:
            self._count += 1  # events of the same moment keep their order
            self._due.append((self._clock.now + after, self._count, event))
        self._due.sort(key=lambda item: item[:2])
