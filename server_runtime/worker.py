"""The engine thread: one question after another, results handed back to the front.

The front submits :class:`Job` objects to a queue of bounded depth and collects :class:`Piece`, :class:`Done`
and :class:`Failed`. What waits in the other direction is bounded too: one job at a time produces at most its
``max_tokens`` pieces.
"""

from __future__ import annotations

import logging
import threading
from collections import deque
from collections.abc import Callable, Generator
from dataclasses import dataclass, field

from qtl_core.errors import QuestionError
from server_runtime.engine import Engine, Prompt

_log = logging.getLogger(__name__)


@dataclass(eq=False)
class Job:
    """One accepted question. The front owns it; the engine thread reads it and looks at ``cancelled``.

    Attributes:
        session: Key of the session that asked.
        id: The request's id, chosen by the client.
        prompt: What to answer.
        max_tokens: At most this many tokens.
        stream: Whether the client wants tokens as they come.
        digest: Identifies the request's content: a retry has the same, another request under the same id has
            not.
        accepted: When the front accepted it, in the server's clock.
        pieces: The text computed so far, without the empty ones; only the front touches it.
        tokens: How many tokens that took.
        origin: The connection that (last) asked; a retry from another one is a reconnect and not a duplicate.
        cancelled: Set once nobody waits for the answer any more.
    """

    session: bytes
    id: int
    prompt: Prompt
    max_tokens: int
    stream: bool
    digest: bytes
    accepted: float
    origin: bytes
    pieces: list[str] = field(default_factory=list)
    tokens: int = 0
    cancelled: bool = False


@dataclass(frozen=True)
class Piece:
    """The text of one generated token."""

    job: Job
    text: str


@dataclass(frozen=True)
class Done:
    """The answer is complete; ``full`` says that it ended because ``max_tokens`` was reached."""

    job: Job
    full: bool


@dataclass(frozen=True)
class Failed:
    """The question was not answered; ``code`` and ``message`` are those of the protocol's Error."""

    job: Job
    code: str
    message: str


Outcome = Piece | Done | Failed


class Worker:
    """Runs an engine on a thread of its own.

    Args:
        engine: The engine; the worker closes it when its thread ends.
        ring: Called after each outcome, from the engine thread: wakes the front.
        depth: How many jobs may wait beside the one being computed.
        longest_question: The longest question that the model takes, in tokens.
    """

    def __init__(
        self, engine: Engine, ring: Callable[[], None], *, depth: int, longest_question: int
    ) -> None:
        self._engine = engine
        self._ring = ring
        self._depth = depth
        self._longest_question = longest_question
        self._waiting: deque[Job] = deque()
        self._outcomes: deque[Outcome] = deque()
        self._change = threading.Condition()
        self._running: Job | None = None
        self._stopping = False
        self._ended = False
        # A daemon: an engine that hangs must not keep a server alive that was told to end.
        self._thread = threading.Thread(target=self._run, name="qtl-engine", daemon=True)
        self._thread.start()

    def submit(self, job: Job) -> bool:
        """Queue a job; False where the queue is full or the worker is stopping."""
        with self._change:
            if self._stopping or len(self._waiting) >= self._depth:
                return False
            self._waiting.append(job)
            self._change.notify()
            return True

    def load(self) -> int:
        """How many jobs wait or run."""
        with self._change:
            return len(self._waiting) + (self._running is not None)

    def outcomes(self) -> list[Outcome]:
        """Everything that happened since the last call, in order."""
        taken: list[Outcome] = []
        while self._outcomes:
            taken.append(self._outcomes.popleft())
        return taken

    def discard(self, job: Job) -> None:
        """Forget a job: not started if it still waits, stopped after its current token if it runs."""
        job.cancelled = True
        with self._change:
            if job in self._waiting:
                self._waiting.remove(job)

    def finish(self) -> list[Job]:
        """Take no more jobs and let the running one end; returns those that had not begun."""
        with self._change:
            self._stopping = True
            left = list(self._waiting)
            self._waiting.clear()
            self._change.notify()
        return left

    def join(self, timeout: float) -> bool:
        """Wait until the thread has ended; False where it still runs after ``timeout`` seconds."""
        self._thread.join(timeout)
        return not self._thread.is_alive()

    @property
    def running(self) -> Job | None:
        """The job being computed."""
        with self._change:
            return self._running

    @property
    def alive(self) -> bool:
        """Whether the engine's thread runs."""
        return not self._ended

    def _next(self) -> Job | None:
        with self._change:
            self._running = None
            while not self._waiting:
                if self._stopping:
                    return None
                # The timeout only guards against a lost wake-up; it decides nothing.
                self._change.wait(timeout=1.0)
            self._running = self._waiting.popleft()
            return self._running

    def _put(self, outcome: Outcome) -> None:
        self._outcomes.append(outcome)
        self._ring()

    def _run(self) -> None:
        try:
            while (job := self._next()) is not None:
                self._answer(job)
        except BaseException:  # The front sees that the thread ended, and ends the server.
            _log.critical("the engine's thread failed", exc_info=True)
        finally:
            self._engine.close()
            self._ended = True
            self._ring()

    def _answer(self, job: Job) -> None:
        try:
            if job.prompt.text_codes is None:
                # Tokenizers are not thread-safe, so the question is measured here and not in the front.
                tokens = self._engine.question_tokens(job.prompt.question)
                if tokens > self._longest_question:
                    text = f"the question has {tokens} tokens, this model takes {self._longest_question}"
                    self._put(Failed(job, "question", f"{text}: shorten it"))
                    return
            count = 0
            pieces = self._engine.generate(job.prompt, job.max_tokens)
            try:
                for text in pieces:
                    if job.cancelled:
                        self._put(Failed(job, "cancelled", "nobody waits for this answer any more"))
                        return
                    count += 1
                    self._put(Piece(job, text))
            finally:
                if isinstance(pieces, Generator):
                    pieces.close()
            self._put(Done(job, full=count >= job.max_tokens))
        except QuestionError as error:
            self._put(Failed(job, "question", str(error)))
        except Exception as error:  # One failed question must not end the thread that answers all others.
            _log.exception("the engine failed on a question of %d bytes", len(job.prompt.question.encode()))
            self._put(Failed(job, "internal", f"the model failed on this question ({type(error).__name__})"))
