"""The front: one thread that owns the sockets and passes messages between clients and the engine's thread."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from types import TracebackType

from qtl_core.entropy import Tables
from qtl_core.errors import HostError
from server_runtime.admission import limits_of
from server_runtime.config import ServerConfig
from server_runtime.conversation import Conversation
from server_runtime.counts import Counts
from server_runtime.engine import Engine
from server_runtime.listener import Listener
from server_runtime.worker import Worker

_log = logging.getLogger(__name__)

_TICK_S = 0.5
_BATCH = 64
_JOIN_S = 2.0
_FAREWELL_S = 2.0
_LINGER_S = 1.0


class Server:
    """Serves one bundle half until it is told to stop.

    Build it, call :meth:`serve` (it returns after :meth:`stop`), close it; or use it as a context manager. It
    owns the engine and the listener from the moment it is called, also when building it fails.

    Args:
        config: Settings.
        engine: Computes answers.
        listener: Bound already, so that a taken port shows before a model is loaded; by default one is
            opened.
        tables: Of the entropy coder, where the engine's half has them; without, it takes packed codes only.
        clock: Seconds that only grow.
    """

    def __init__(
        self,
        config: ServerConfig,
        engine: Engine,
        *,
        listener: Listener | None = None,
        tables: Tables | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._config = config
        self._clock = clock
        self._stops = 0
        self._closed = False
        manifest = engine.manifest
        limits = limits_of(manifest, config, engine.longest_answer)
        try:
            self._listener = listener or Listener(config, max_payload=limits.max_payload)
        except BaseException:
            engine.close()
            raise
        self._worker = Worker(
            engine,
            self._listener.waker.ring,
            depth=config.max_waiting,
            longest_question=manifest.text.max_tokens,
        )
        self._conversation = Conversation(
            config,
            manifest,
            limits,
            self._listener.send,
            self._worker,
            gate=self._listener.gate,
            clock=clock,
            tables=tables,
            encrypted=self._listener.encrypted,
        )
        self._swept = self._logged = clock()

    @property
    def endpoint(self) -> str:
        """Where it listens, with the actual port."""
        return self._listener.endpoint

    @property
    def counts(self) -> Counts:
        """What happened so far."""
        return self._conversation.counts

    @property
    def sessions(self) -> int:
        """How many sessions there are."""
        return len(self._conversation.sessions)

    def stop(self) -> None:
        """Ask the server to end; from any thread, or a signal handler.

        The answer being computed is finished, within the grace; a second call does not wait for it.
        """
        self._stops += 1
        # The address stays bound, because unbinding makes libzmq drop the connections that exist: HELLO and
        # ASK are refused instead.
        self._conversation.closing = True
        self._listener.waker.ring()

    def serve(self) -> None:
        """Serve until :meth:`stop`, then say goodbye and close.

        Raises:
            HostError: The engine's thread ended by itself.
        """
        try:
            while not self._stops:
                if not self._worker.alive:
                    raise HostError("the engine ended unexpectedly: see the log, and start the server again")
                self._turn(_TICK_S)
            self._wind_down()
        finally:
            self.close(linger_s=_LINGER_S)

    def close(self, linger_s: float = 0.0) -> None:
        """End the engine's thread and close the sockets, without a word to anybody. May be repeated."""
        if self._closed:
            return
        self._closed = True
        for job in self._worker.finish():
            job.cancelled = True
        running = self._worker.running
        if running is not None:
            running.cancelled = True
        if not self._worker.join(_JOIN_S):
            _log.warning("the engine did not end within %.0f s; leaving it behind", _JOIN_S)
        self._listener.close(linger_s=linger_s)

    def __enter__(self) -> Server:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _turn(self, wait_s: float) -> None:
        self._listener.wait(wait_s)
        # A batch, and not all: answers must come out also while somebody floods the port.
        for _ in range(_BATCH):
            received = self._listener.receive()
            if received is None:
                break
            # After the message was taken and before it is handled: descriptors are reused, and a departure
            # that happened before this connection began must not be taken for its own.
            self._notice_departures()
            self._conversation.hear(received)
        else:
            self._listener.waker.ring()  # there is more
        self._notice_departures()
        for outcome in self._worker.outcomes():
            self._conversation.deliver(outcome)
        self._look_at_clock()

    def _notice_departures(self) -> None:
        for link in self._listener.departures():
            self._conversation.departed(link)
        self._conversation.counts.bad_handshakes = self._listener.bad_handshakes

    def _look_at_clock(self) -> None:
        now = self._clock()
        if now - self._swept >= _TICK_S:
            self._swept = now
            self._conversation.expire()
        if now - self._logged >= self._config.log_every_s:
            self._logged = now
            self._log_counts()

    def _log_counts(self) -> None:
        _log.info("%s", self.counts.line(self.sessions))

    def _wind_down(self) -> None:
        """Accept nothing new, let the running answer finish within the grace, and tell everybody."""
        _log.info("stopping: %d questions are in the engine's queue", self._worker.load())
        for job in self._worker.finish():
            self._conversation.abandon(job, "closing", "the server is shutting down: ask again later")
        deadline = self._clock() + self._config.grace_s
        while self._worker.alive and self._stops == 1 and (left := deadline - self._clock()) > 0:
            self._turn(min(left, _TICK_S))
        for outcome in self._worker.outcomes():
            self._conversation.deliver(outcome)
        self._conversation.farewell()
        # Once the connection ends, a client's libzmq throws away what its program has not read yet: give the
        # last answers a moment.
        end = self._clock() + _FAREWELL_S
        while self._stops == 1 and self._conversation.connected() and (left := end - self._clock()) > 0:
            self._turn(min(left, _TICK_S))
        self._log_counts()
