"""The session with the server: connection, handshake, and messages one at a time, over any transport.

A session outlives its connections: after a reconnect, HELLO names it again, and the server still knows
what it has answered. Everything that waits here has a deadline.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import msgspec

from qtl_core import messages as m
from qtl_core import wire
from qtl_core.errors import HandshakeRefused, ServerUnavailable

from .transport import Down, Failed, Received, Transport, Up


@dataclass
class Traffic:
    """Bytes of messages, ZMTP framing included."""

    up: int = 0
    down: int = 0


class Lost(Exception):
    """The connection went away. Caught in this package; users see ``ServerLost`` or ``ServerUnavailable``."""


class Session:
    """One session with one server.

    Args:
        transport: carries the frames; the session closes it.
        hello: how we introduce ourselves; ``resume`` is filled in.
        timeout: seconds to wait for a connection and for WELCOME.
        clock: seconds, monotonic.

    Attributes:
        limits: of payloads that may come at any time, as replies to earlier requests; None: none do.
    """

    def __init__(
        self,
        transport: Transport,
        hello: m.Hello,
        *,
        timeout: float,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._transport = transport
        self._hello = hello
        self._up = False
        self._account = Traffic()
        self.timeout = timeout
        self.clock = clock
        self.welcome: m.Welcome | None = None
        self.handshakes = Traffic()
        self.limits: m.Limits | None = None

    @property
    def endpoint(self) -> str:
        """The server's address."""
        return self._transport.endpoint

    @property
    def encrypted(self) -> bool:
        """Whether frames travel under CURVE."""
        return self._transport.encrypted

    def open(self, within: float | None = None) -> m.Welcome:
        """Shakes hands, unless that is done on the present connection.

        Args:
            within: seconds this may take; the timeout if not given.

        Raises:
            ServerUnavailable: no connection, or no answer to HELLO, in time.
            HandshakeRefused: the server wants none of us, or encrypts otherwise.
            ProtocolError: the server sends bytes that are no message.
        """
        self._settle()
        if self.welcome is not None:
            return self.welcome
        seconds = self.timeout if within is None else within
        deadline = self.clock() + seconds
        with self.billed_to(self.handshakes):
            while True:
                self._connect(deadline, seconds)
                try:
                    self.send(wire.join(self._hello))
                    self.welcome = self._welcomed(deadline, seconds)
                except Lost:
                    continue
                return self.welcome

    def forget(self) -> None:
        """The server no longer knows us: the next ``open`` sends HELLO again, naming this session."""
        if self.welcome is not None:
            self._hello = msgspec.structs.replace(self._hello, resume=self.welcome.session)
            self.welcome = None

    def send(self, frames: Sequence[bytes]) -> None:
        """Sends one message.

        Raises:
            Lost: there is no connection.
        """
        if not self._transport.send(frames):
            self._up = False
            self.forget()
            raise Lost("the connection broke")
        self._account.up += wire.wire_size(frames, self._transport.encrypted)

    def wait(self, deadline: float) -> m.Message | None:
        """The next message before the deadline (by the clock), or None.

        Raises:
            Lost: the connection went away instead.
            HandshakeRefused: and it will not come back.
            MalformedMessage: bytes that are no message.
        """
        heard = self.hear(deadline, self.limits)
        return None if heard is None else heard[0]

    def hear(
        self, deadline: float, limits: m.Limits | None = None
    ) -> tuple[m.Message, dict[str, bytes]] | None:
        """As ``wait``, with the payloads by name, of which there are none without ``limits``."""
        while (left := deadline - self.clock()) > 0:
            event = self._transport.receive(left)
            if isinstance(event, Received):
                self._account.down += wire.wire_size(event.frames, self._transport.encrypted)
                return wire.split(event.frames, limits)
            if event is not None:
                self._note(event)
                if isinstance(event, Down):
                    raise Lost("the connection broke")
        return None

    @contextmanager
    def billed_to(self, account: Traffic) -> Iterator[Traffic]:
        """Counts the messages of a ``with`` block in ``account``."""
        before, self._account = self._account, account
        try:
            yield account
        finally:
            self._account = before

    def close(self) -> None:
        """Says goodbye if there is somebody to say it to, and closes the transport."""
        try:
            if self.welcome is not None:
                self._transport.send(wire.join(m.Bye()))
        finally:
            self.welcome, self._up = None, False
            self._transport.close()

    def _settle(self) -> None:
        """Takes note of what happened since the last message; replies that nobody waits for are dropped."""
        while (event := self._transport.receive(0.0)) is not None:
            if not isinstance(event, Received):
                self._note(event)

    def _note(self, event: Up | Down | Failed) -> None:
        self._up = isinstance(event, Up)
        # To the server a new connection is a stranger until the next HELLO.
        self.forget()
        if isinstance(event, Failed):
            raise HandshakeRefused("auth", f"the server at {self.endpoint} was reached, but {event.why}")

    def _connect(self, deadline: float, seconds: float) -> None:
        while not self._up:
            left = deadline - self.clock()
            if left <= 0:
                hint = f" ({self._transport.hint})" if self._transport.hint else ""
                wanted = "qtl-train serve" if m.CAN_TRAIN in self._hello.capabilities else "qtl-server"
                raise ServerUnavailable(
                    f"no server at {self.endpoint} within {seconds:g} s{hint}; "
                    f"start {wanted} there, or give its address with --server"
                )
            event = self._transport.receive(left)
            if isinstance(event, Up | Down | Failed):
                self._note(event)

    def _welcomed(self, deadline: float, seconds: float) -> m.Welcome:
        silence = (
            f"something listens at {self.endpoint}, but did not answer our HELLO within {seconds:g} s; "
            "is it qtl-server?"
        )
        while (message := self.wait(deadline)) is not None:
            if isinstance(message, m.Welcome):
                if message.protocol != m.PROTOCOL:
                    raise HandshakeRefused(
                        "protocol",
                        f"the server at {self.endpoint} speaks protocol {message.protocol}, this client "
                        f"{m.PROTOCOL}; install the same version on both ends",
                    )
                return message
            if isinstance(message, m.Reject):
                raise HandshakeRefused(
                    message.reason,
                    f"the server at {self.endpoint} refused us ({message.reason}): {message.message}",
                )
            if isinstance(message, m.Error) and message.code == "closing":
                # The connection is about to break, and the server that follows may take us.
                silence = f"the server at {self.endpoint} is shutting down; start it again, then ask again"
            elif isinstance(message, m.Error) and message.id == 0:
                raise HandshakeRefused(
                    message.code, f"the server at {self.endpoint} did not take our HELLO: {message.message}"
                )
            # Anything else is left over from an earlier question.
        raise ServerUnavailable(silence)
