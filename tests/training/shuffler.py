"""ZeroMQ messages between a training client and its server, some twice, some in another order.

What a network does to bytes is ``benchmarks.link.Link``'s.
"""

from __future__ import annotations

import contextlib
import heapq
import random
import threading
import time
from types import TracebackType

import zmq


class Shuffler:
    """Passes ZeroMQ messages on late, each by another time, so that they overtake each other, and some twice.

    A client that connects gets a connection of its own to the server.

    Args:
        target: the server, tcp://127.0.0.1:PORT.
        seed: of the draws.
        late: seconds that a message is late at most.
        again: share of messages that come a second time.
        much_later: seconds after which the second comes at most.

    Attributes:
        passed, repeated, overtaken: messages so far.
    """

    def __init__(
        self, target: str, *, seed: int, late: float = 0.05, again: float = 0.3, much_later: float = 1.0
    ) -> None:
        self._target, self._draw = target, random.Random(seed)
        self._late, self._again, self._much_later = late, again, much_later
        self.passed = self.repeated = self.overtaken = 0
        self._context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        self._near = self._context.socket(zmq.ROUTER)
        self._near.setsockopt(zmq.ROUTER_MANDATORY, 1)
        self._near.setsockopt(zmq.LINGER, 0)
        self._near.bind("tcp://127.0.0.1:*")
        self.endpoint = self._near.getsockopt_string(zmq.LAST_ENDPOINT).rstrip("\0")
        self._far: dict[bytes, zmq.Socket[bytes]] = {}
        # When, number, route, whether up, frames.
        self._due: list[tuple[float, int, bytes, bool, list[bytes]]] = []
        self._number = self._newest = 0
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def close(self) -> None:
        """Ends everything."""
        self._stop.set()
        self._thread.join(20)

    def __enter__(self) -> Shuffler:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _run(self) -> None:
        try:
            while not self._stop.is_set():
                poller = zmq.Poller()
                for socket in (self._near, *self._far.values()):
                    poller.register(socket, zmq.POLLIN)
                soonest = self._due[0][0] - time.monotonic() if self._due else 0.2
                poller.poll(max(0, min(200, round(1000 * soonest) + 1)))
                self._take_in()
                while self._due and self._due[0][0] <= time.monotonic():
                    self._pass(*heapq.heappop(self._due)[1:])
        finally:
            for socket in (self._near, *self._far.values()):
                socket.close(linger=0)
            self._context.term()

    def _take_in(self) -> None:
        with contextlib.suppress(zmq.Again):
            while True:
                route, *frames = self._near.recv_multipart(zmq.NOBLOCK)
                if route not in self._far:
                    self._far[route] = self._context.socket(zmq.DEALER)
                    self._far[route].setsockopt(zmq.LINGER, 0)
                    self._far[route].connect(self._target)
                self._schedule(route, True, frames)
        for route, far in self._far.items():
            with contextlib.suppress(zmq.Again):
                while True:
                    self._schedule(route, False, far.recv_multipart(zmq.NOBLOCK))

    def _schedule(self, route: bytes, up: bool, frames: list[bytes]) -> None:
        now = time.monotonic()
        self._number += 1
        heapq.heappush(self._due, (now + self._draw.uniform(0, self._late), self._number, route, up, frames))
        if self._draw.random() < self._again:
            self.repeated += 1
            later = now + self._draw.uniform(0, self._much_later)
            heapq.heappush(self._due, (later, self._number, route, up, frames))

    def _pass(self, number: int, route: bytes, up: bool, frames: list[bytes]) -> None:
        self.passed += 1
        self.overtaken += number < self._newest
        self._newest = max(self._newest, number)
        if up:
            self._far[route].send_multipart(frames)
            return
        with contextlib.suppress(zmq.ZMQError):  # the client has gone
            self._near.send_multipart([route, *frames])
