"""A bell that threads and signal handlers ring to wake the thread that polls the sockets."""

from __future__ import annotations

import contextlib
import socket


class Waker:
    """A non-blocking socket pair: :meth:`ring` from anywhere, :meth:`fileno` in the poller, :meth:`quiet`
    after waking.

    A zmq socket belongs to one thread and must not be touched in a signal handler; one byte on a socket pair
    may be written from either.
    """

    def __init__(self) -> None:
        self._listen, self._bell = socket.socketpair()
        self._listen.setblocking(False)
        self._bell.setblocking(False)

    def fileno(self) -> int:
        """The descriptor that becomes readable once the bell was rung."""
        return self._listen.fileno()

    def ring(self) -> None:
        """Wake the polling thread. Never blocks; a bell that rings already, or is closed, may be rung."""
        # A full buffer means that the poller wakes anyway; a closed socket, that it no longer polls.
        with contextlib.suppress(OSError):
            self._bell.send(b"!")

    def quiet(self) -> None:
        """Swallow all rings so far."""
        with contextlib.suppress(OSError):
            while self._listen.recv(4096):
                pass

    def close(self) -> None:
        """Close both ends."""
        self._listen.close()
        self._bell.close()
