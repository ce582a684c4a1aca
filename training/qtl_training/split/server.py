"""``qtl-train serve``: the training server as a process, one client at a time."""

from __future__ import annotations

import logging
import secrets
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Final

from qtl_core import __version__
from qtl_core.errors import ProtocolError
from qtl_core.messages import CAN_TRAIN, PROTOCOL, Bye, Error, Hello, Message, Part, Reject, Welcome, line
from qtl_core.wire import join, split, wire_size
from qtl_training.split.parts import differing
from qtl_training.split.serving import Serving
from server_runtime.listener import Listener, Received

_log = logging.getLogger(__name__)

CREDITS: Final = 8
_NO_SESSION: Final = "no session here: send HELLO first"
_TICK_S: Final = 0.2
_SILENT_S: Final = 600.0
"""After which a client that is still connected gives its place to one that asks for it."""
_COMEBACK_S: Final = 90.0
"""For a client that was lost at the end of a run: it may not know yet that its weights have come."""


class TrainingServer:
    """Owns the sockets and the run; everything happens in the thread that calls :meth:`serve`.

    Args:
        serving: the run.
        fingerprint: 16 bytes that clients must have too.
        listener: bound; closed here.
        parts: what goes into the fingerprint, to say what differs.
        clock: seconds that only grow.

    Attributes:
        bytes_up, bytes_down: on the wire so far, framing included.
    """

    def __init__(
        self,
        serving: Serving,
        fingerprint: bytes,
        listener: Listener,
        *,
        parts: Sequence[Part] = (),
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._serving, self._fingerprint, self._listener = serving, fingerprint, listener
        self._session = b""
        self._route = self._gone = b""
        self._link = -1
        self._user = ""
        self._resumed = self._stopped = False
        self._clock, self._until, self._heard = clock, 0.0, 0.0
        self._parts = parts
        self.bytes_up = self.bytes_down = 0

    @property
    def endpoint(self) -> str:
        """Where it listens, with the actual port."""
        return self._listener.endpoint

    def stop(self) -> None:
        """Ends :meth:`serve` after the message at hand; from any thread or signal handler."""
        self._stopped = True
        self._listener.waker.ring()

    def serve(self) -> None:
        """Serves until the run is finished and its client has gone, or until :meth:`stop`.

        Raises:
            StorageError: a snapshot cannot be written; the older ones stay.
        """
        try:
            while self._needed():
                self._listener.wait(_TICK_S)
                while self._needed() and (received := self._listener.receive()) is not None:
                    # Before it is handled: descriptors are reused.
                    self._notice_departures()
                    self._hear(received)
                self._notice_departures()
        finally:
            self._listener.close(linger_s=1.0)

    def _needed(self) -> bool:
        ended = self._serving.finished and not self._route and self._clock() >= self._until
        return not self._stopped and not ended

    def _hear(self, received: Received) -> None:
        self.bytes_up += wire_size(received.frames, self._listener.encrypted)
        limits = None
        if received.route == self._route:
            limits, self._heard = self._serving.limits(), self._clock()
        try:
            message, payloads = split(received.frames, limits)
        except ProtocolError as error:
            # A message that ZeroMQ sent on a new connection before the client knew of that one.
            if error.about and received.route != self._route:
                self._say(received.route, Error(error.about, "no_session", _NO_SESSION))
            else:
                self._say(received.route, Error(error.about, error.wire_code, line(str(error))))
            return
        gate = self._listener.gate
        if gate is not None and gate.name_of(received.user) is None:
            self._say(received.route, Reject("auth", "this client's key is not authorised (any more)"))
            return
        if isinstance(message, Hello):
            self._hello(received, message)
        elif isinstance(message, Bye) and received.route == (self._route or self._gone):
            # The connection's end may be noticed before what came last on it.
            self._route, self._link, self._until = b"", -1, 0.0
        elif received.route != self._route:
            self._say(
                received.route,
                Error(int(getattr(message, "id", 0)), "no_session", _NO_SESSION),
            )
        else:
            for reply, data in self._serving.hear(message, payloads):
                self._say(self._route, reply, data)

    def _hello(self, received: Received, hello: Hello) -> None:
        reject = self._refused(received, hello)
        if reject is not None:
            self._say(received.route, reject)
            return
        if received.route != self._route:  # else it is an echo of the HELLO that opened this session
            self._resumed = len(self._session) > 0 and hello.resume == self._session
            if not self._resumed:
                self._session = secrets.token_bytes(16)
                self._serving.opened()
            self._route, self._link, self._user = received.route, received.link, received.user
            self._heard = self._clock()
        welcome = Welcome(
            protocol=PROTOCOL,
            session=self._session,
            limits=self._serving.limits(),
            credits=CREDITS,
            agent=f"qtl-train/{__version__}",
            resumed=self._resumed,
            capabilities=(CAN_TRAIN,),
        )
        self._say(received.route, welcome)

    def _refused(self, received: Received, hello: Hello) -> Reject | None:
        if hello.protocol < PROTOCOL:
            return Reject("protocol", f"this server speaks protocol {PROTOCOL}: update the client")
        if CAN_TRAIN not in hello.capabilities:
            return Reject("codec", "this server trains and answers no questions: use qtl-train client")
        if hello.fingerprint != self._fingerprint:
            return Reject("fingerprint", line(differing(hello, self._fingerprint, self._parts)))
        again = hello.resume == self._session and received.user == self._user
        silent = self._clock() - self._heard > _SILENT_S
        if self._route and not again and received.route != self._route and not silent:
            return Reject(
                "full", "a client is training here already: stop it first, or wait until it is done"
            )
        return None

    def _notice_departures(self) -> None:
        for link in self._listener.departures():
            if link == self._link:
                self._gone, self._route, self._link = self._route, b"", -1
                self._until = self._clock() + _COMEBACK_S

    def _say(self, route: bytes, message: Message, data: list[bytes] | None = None) -> None:
        frames = join(message, data or ())
        if self._listener.send(route, frames):
            self.bytes_down += wire_size(frames, self._listener.encrypted)


def summary(server: TrainingServer, checkpoint: Path) -> dict[str, Any]:
    """What a finished run is told by."""
    return {"checkpoint": str(checkpoint), "bytes_up": server.bytes_up, "bytes_down": server.bytes_down}
