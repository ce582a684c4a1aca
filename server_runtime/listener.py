"""The server's sockets under one owner: listen, receive, send, notice who left, close.

Nothing here knows what a message means.
"""

from __future__ import annotations

import errno
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

import zmq
from zmq.utils.monitor import recv_monitor_message

from qtl_core.errors import BindError
from qtl_core.keys import KeyPair, load_server
from qtl_core.sockets import router
from server_runtime.auth import Door, Gate
from server_runtime.config import ServerConfig
from server_runtime.waker import Waker

_MONITOR: Final = "inproc://qtl-listener-monitor"
_EVENTS: Final = (
    zmq.EVENT_DISCONNECTED
    | zmq.EVENT_HANDSHAKE_FAILED_NO_DETAIL
    | zmq.EVENT_HANDSHAKE_FAILED_PROTOCOL
    | zmq.EVENT_HANDSHAKE_FAILED_AUTH
)
_WHY: Final = {
    errno.EADDRINUSE: "another program listens there: stop it, or choose another port with --bind",
    errno.EACCES: "this user may not listen there: choose a port above 1023 with --bind",
    errno.EADDRNOTAVAIL: "this machine has no such address: give one of its own with --bind",
    errno.ENODEV: "this machine has no such address or interface: give one of its own with --bind",
    errno.EINVAL: "it is no address that can be listened on: write it like tcp://127.0.0.1:5555",
    errno.ENOENT: "its folder does not exist: make it, or choose another path with --bind",
    errno.ENAMETOOLONG: "the path is too long for a socket: choose a shorter one with --bind",
}


@dataclass(frozen=True)
class Received:
    """One message from a peer.

    Attributes:
        route: Names the connection; replies go to it. libzmq chose it.
        link: The connection's file descriptor, -1 where there is none; tells which one a disconnect was
            about.
        user: The peer's authenticated public key; empty without CURVE.
        frames: The message, without the route.
    """

    route: bytes
    link: int
    user: str
    frames: list[bytes]


class Listener:
    """Opens and binds the sockets when built.

    Args:
        config: Address, keys, limits.
        max_payload: Bytes of the largest payload; see ``qtl_core.sockets.router``.

    Attributes:
        endpoint: Where it listens, with the actual port.
        gate: The authorised clients; None in plaintext.
        waker: Its :meth:`~server_runtime.waker.Waker.ring` ends a :meth:`wait` from any thread.
        bad_handshakes: Connections that failed to become ZeroMQ connections: strangers, random bytes, wrong
            keys.

    Raises:
        BindError: The address is taken, or cannot be bound.
        KeyFileError: A key file is missing, damaged, or readable by others.
    """

    def __init__(self, config: ServerConfig, *, max_payload: int) -> None:
        keys: KeyPair | None = None
        self.gate: Gate | None = None
        if config.keys is not None:
            keys = load_server(config.keys)
            self.gate = Gate(config.keys)
        self.encrypted = keys is not None
        self.bad_handshakes = 0
        self.waker = Waker()
        # A context of its own: ZAP is found by a fixed name, and two servers in one process must not share
        # it.
        self._context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        self._sockets: list[zmq.Socket[bytes]] = []
        self._door: Door | None = None
        try:
            if self.gate is not None:
                # Before the server's socket binds: without a handler, libzmq would let everybody in.
                self._door = Door(self._context, self.gate)
                self._sockets.append(self._door.socket)
            self._router = router(self._context, max_payload=max_payload, keys=keys)
            self._sockets.append(self._router)
            # What waits unread is bounded per peer; beyond it TCP holds the sender back.
            self._router.setsockopt(zmq.RCVHWM, 2 * config.credits + 8)
            self._router.monitor(_MONITOR, _EVENTS)
            self._monitor = self._context.socket(zmq.PAIR)
            self._sockets.append(self._monitor)
            self._monitor.connect(_MONITOR)
            self.endpoint = _with_port(config.bind, self._bind(config.bind))
            self._poller = zmq.Poller()
            self._poller.register(self.waker, zmq.POLLIN)
            for socket in self._sockets:
                self._poller.register(socket, zmq.POLLIN)
        except BaseException:
            self.close()
            raise

    def wait(self, seconds: float) -> None:
        """Wait until there is something to do, ``seconds`` at most; answers handshakes on the way."""
        self._poller.poll(max(0, round(seconds * 1000)))
        self.waker.quiet()
        if self._door is not None:
            self._door.answer()

    def receive(self) -> Received | None:
        """The next message that waits, or None."""
        try:
            frames = self._router.recv_multipart(zmq.NOBLOCK, copy=False)
        except zmq.Again:
            return None
        last = frames[-1]
        return Received(
            route=frames[0].bytes,
            link=_link(last),
            user=_user(last) if self.encrypted else "",
            frames=[frame.bytes for frame in frames[1:]],
        )

    def send(self, route: bytes, frames: list[bytes]) -> bool:
        """Hand a message to libzmq; False where the peer has gone, or does not read what it is sent."""
        try:
            self._router.send_multipart([route, *frames], zmq.NOBLOCK)
        except zmq.ZMQError as error:
            if error.errno in (zmq.EHOSTUNREACH, zmq.EAGAIN):
                return False
            raise
        return True

    def departures(self) -> Iterator[int]:
        """The descriptors of connections that ended since the last call.

        libzmq does not tell why one ended: the peer left, the network failed, or libzmq itself cut it because
        of an oversized frame or bytes that are not ZMTP.
        """
        while self._monitor.poll(0):
            event = recv_monitor_message(self._monitor)
            if event["event"] == zmq.EVENT_DISCONNECTED:
                yield int(event["value"])
            else:
                self.bad_handshakes += 1

    def close(self, linger_s: float = 0.0) -> None:
        """Close everything, waiting ``linger_s`` at most for messages that are still to be sent."""
        for socket in self._sockets:
            socket.close(linger=round(linger_s * 1000))
        self._sockets.clear()
        self._context.term()
        self.waker.close()

    def _bind(self, address: str) -> str:
        try:
            self._router.bind(address)
        except zmq.ZMQError as error:
            why = _WHY.get(error.errno or 0, f"{error.strerror}: choose another address with --bind")
            raise BindError(f"cannot listen on {address}: {why}") from error
        return self._router.getsockopt_string(zmq.LAST_ENDPOINT).rstrip("\0")


def _with_port(asked: str, bound: str) -> str:
    """The address as it was asked for, with the port taken: libzmq writes 127.0.0.1 in IPv6."""
    if not asked.startswith("tcp://"):
        return bound
    return f"{asked.rpartition(':')[0]}:{bound.rpartition(':')[2]}"


def _link(frame: zmq.Frame) -> int:
    try:
        return frame.get(zmq.SRCFD)
    except zmq.ZMQError:
        return -1  # not a connection with a descriptor (inproc)


def _user(frame: zmq.Frame) -> str:
    try:
        found = frame.get("User-Id")
    except zmq.ZMQError:
        return ""
    return found if isinstance(found, str) else ""
