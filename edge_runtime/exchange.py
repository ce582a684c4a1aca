"""One question on its way: its stream, its retries, its deadlines.

A question is sent again under the same id, and the server answers it from what it has already computed: once
after the connection broke and came back, once when the server has forgotten the session, once when a frame
arrived damaged, and after every BUSY for as long as the timeout allows.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final

import msgspec

from qtl_core import messages as m
from qtl_core import wire
from qtl_core.errors import (
    HandshakeRefused,
    MalformedMessage,
    MessageTooLarge,
    QuestionError,
    RequestRefused,
    ServerBusy,
    ServerLost,
    ServerUnavailable,
)

from .session import Lost, Session, Traffic

PING_S: Final = 2.5
"""After so much silence the server is asked whether it is there; sooner with a short timeout."""
BUSY_FIRST_S: Final = 0.05
BUSY_MOST_S: Final = 5.0

OnToken = Callable[[str], None]


@dataclass(frozen=True, kw_only=True)
class Patience:
    """How long an exchange waits for what, in seconds.

    Attributes:
        answer: for one whole answer of a server that shows signs of life.
        comeback: for a server that was lost in the middle of an answer.
    """

    answer: float
    comeback: float


@dataclass(frozen=True, kw_only=True)
class Reply:
    """One answer and what it cost.

    Attributes:
        answer: the server's ANSWER.
        traffic: this question's messages, retries and heartbeats included, handshakes not.
        seconds: from sending the question to the whole answer.
    """

    answer: m.Answer
    traffic: Traffic
    seconds: float


class Exchange:
    """Sends one question and waits for its answer.

    Args:
        session: opened where it has to be.
        ask: the question, with an id that is new in the session.
        payloads: the frames it announces.
        patience: how long to wait.
        on_token: called with each piece of the answer's text, once, in order.
        rng: spreads the retries of many clients.
        pad: make both frames of the question multiples of so many bytes; 0 does not.
    """

    def __init__(
        self,
        session: Session,
        ask: m.Ask,
        payloads: Sequence[bytes],
        *,
        patience: Patience,
        on_token: OnToken | None = None,
        rng: random.Random | None = None,
        pad: int = 0,
    ) -> None:
        self._session = session
        self._ask = msgspec.structs.replace(ask, stream=on_token is not None)
        self._payloads = payloads
        self._patience = patience
        self._on_token = on_token
        self._rng = rng or random.Random()
        self._pad = pad
        self._ping_s = min(PING_S, session.timeout / 4)
        self._tried: set[str] = set()
        self._pieces = 0
        self._streamed = ""
        self._heard = self._ping_at = 0.0
        self._busy_s = BUSY_FIRST_S
        self._busy_from: float | None = None
        self._ask_at: float | None = None

    def run(self) -> Reply:
        """The answer.

        Raises:
            LinkError: the server is not there, or was lost and did not come back.
            RefusedError: it refused the handshake or the question, or stayed busy.
            QuestionError: the question is longer than the server or its model takes.
            ProtocolError: its answer breaks the protocol, a payload is over the session's limits, or the
                question too long to be padded.
        """
        clock = self._session.clock
        self._check_limits(self._session.open().limits)
        frames = self._frames()
        start = self._ask_at = clock()
        with self._session.billed_to(Traffic()) as traffic:
            while True:
                try:
                    if self._ask_at is not None and self._ask_at <= clock():
                        self._session.send(frames)
                        self._ask_at = None
                        self._sign_of_life()
                    message = self._session.wait(self._wake(start))
                    if message is None:
                        self._on_silence(start)
                    elif (answer := self._take(message)) is not None:
                        break
                except Lost as lost:
                    self._recover(lost)
            seconds = clock() - start
        self._finish_stream(answer.text)
        return Reply(answer=answer, traffic=traffic, seconds=seconds)

    def _frames(self) -> list[bytes]:
        if not self._pad:
            return wire.join(self._ask, self._payloads)
        return wire.join(*wire.pad(self._ask, self._payloads, self._pad, self._session.encrypted))

    def _check_limits(self, limits: m.Limits) -> None:
        size = len(self._ask.question.encode())
        if size > limits.max_question:
            raise QuestionError(
                f"the question has {size} bytes, this server takes {limits.max_question}: shorten it"
            )
        for frame in self._ask.frames:
            if frame.size > limits.max_payload:
                raise MessageTooLarge(
                    f"the payload has {frame.size} bytes, this server takes {limits.max_payload}; "
                    "it was started with another bundle or other limits"
                )

    def _sign_of_life(self) -> None:
        self._heard = self._session.clock()
        self._ping_at = self._heard + self._ping_s

    def _wake(self, start: float) -> float:
        """When to stop waiting for a message, and look what else is due."""
        next_step = self._ask_at if self._ask_at is not None else self._ping_at
        return min(next_step, self._heard + self._session.timeout, start + self._patience.answer)

    def _on_silence(self, start: float) -> None:
        now, where = self._session.clock(), self._session.endpoint
        if now >= start + self._patience.answer:
            raise ServerLost(
                f"the server at {where} is there, but gave no answer within {self._patience.answer:g} s; "
                "ask again later, or a shorter question"
            )
        if now >= self._heard + self._session.timeout:
            raise ServerLost(
                f"the server at {where} fell silent in the middle of an answer: nothing for "
                f"{self._session.timeout:g} s; check the network and the server"
            )
        if self._ask_at is None and now >= self._ping_at:
            self._session.send(wire.join(m.Ping(id=self._ask.id)))
            self._ping_at = now + self._ping_s

    def _take(self, message: m.Message) -> m.Answer | None:
        """Handles one message; the answer, if it is that."""
        where = self._session.endpoint
        self._sign_of_life()
        if isinstance(message, m.Reject):
            raise HandshakeRefused(
                message.reason, f"the server at {where} ended the session: {message.message}"
            )
        if not isinstance(message, m.Token | m.Answer | m.Error | m.Busy):
            if isinstance(message, m.Pong | m.Welcome):
                return None
            if isinstance(message, m.Bye):
                self._await_end()
                raise ServerLost(f"the server at {where} ended the session without an answer; ask again")
            raise MalformedMessage(f"the server at {where} sent {m.kind(message)}, which only clients send")
        if message.id != self._ask.id and not (isinstance(message, m.Error) and message.id == 0):
            if message.id > self._ask.id:
                raise MalformedMessage(
                    f"the server at {where} answered request {message.id}, which was never made"
                )
            return None  # a late reply to a question that was given up
        if isinstance(message, m.Answer):
            return message
        if isinstance(message, m.Token):
            self._stream(message)
        elif isinstance(message, m.Busy):
            self._on_busy(message)
        else:
            self._on_error(message)
        return None

    def _stream(self, token: m.Token) -> None:
        # After a retry the pieces come again from the start. One that is missing means that the ones after it
        # cannot be shown in order: the rest then comes with the answer.
        if token.index == self._pieces and self._on_token is not None:
            self._pieces += 1
            self._streamed += token.text
            self._on_token(token.text)

    def _finish_stream(self, text: str) -> None:
        if self._on_token is not None and text.startswith(self._streamed) and text != self._streamed:
            self._on_token(text[len(self._streamed) :])

    def _on_busy(self, busy: m.Busy) -> None:
        now = self._session.clock()
        self._busy_from = now if self._busy_from is None else self._busy_from
        spread = 1 + 0.25 * self._rng.random()
        wait = max(min(busy.retry_ms / 1000, BUSY_MOST_S), self._busy_s) * spread
        self._busy_s = min(2 * self._busy_s, BUSY_MOST_S)
        if now + wait > self._busy_from + self._session.timeout:
            raise ServerBusy(
                f"the server at {self._session.endpoint} is busy and was still busy after "
                f"{now - self._busy_from:.1f} s; try again later or with a longer --timeout",
                busy.retry_ms,
            )
        self._ask_at = now + wait

    def _on_error(self, error: m.Error) -> None:
        if error.code == "question":
            raise QuestionError(error.message)
        if error.code == "no_session" and self._first("no_session"):
            self._session.forget()
            self._session.open()
            self._ask_at = self._session.clock()
        elif error.code == "checksum" and self._first("checksum"):
            self._ask_at = self._session.clock()
        else:
            if error.code == "closing":
                self._await_end()
            raise RequestRefused(
                error.code,
                f"the server at {self._session.endpoint} refused the question ({error.code}): "
                f"{error.message}",
            )

    def _await_end(self) -> None:
        """Gives a server that is closing the time to do so: the one that follows may answer.

        Raises:
            Lost: it is gone.
        """
        deadline = self._session.clock() + self._patience.comeback
        while self._session.wait(deadline) is not None:
            pass

    def _recover(self, lost: Lost) -> None:
        where = self._session.endpoint
        if not self._first("reconnect"):
            raise ServerLost(f"the server at {where} was lost twice during one answer; check it") from lost
        try:
            self._session.open(self._patience.comeback)
        except ServerUnavailable as error:
            raise ServerLost(
                f"the server at {where} was lost in the middle of an answer and did not come back within "
                f"{self._patience.comeback:g} s; check the server, then ask again"
            ) from error
        self._ask_at = self._session.clock()

    def _first(self, what: str) -> bool:
        first = what not in self._tried
        self._tried.add(what)
        return first
