"""A training client's requests: several in flight, each sent again until it has its reply."""

from __future__ import annotations

import secrets
from collections.abc import Sequence
from typing import Final, TypeVar

from edge_runtime.session import Lost, Session
from qtl_core.errors import HandshakeRefused, MalformedMessage, RequestRefused, ServerLost, ServerUnavailable
from qtl_core.messages import Error, Limits, Message, Ping, Pong, Reject, Welcome, kind
from qtl_core.wire import join

_Reply = TypeVar("_Reply", bound=Message)

_PATIENCE_S: Final = 3600.0
"""For one reply while the connection stands: a step of a large model takes as long as it takes."""


_SILENCE_S: Final = 10.0


class NewServer(Exception):
    """The server knows nothing of this session any more: both sides go back to a moment that both hold."""


class Requests:
    """Sends messages and finds their replies by id.

    Args:
        session: opened by the caller.
        limits: of what the server may send.
        comeback: seconds that a lost server has to come back.
    """

    def __init__(self, session: Session, limits: Limits, *, comeback: float) -> None:
        self._session, self._limits, self._comeback = session, limits, comeback
        # Another process of this client must not be taken for this one: replies are kept by id.
        self._id = 1 + (secrets.randbelow(2**40) << 12)
        session.limits = limits
        self._ping = 0
        self._open: dict[int, list[bytes]] = {}
        self._replies: dict[int, tuple[Message, dict[str, bytes]]] = {}

    def next_id(self) -> int:
        """An id that no other request has."""
        self._id += 1
        return self._id

    def send(self, message: Message, payloads: Sequence[bytes] = ()) -> int:
        """Sends a request and returns its id, by which ``reply`` finds what came of it."""
        about = int(getattr(message, "id"))  # noqa: B009 - every request has one
        self._open[about] = join(message, payloads)
        self._put(self._open[about])
        return about

    def reply(self, about: int, wanted: type[_Reply]) -> tuple[_Reply, dict[str, bytes]]:
        """The reply to a request, with its payloads.

        Raises:
            NewServer: the server was started anew; nothing is in flight any more.
            ServerLost: it did not come back.
            RefusedError: it refused the request, or the session.
            MalformedMessage: it said something else.
        """
        deadline = self._session.clock() + _PATIENCE_S
        while about not in self._replies:
            try:
                heard = self._session.hear(min(deadline, self._session.clock() + _SILENCE_S), self._limits)
            except Lost:
                self._recover()
                continue
            if heard is None and self._session.clock() < deadline:
                self._look()
                continue
            if heard is None:
                raise ServerLost(
                    f"the server at {self._session.endpoint} is there and gave no reply within "
                    f"{_PATIENCE_S:g} s; look at its log"
                )
            self._take(*heard)
        message, payloads = self._replies.pop(about)
        if not isinstance(message, wanted):
            raise MalformedMessage(
                f"the server replied {kind(message)} where {wanted.__name__.upper()} is due"
            )
        return message, payloads

    def _look(self) -> None:
        """Asks a silent server whether it still knows this session; it answers when it is done computing."""
        if self._ping not in self._open:
            self._ping = self.next_id()
            self.send(Ping(self._ping))

    def _take(self, message: Message, payloads: dict[str, bytes]) -> None:
        if isinstance(message, Pong | Welcome):
            self._open.pop(getattr(message, "id", 0), None)
            return
        if isinstance(message, Reject):
            raise HandshakeRefused(message.reason, f"the server ended the session: {message.message}")
        about = int(getattr(message, "id", 0))
        if isinstance(message, Error):
            if about and about not in self._open:
                return  # about an echo of what has had its reply
            if message.code == "no_session":
                self._session.forget()
                self._recover()
            elif message.code == "checksum" and about in self._open:
                self._put(self._open[about])
            else:
                raise RequestRefused(
                    message.code,
                    f"the server at {self._session.endpoint} refused a step ({message.code}): "
                    f"{message.message}",
                )
        elif self._open.pop(about, None) is not None:
            # A reply that comes twice finds its request gone.
            self._replies[about] = (message, payloads)

    def _put(self, frames: list[bytes]) -> None:
        try:
            self._session.send(frames)
        except Lost:
            self._recover()

    def _recover(self) -> None:
        """Opens the session again, and sends again what has no reply yet.

        Raises:
            NewServer: the server does not know the session any more.
            ServerLost: there is none within ``comeback``.
        """
        while True:
            try:
                welcome = self._session.open(self._comeback)
                if not welcome.resumed:
                    self._open.clear()
                    self._replies.clear()
                    raise NewServer
                for frames in list(self._open.values()):
                    self._session.send(frames)
                return
            except Lost:
                continue
            except ServerUnavailable as error:
                raise ServerLost(
                    f"the server at {self._session.endpoint} was lost and did not come back within "
                    f"{self._comeback:g} s; start it, then this client again: it goes on where both stood"
                ) from error
