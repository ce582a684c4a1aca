"""Who may connect: the ZAP handler of CURVE, and the list of clients behind it.

libzmq asks the handler at each connection; the front asks :class:`Gate` again at each message, because a
ROUTER cannot cut off one peer: that second look is what makes a revoked key stop working.
"""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Final

import zmq
from zmq.utils import z85

from qtl_core.keys import CLIENTS, PUBLIC_SUFFIX, load_authorised

_log = logging.getLogger(__name__)

ZAP_ADDRESS: Final = "inproc://zeromq.zap.01"
_ZAP_VERSION: Final = b"1.0"
_PUBLIC_KEY_BYTES: Final = 32


class Gate:
    """The authorised clients of a key folder, read again when its files change.

    Args:
        folder: A server's key folder; ``clients/*.key`` in it are let in.
        every_s: The folder is looked at once in so many seconds at most.
        clock: Seconds that only grow.
    """

    def __init__(
        self, folder: Path, *, every_s: float = 1.0, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._folder = folder
        self._every_s = every_s
        self._clock = clock
        self._looked = clock()
        self._seen = self._state()
        self._clients: dict[str, str] = {}
        self._read()

    def name_of(self, user: str) -> str | None:
        """The name of the client with the public key ``user`` (40 Z85 characters); None: not let in."""
        now = self._clock()
        if now - self._looked >= self._every_s:
            self._looked = now
            state = self._state()
            if state != self._seen:
                self._seen = state
                self._read()
        return self._clients.get(user)

    def __len__(self) -> int:
        return len(self._clients)

    def _state(self) -> frozenset[tuple[str, int, int, int]]:
        """What tells a changed folder from an unchanged one without reading the files."""
        found = set()
        try:
            with os.scandir(self._folder / CLIENTS) as entries:
                for entry in entries:
                    if entry.name.endswith(PUBLIC_SUFFIX):
                        status = entry.stat()
                        found.add((entry.name, status.st_ino, status.st_mtime_ns, status.st_size))
        except OSError as error:
            # A folder that cannot be read lets nobody in; that it happened is said once, by the change
            # itself.
            _log.warning("cannot look at %s: %s", self._folder / CLIENTS, error.strerror)
        return frozenset(found)

    def _read(self) -> None:
        authorised = load_authorised(self._folder)
        self._clients = {key.decode("ascii"): name for key, name in authorised.clients.items()}
        for problem in authorised.problems:
            _log.warning("%s", problem)
        _log.info("%d clients are authorised by %s", len(self._clients), self._folder / CLIENTS)


class Door:
    """Answers libzmq's question, at each CURVE handshake, whether that key may come in (ZAP, RFC 27).

    The front polls :attr:`socket` and calls :meth:`answer`; no thread of its own.

    Args:
        context: The context of the server's socket: ZAP is looked up there.
        gate: Who is let in.
    """

    def __init__(self, context: zmq.Context[zmq.Socket[bytes]], gate: Gate) -> None:
        self._gate = gate
        self.socket = context.socket(zmq.REP)
        try:
            self.socket.setsockopt(zmq.LINGER, 0)
            self.socket.bind(ZAP_ADDRESS)
        except BaseException:
            self.socket.close(linger=0)
            raise

    def answer(self) -> None:
        """Answer every question that waits."""
        while True:
            try:
                parts = self.socket.recv_multipart(zmq.NOBLOCK)
            except zmq.Again:
                return
            self.socket.send_multipart(self._verdict(parts))

    def _verdict(self, parts: list[bytes]) -> list[bytes]:
        request = parts[1] if len(parts) > 1 else b""
        user = b""
        # version, request id, domain, address, routing id, mechanism, public key
        if len(parts) == 7 and parts[0] == _ZAP_VERSION and parts[5] == b"CURVE":
            key = parts[6]
            encoded = z85.encode(key) if len(key) == _PUBLIC_KEY_BYTES else b""
            if encoded and self._gate.name_of(encoded.decode("ascii")) is not None:
                user = encoded
        if user:
            return [_ZAP_VERSION, request, b"200", b"OK", user, b""]
        return [_ZAP_VERSION, request, b"400", b"this key is not authorised", b"", b""]

    def close(self) -> None:
        """Close the socket."""
        self.socket.close(linger=0)
