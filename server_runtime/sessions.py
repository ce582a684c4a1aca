"""The clients being served: who they are, what they have in flight, what they were answered."""

from __future__ import annotations

import secrets
from collections import OrderedDict
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

from qtl_core.messages import Answer
from server_runtime.worker import Job

KEY_BYTES = 16


@dataclass(frozen=True)
class Kept:
    """A finished answer, kept for a client that did not get it and asks again.

    Attributes:
        digest: Identifies the question; the same id with another one is a mistake of the client's.
        pieces: The answer as it was streamed.
        answer: The message that ended it.
    """

    digest: bytes
    pieces: tuple[str, ...]
    answer: Answer


@dataclass(eq=False)
class Session:
    """One client.

    Attributes:
        key: The session's name, random; who presents it (and the same key pair) after a reconnect gets it
            back.
        user: The client's authenticated public key; empty in plaintext.
        route: The connection that replies go to.
        link: That connection's file descriptor.
        seen: When the client last said something.
        attached: Whether the connection is there, as far as known.
        lost: The connection ended, and the client had not said Bye.
        in_flight: Accepted questions without an answer yet, by id.
        kept: Finished answers by id, oldest first.
    """

    key: bytes
    user: str
    route: bytes
    link: int
    seen: float
    attached: bool = True
    lost: bool = False
    in_flight: dict[int, Job] = field(default_factory=dict)
    kept: OrderedDict[int, Kept] = field(default_factory=OrderedDict)


class Sessions:
    """All sessions, found by key or by connection.

    Args:
        most: How many there may be.
        idle_s: One that is silent for so long, with nothing in flight, is forgotten.
        kept: Finished answers kept for each.
        token: Makes keys; passed in for tests.
    """

    def __init__(
        self, *, most: int, idle_s: float, kept: int, token: Callable[[int], bytes] = secrets.token_bytes
    ) -> None:
        self._most = most
        self._idle_s = idle_s
        self._kept = kept
        self._token = token
        self._by_key: dict[bytes, Session] = {}
        self._by_route: dict[bytes, Session] = {}
        self._by_link: dict[int, Session] = {}

    def __len__(self) -> int:
        return len(self._by_key)

    def __iter__(self) -> Iterator[Session]:
        return iter(list(self._by_key.values()))

    def at(self, route: bytes) -> Session | None:
        """The session of a connection."""
        return self._by_route.get(route)

    def named(self, key: bytes) -> Session | None:
        """The session of that name."""
        return self._by_key.get(key)

    def open(self, route: bytes, link: int, user: str, now: float) -> Session | None:
        """A new session; None where there is no room."""
        if len(self._by_key) >= self._most:
            return None
        session = Session(key=self._token(KEY_BYTES), user=user, route=route, link=link, seen=now)
        self._by_key[session.key] = session
        self._place(session, route, link)
        return session

    def resume(self, key: bytes, route: bytes, link: int, user: str, now: float) -> Session | None:
        """The session ``key``, moved to this connection; None: there is none, or it is somebody else's."""
        session = self._by_key.get(key)
        if session is None or session.user != user:
            return None
        self._unplace(session)
        self._place(session, route, link)
        session.seen = now
        return session

    def touch(self, session: Session, link: int, now: float) -> None:
        """The client said something."""
        session.seen = now
        if session.link != link or not (session.attached or session.lost):
            self._unplace(session)
            self._place(session, session.route, link)

    def detach(self, link: int) -> None:
        """The connection ``link`` ended; its session waits for the client to come back."""
        session = self._by_link.pop(link, None)
        if session is not None:
            session.attached, session.lost = False, True

    def close(self, session: Session) -> None:
        """Forget a session."""
        self._by_key.pop(session.key, None)
        self._unplace(session)

    def keep(self, session: Session, kept: Kept) -> None:
        """Keep an answer for retries, and drop the oldest one beyond the number kept."""
        session.kept[kept.answer.id] = kept
        while len(session.kept) > self._kept:
            session.kept.popitem(last=False)

    def idle(self, now: float) -> list[Session]:
        """Sessions whose time is up. One that waits for an answer on a live connection is not idle."""
        return [
            session
            for session in self._by_key.values()
            if now - session.seen >= self._idle_s and not (session.attached and session.in_flight)
        ]

    def abandoned(self) -> Session | None:
        """Of the sessions without a connection, the one silent for longest: the first to make room."""
        gone = [session for session in self._by_key.values() if not session.attached]
        return min(gone, key=lambda session: session.seen, default=None)

    def _place(self, session: Session, route: bytes, link: int) -> None:
        session.route, session.link = route, link
        session.attached, session.lost = True, False
        self._by_route[route] = session
        if link >= 0:
            self._by_link[link] = session

    def _unplace(self, session: Session) -> None:
        if self._by_route.get(session.route) is session:
            del self._by_route[session.route]
        if self._by_link.get(session.link) is session:
            del self._by_link[session.link]
