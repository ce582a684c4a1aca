"""How both ends set up their ZeroMQ socket, in one place, so that they cannot disagree.

The caller owns the socket it gets, and closes it.
"""

from __future__ import annotations

import ipaddress
import re
from dataclasses import dataclass
from typing import Final

import zmq

from .errors import HostError, InputError
from .keys import KeyPair
from .wire import CURVE_OVERHEAD, HEADER_CAP, MAX_PAD

HEARTBEAT_MS: Final = 5_000
"""ZMTP PING after so much silence; libzmq answers them, whatever the program is doing."""
HEARTBEAT_TIMEOUT_MS: Final = 15_000
"""A peer that leaves a ZMTP PING unanswered so long has its connection closed."""
HANDSHAKE_MS: Final = 10_000
"""A connection that has not finished the ZMTP handshake by then is closed: a stranger, or random bytes."""
RECONNECT_MS: Final = 100
RECONNECT_MAX_MS: Final = 5_000
ZAP_DOMAIN: Final = "qtl"
"""Domain under which the server's authenticator is asked."""
SEND_QUEUE: Final = 1_000
"""Messages a socket queues for one peer. Credits keep a peer far below it."""

_TCP = re.compile(r"tcp://(?P<host>\[[^\]/]+\]|[^:/;\[\]\s]+):(?P<port>\d{1,5}|\*|!)\Z")
_LOCAL_NAMES: Final = frozenset({"localhost", "localhost.localdomain", "ip6-localhost"})


@dataclass(frozen=True, kw_only=True)
class Endpoint:
    """A checked address.

    Attributes:
        text: as ZeroMQ takes it.
        transport: "tcp", "ipc" or "inproc".
        host: name or address without brackets; empty for other transports.
        port: 0 where the system chooses; 0 for other transports.
    """

    text: str
    transport: str
    host: str = ""
    port: int = 0

    @property
    def is_loopback(self) -> bool:
        """Whether only this machine can reach it."""
        if self.transport != "tcp":
            return True
        if self.host.lower() in _LOCAL_NAMES:
            return True
        try:
            address = ipaddress.ip_address(self.host.partition("%")[0])
            # libzmq reports an IPv4 address it listens on as ::ffff:127.0.0.1.
            mapped = address.ipv4_mapped if isinstance(address, ipaddress.IPv6Address) else None
            return (mapped or address).is_loopback
        except ValueError:
            return False  # a name or an interface: where it leads is not ours to guess


def parse_endpoint(text: str) -> Endpoint:
    """Checks an address such as ``tcp://127.0.0.1:5555``, ``tcp://[::1]:5555`` or ``ipc:///run/qtl``.

    Raises:
        InputError: not an address of that form.
    """
    for transport in ("ipc", "inproc"):
        if text.startswith(f"{transport}://") and len(text) > len(transport) + 3 and "\0" not in text:
            return Endpoint(text=text, transport=transport)
    match = _TCP.match(text)
    port = match["port"] if match else ""
    if match is None or (port.isdigit() and int(port) > 65535):
        raise InputError(f"{text!r} is no address; write it like tcp://127.0.0.1:5555")
    return Endpoint(
        text=text,
        transport="tcp",
        host=match["host"].strip("[]"),
        port=int(port) if port.isdigit() else 0,
    )


def is_loopback(endpoint: str) -> bool:
    """Whether only this machine can reach the address (loopback TCP, ipc, inproc).

    Names other than ``localhost`` count as public: they are not resolved here.

    Raises:
        InputError: not an address.
    """
    return parse_endpoint(endpoint).is_loopback


def dealer(
    context: zmq.Context[zmq.Socket[bytes]],
    *,
    keys: KeyPair | None = None,
    server_key: bytes | None = None,
    max_payload: int = 0,
) -> zmq.Socket[bytes]:
    """The client's socket, not yet connected.

    Args:
        context: the caller's context.
        max_payload: bytes of the largest payload a server may send; only training servers send any.
        keys: the client's CURVE key pair; None for plaintext.
        server_key: the server's public key, 40 Z85 characters; needed with ``keys``.

    Raises:
        HostError: keys without CURVE in this libzmq, or one key without the other.
    """
    if (keys is None) != (server_key is None):
        raise HostError("CURVE needs both the client's secret key and the server's public key; give both")
    if keys is not None:
        require_curve()
    socket = context.socket(zmq.DEALER)
    try:
        _common(socket)
        # A question for a server that is not there waits in our code, with a timeout, not in a queue.
        socket.setsockopt(zmq.IMMEDIATE, 1)
        socket.setsockopt(zmq.RECONNECT_IVL, RECONNECT_MS)
        socket.setsockopt(zmq.RECONNECT_IVL_MAX, RECONNECT_MAX_MS)
        # What a server sends otherwise is headers only; anything longer is no server of ours.
        socket.setsockopt(zmq.MAXMSGSIZE, max(max_payload, HEADER_CAP) + CURVE_OVERHEAD)
        if keys is not None and server_key is not None:
            socket.curve_publickey = keys.public
            socket.curve_secretkey = keys.secret
            socket.curve_serverkey = server_key
    except BaseException:
        socket.close(linger=0)
        raise
    return socket


def router(
    context: zmq.Context[zmq.Socket[bytes]], *, max_payload: int, keys: KeyPair | None = None
) -> zmq.Socket[bytes]:
    """The server's socket, not yet bound.

    Args:
        context: the caller's context.
        max_payload: bytes of the largest payload; libzmq drops a connection that sends a frame longer than
            a padded question's, with two payloads and ``MAX_PAD`` bytes.
        keys: the server's CURVE key pair; None for plaintext.

    Raises:
        HostError: keys without CURVE in this libzmq.
    """
    if keys is not None:
        require_curve()
    socket = context.socket(zmq.ROUTER)
    try:
        _common(socket)
        # Sending to a client that left is an error we count, not a silent loss.
        socket.setsockopt(zmq.ROUTER_MANDATORY, 1)
        # Checked by libzmq before it allocates. It holds for every frame, the header included, and counts
        # what lies on the wire.
        socket.setsockopt(zmq.MAXMSGSIZE, max(2 * max_payload + MAX_PAD, HEADER_CAP) + CURVE_OVERHEAD)
        if keys is not None:
            socket.curve_server = True
            socket.curve_publickey = keys.public
            socket.curve_secretkey = keys.secret
            # libzmq then refuses every client until an authenticator answers for the domain; left alone it
            # lets in anybody who has the server's public key.
            socket.setsockopt(zmq.ZAP_ENFORCE_DOMAIN, 1)
            socket.setsockopt_string(zmq.ZAP_DOMAIN, ZAP_DOMAIN)
    except BaseException:
        socket.close(linger=0)
        raise
    return socket


def require_curve() -> None:
    """Raises ``HostError`` if the installed libzmq cannot encrypt."""
    if not zmq.has("curve"):
        raise HostError("this build of pyzmq has no CURVE encryption; install pyzmq from its official wheel")


def _common(socket: zmq.Socket[bytes]) -> None:
    socket.setsockopt(zmq.LINGER, 0)
    socket.setsockopt(zmq.IPV6, 1)
    socket.setsockopt(zmq.HANDSHAKE_IVL, HANDSHAKE_MS)
    socket.setsockopt(zmq.HEARTBEAT_IVL, HEARTBEAT_MS)
    socket.setsockopt(zmq.HEARTBEAT_TIMEOUT, HEARTBEAT_TIMEOUT_MS)
    socket.setsockopt(zmq.HEARTBEAT_TTL, HEARTBEAT_TIMEOUT_MS)
    socket.setsockopt(zmq.SNDHWM, SEND_QUEUE)
    socket.setsockopt(zmq.RCVHWM, SEND_QUEUE)
