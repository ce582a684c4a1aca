"""The protocol as the server speaks it: what each message from a client does, and what is said back.

It knows sessions, credits and retries, and neither sockets nor threads: it is given a way to send and a
worker. ``docs/protocol.md`` is the same from outside.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping

from qtl_core import __version__
from qtl_core.bundle import Manifest
from qtl_core.entropy import Tables
from qtl_core.errors import ProtocolError, QtlError, RequestRefused
from qtl_core.messages import (
    PROTOCOL,
    Answer,
    Ask,
    Busy,
    Bye,
    Error,
    Hello,
    Limits,
    Message,
    Ping,
    Pong,
    Reject,
    Token,
    Welcome,
    kind,
)
from qtl_core.wire import join, split, wire_size
from server_runtime.admission import common_capabilities, digest, read_ask, refuse_hello
from server_runtime.auth import Gate
from server_runtime.config import ServerConfig
from server_runtime.counts import Counts
from server_runtime.listener import Received
from server_runtime.sessions import Kept, Session, Sessions
from server_runtime.worker import Done, Failed, Job, Outcome, Piece, Worker

_log = logging.getLogger(__name__)

_LONGEST_MESSAGE = 900
_SHORTEST_WAIT_MS = 20
_LONGEST_WAIT_MS = 10_000


class Conversation:
    """All conversations of one server.

    Args:
        config: Credits, limits.
        manifest: Of the server's half.
        limits: What every session may send.
        send: Hands frames to a connection; False where it has gone.
        worker: Computes answers.
        gate: The authorised clients; None in plaintext.
        tables: Of the entropy coder; None where the half has none.
        clock: Seconds that only grow.
        encrypted: Whether connections are CURVE's, for counting bytes.

    Attributes:
        closing: Set once the server ends: nothing new is accepted.
    """

    def __init__(
        self,
        config: ServerConfig,
        manifest: Manifest,
        limits: Limits,
        send: Callable[[bytes, list[bytes]], bool],
        worker: Worker,
        *,
        gate: Gate | None,
        clock: Callable[[], float],
        tables: Tables | None = None,
        encrypted: bool = False,
    ) -> None:
        self._config = config
        self._manifest = manifest
        self._tables = tables
        self._send_frames = send
        self._worker = worker
        self._gate = gate
        self._clock = clock
        self._encrypted = encrypted
        self._limits = limits
        self._agent = f"qtl-server/{__version__}"
        # Seconds per answer, a running mean: the hint in BUSY.
        self._pace_s = 0.1
        self._left: set[int] = set()
        self.sessions = Sessions(most=config.max_sessions, idle_s=config.idle_s, kept=config.kept_answers)
        self.counts = Counts()
        self.closing = False

    # ------------------------------------------------------------------------------------ from clients

    def hear(self, received: Received) -> None:
        """Handle one message. Whatever its bytes are, at most its sender gets an error reply."""
        self.counts.bytes_in += wire_size(received.frames, self._encrypted)
        about = 0
        try:
            message, payloads = split(received.frames, self._limits)
            about = message.id if isinstance(message, Ask | Ping) else 0
            self._dispatch(received, message, payloads)
        except ProtocolError as error:
            self._error(received.route, error.about, error.wire_code, str(error))
        except Exception:  # A mistake of ours on one peer's bytes must not end the service for the others.
            _log.exception("a message of %d frames could not be handled", len(received.frames))
            self._error(received.route, about, "internal", "the server failed on this message")

    def _dispatch(self, received: Received, message: Message, payloads: Mapping[str, bytes]) -> None:
        about = message.id if isinstance(message, Ask | Ping) else 0
        session = self.sessions.at(received.route)
        if self._gate is not None and self._gate.name_of(received.user) is None:
            # Let in once and revoked since: the connection stays, and nothing is done for it.
            if session is not None:
                self._forget(session)
            if isinstance(message, Hello):
                self._reject(received, Reject("auth", "this client's key is not authorised (any more)"))
            else:
                text = "the session is closed: this client's key is not authorised any more"
                self._error(received.route, about, "no_session", text)
            return
        if isinstance(message, Hello):
            self._hello(received, message)
        elif isinstance(message, Bye):
            if session is not None:
                if session.lost:
                    self.counts.lost -= 1  # its connection ended before its Bye was read
                else:
                    self._left.add(received.link)
                self._forget(session)
        elif not isinstance(message, Ask | Ping):
            self._error(received.route, 0, "malformed", f"a client does not send {kind(message)}")
        elif session is None or session.user != received.user:
            text = "no session on this connection (never opened, or idle for too long): send HELLO first"
            self._error(received.route, about, "no_session", text)
        else:
            self.sessions.touch(session, received.link, self._clock())
            if isinstance(message, Ping):
                self._say(received.route, Pong(message.id))
            else:
                self._ask(session, message, payloads)

    def _hello(self, received: Received, hello: Hello) -> None:
        route = received.route
        if self.closing:
            self._error(route, 0, "closing", "the server is shutting down: come back later")
            return
        reject = refuse_hello(hello, self._manifest, self._tables)
        if reject is not None:
            self._reject(received, reject)
            return
        now = self._clock()
        session = self.sessions.resume(hello.resume, route, received.link, received.user, now)
        resumed = session is not None
        if session is None:
            earlier = self.sessions.at(route)
            if earlier is not None:
                self._forget(earlier)
            session = self._make_room(received, now)
        if session is None:
            text = f"all {self._config.max_sessions} sessions of this server are taken: try again later"
            self._reject(received, Reject("full", text))
            return
        welcome = Welcome(
            protocol=PROTOCOL,
            session=session.key,
            limits=self._limits,
            credits=self._config.credits,
            agent=self._agent,
            resumed=resumed,
            capabilities=common_capabilities(hello, self._tables),
        )
        self._say(route, welcome)

    def _make_room(self, received: Received, now: float) -> Session | None:
        session = self.sessions.open(received.route, received.link, received.user, now)
        if session is None:
            self.expire()
            session = self.sessions.open(received.route, received.link, received.user, now)
        if session is None and (gone := self.sessions.abandoned()) is not None:
            self._forget(gone)
            session = self.sessions.open(received.route, received.link, received.user, now)
        return session

    def _ask(self, session: Session, ask: Ask, payloads: Mapping[str, bytes]) -> None:
        content = digest(ask, payloads)
        if self._again(session, ask, content):
            return
        if self.closing:
            self._error(session.route, ask.id, "closing", "the server is shutting down: ask again later")
            return
        if len(session.in_flight) >= self._config.credits:
            self._busy(session, ask, self._pace_s)
            return
        try:
            prompt = read_ask(ask, payloads, self._manifest, self._tables)
        except ProtocolError as error:
            self._error(session.route, ask.id, error.wire_code, str(error))
            return
        except RequestRefused as refused:
            self._error(session.route, ask.id, refused.reason, refused.message)
            return
        job = Job(
            session=session.key,
            id=ask.id,
            prompt=prompt,
            max_tokens=min(ask.max_tokens or self._limits.max_tokens, self._limits.max_tokens),
            stream=ask.stream,
            digest=content,
            accepted=self._clock(),
            origin=session.route,
        )
        if self._worker.submit(job):
            session.in_flight[ask.id] = job
        else:
            self._busy(session, ask, self._pace_s * self._worker.load())

    def _again(self, session: Session, ask: Ask, content: bytes) -> bool:
        """Answer a retry from what was already computed; False where ``ask`` is new."""
        kept, job = session.kept.get(ask.id), session.in_flight.get(ask.id)
        if kept is None and job is None:
            return False
        if content not in (kept.digest if kept else b"", job.digest if job else b""):
            text = f"id {ask.id} belongs to another question of this session: give each question its own id"
            self._error(session.route, ask.id, "duplicate", text)
        elif job is not None and job.origin == session.route:
            text = f"question {ask.id} is being answered on this connection already: wait for its answer"
            self._error(session.route, ask.id, "duplicate", text)
        elif job is not None:
            # The client came back over a new connection: it gets what it missed, and then the rest as it
            # comes.
            job.origin, job.stream = session.route, ask.stream
            self.counts.replayed += 1
            self._replay(session, ask, job.pieces)
        elif kept is not None:
            self.counts.replayed += 1
            self._replay(session, ask, kept.pieces)
            self._say(session.route, kept.answer)
        return True

    def _replay(self, session: Session, ask: Ask, pieces: list[str] | tuple[str, ...]) -> None:
        if ask.stream:
            for index, text in enumerate(pieces):
                self._say(session.route, Token(ask.id, index, text))

    # ------------------------------------------------------------------------------------ from the worker

    def deliver(self, outcome: Outcome) -> None:
        """Tell the client what the engine did for it."""
        job = outcome.job
        session = self.sessions.named(job.session)
        if session is None or session.in_flight.get(job.id) is not job:
            return  # its session ended
        if isinstance(outcome, Piece):
            job.tokens += 1
            if outcome.text:
                job.pieces.append(outcome.text)
                if job.stream:
                    self._say(session.route, Token(job.id, len(job.pieces) - 1, outcome.text))
            return
        del session.in_flight[job.id]
        session.seen = self._clock()
        if isinstance(outcome, Failed):
            self._error(session.route, job.id, outcome.code, outcome.message)
        else:
            self._finish(session, job, outcome)

    def _finish(self, session: Session, job: Job, done: Done) -> None:
        took = self._clock() - job.accepted
        self._pace_s += 0.2 * (took - self._pace_s)
        answer = Answer(
            id=job.id,
            text="".join(job.pieces),
            tokens=job.tokens,
            server_us=max(0, round(took * 1e6)),
            finish="length" if done.full else "stop",
        )
        try:
            join(answer)
        except ProtocolError as error:
            self._error(session.route, job.id, error.wire_code, f"the answer is too long to send: {error}")
            return
        self.counts.answered += 1
        self.sessions.keep(session, Kept(job.digest, tuple(job.pieces), answer))
        self._say(session.route, answer)

    # ------------------------------------------------------------------------------------ time and endings

    def expire(self) -> None:
        """Forget the sessions whose time is up."""
        for session in self.sessions.idle(self._clock()):
            self._forget(session)

    def departed(self, link: int) -> None:
        """A connection ended."""
        if link in self._left:
            self._left.discard(link)
        else:
            self.counts.lost += 1
        self.sessions.detach(link)

    def abandon(self, job: Job, code: str, message: str) -> None:
        """Give up a question and tell its client."""
        self._worker.discard(job)
        self.deliver(Failed(job, code, message))

    def farewell(self) -> None:
        """Tell every client that the server ends, and of each question in flight that it gets no answer."""
        for session in self.sessions:
            for job in list(session.in_flight.values()):
                self.abandon(job, "closing", "the server is shutting down: ask again later")
            if session.attached:
                self._error(session.route, 0, "closing", "the server is shutting down")

    def connected(self) -> int:
        """How many clients are still connected."""
        return sum(session.attached for session in self.sessions)

    def _forget(self, session: Session) -> None:
        for job in session.in_flight.values():
            self._worker.discard(job)
        self.sessions.close(session)

    # ------------------------------------------------------------------------------------ saying things

    def _busy(self, session: Session, ask: Ask, wait_s: float) -> None:
        self.counts.busy += 1
        wait_ms = min(max(round(wait_s * 1000), _SHORTEST_WAIT_MS), _LONGEST_WAIT_MS)
        self._say(session.route, Busy(ask.id, wait_ms))

    def _reject(self, received: Received, reject: Reject) -> None:
        self.counts.rejected[reject.reason] += 1
        self._left.add(received.link)  # a client that was sent away need not say Bye
        self._say(received.route, reject)

    def _error(self, route: bytes, about: int, code: str, message: str) -> None:
        self.counts.errors[code] += 1
        if len(message) > _LONGEST_MESSAGE:
            message = message[: _LONGEST_MESSAGE - 1] + "…"
        self._say(route, Error(about, code, message))

    def _say(self, route: bytes, message: Message) -> None:
        try:
            frames = join(message)
        except QtlError:
            _log.exception("a %s message could not be written", kind(message))
            return
        if self._send_frames(route, frames):
            self.counts.bytes_out += wire_size(frames, self._encrypted)
            return
        # The peer left, or reads nothing. What was computed for it is kept until it resumes or its time is
        # up.
        self.counts.unsent += 1
        session = self.sessions.at(route)
        if session is not None:
            session.attached = False
