"""The real transport: a ZeroMQ DEALER, and its monitor, which tells at once when the server is gone."""

from __future__ import annotations

import contextlib
import time
from collections import deque
from collections.abc import Sequence
from typing import Any, Final

import zmq
from zmq.utils.monitor import recv_monitor_message

from qtl_core.errors import ServerUnavailable
from qtl_core.keys import KeyPair
from qtl_core.sockets import dealer

from .transport import Down, Event, Failed, Received, Up

_WATCHED: Final = (
    zmq.EVENT_HANDSHAKE_SUCCEEDED
    | zmq.EVENT_HANDSHAKE_FAILED_AUTH
    | zmq.EVENT_HANDSHAKE_FAILED_PROTOCOL
    | zmq.EVENT_HANDSHAKE_FAILED_NO_DETAIL
    | zmq.EVENT_DISCONNECTED
    | zmq.EVENT_CLOSED
)
_SEND_MS: Final = 200
"""How long a message may wait for a connection that the monitor has just announced."""
_LINGER_MS: Final = 200
"""How long closing may take to get a last message out."""

_MISMATCH: Final = (
    "it does not encrypt as we do: a server with --keys needs --key and --server-key here, one without "
    "takes neither; or it is no server of this project at all"
)
_NOT_LET_IN: Final = "it does not know this client's key: add the .key file to the server's clients folder"


class Dealer:
    """A DEALER that connects as soon as it is built.

    Args:
        endpoint: the server's address, checked.
        keys: this client's CURVE pair; None for plaintext.
        server_key: the server's public key, with ``keys``.
        max_payload: bytes of the largest payload the server may send.

    Raises:
        ServerUnavailable: an address that ZeroMQ cannot connect to.
        HostError: CURVE keys, but no CURVE in this libzmq.
    """

    def __init__(
        self,
        endpoint: str,
        *,
        keys: KeyPair | None = None,
        server_key: bytes | None = None,
        max_payload: int = 0,
    ) -> None:
        self.endpoint = endpoint
        self.encrypted = keys is not None
        self.hint = ""
        self._waiting: deque[Event] = deque()
        self._connected = False
        # A context of its own, so that closing one client waits for nobody else's socket.
        self._context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        self._socket: zmq.Socket[bytes] | None = None
        self._monitor: zmq.Socket[Any] | None = None
        try:
            self._socket = dealer(self._context, keys=keys, server_key=server_key, max_payload=max_payload)
            self._monitor = self._socket.get_monitor_socket(_WATCHED)
            self._poller = zmq.Poller()
            self._poller.register(self._socket, zmq.POLLIN)
            self._poller.register(self._monitor, zmq.POLLIN)
            self._socket.connect(endpoint)
        except zmq.ZMQError as error:
            self.close()
            raise ServerUnavailable(f"cannot connect to {endpoint}: {error.strerror}; check it") from error
        except BaseException:
            self.close()
            raise

    def send(self, frames: Sequence[bytes]) -> bool:
        """Hands one message to the connection; False where there is none."""
        socket = self._open()
        try:
            # The monitor may be a moment ahead of the socket itself.
            if not socket.poll(_SEND_MS, zmq.POLLOUT):
                return False
            socket.send_multipart(frames, flags=zmq.NOBLOCK)
        except zmq.Again:
            return False
        except zmq.ZMQError as error:
            raise ServerUnavailable(f"cannot send to {self.endpoint}: {error.strerror}") from error
        return True

    def receive(self, timeout: float) -> Event | None:
        """The next message or change of the connection within ``timeout`` seconds, or None."""
        deadline = time.monotonic() + timeout
        while True:
            event = self._next()
            if event is not None:
                return event
            left = deadline - time.monotonic()
            if left <= 0:
                return None
            # Rounded up: a poll of 0 ms would spin through the last millisecond.
            self._poller.poll(int(left * 1000) + 1)

    def close(self) -> None:
        """Ends the connection; a message sent just before still gets its chance to leave."""
        if self._socket is not None:
            with contextlib.suppress(zmq.ZMQError):  # a monitor that never came up
                self._socket.disable_monitor()
            self._socket.close(linger=_LINGER_MS)
            self._socket = None
        if self._monitor is not None:
            self._monitor.close(linger=0)
            self._monitor = None
        self._context.term()

    def _open(self) -> zmq.Socket[bytes]:
        if self._socket is None:
            raise ServerUnavailable(f"the connection to {self.endpoint} was closed")
        return self._socket

    def _next(self) -> Event | None:
        # Messages first: what the server said before it left still counts.
        if (message := self._message()) is not None:
            return message
        if self._waiting:
            return self._waiting.popleft()
        if (change := self._change()) is None:
            return None
        # A message may have come in between looking at the socket and looking at the monitor.
        if isinstance(change, Down | Failed) and (message := self._message()) is not None:
            self._waiting.append(change)
            return message
        return change

    def _message(self) -> Received | None:
        try:
            return Received(self._open().recv_multipart(flags=zmq.NOBLOCK))
        except zmq.Again:
            return None

    def _change(self) -> Event | None:
        """The next change that the monitor tells of, if it matters."""
        while self._monitor is not None and self._monitor.poll(0):
            told = recv_monitor_message(self._monitor)
            event = told["event"]
            if event == zmq.EVENT_HANDSHAKE_SUCCEEDED:
                self._connected, self.hint = True, ""
                return Up()
            if event == zmq.EVENT_HANDSHAKE_FAILED_PROTOCOL:
                return Failed(_MISMATCH)
            if event == zmq.EVENT_HANDSHAKE_FAILED_AUTH:
                return Failed(_NOT_LET_IN)
            if event == zmq.EVENT_HANDSHAKE_FAILED_NO_DETAIL:
                self.hint = "something there takes connections and ends them at once" + (
                    "; is --server-key this server's key?" if self.encrypted else ""
                )
            elif event == zmq.EVENT_CLOSED:
                self.hint = self.hint or "nothing listens there"
            elif event == zmq.EVENT_DISCONNECTED and self._connected:
                self._connected = False
                return Down()
        return None
