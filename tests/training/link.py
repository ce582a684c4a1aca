"""A network between a training client and its server that behaves as badly as a test wants.

:class:`Link` carries TCP bytes: late, slowly, or not at all for a while. :class:`Shuffler` carries ZeroMQ
messages: some twice, some in another order.
"""

from __future__ import annotations

import asyncio
import contextlib
import heapq
import random
import threading
import time
from collections.abc import Coroutine
from types import TracebackType
from typing import Any, Final, TypeVar

import zmq

_T = TypeVar("_T")

_CHUNK: Final = 4096
_QUEUED: Final = 512


class Link:
    """A TCP relay with a delay, a rate, and cuts.

    While it is cut nothing passes, not even that an end has gone, and nothing new connects: what a dead
    network looks like from its ends. What was under way arrives afterwards, as TCP would send it again.

    Args:
        target: the server, tcp://127.0.0.1:PORT.
        delay: seconds that every byte is late.
        rate: bits a second in each direction; 0 for no limit.

    Attributes:
        up, down: bytes that have passed.
    """

    def __init__(self, target: str, *, delay: float = 0.0, rate: float = 0.0) -> None:
        self._port = int(target.rpartition(":")[2])
        self._delay, self._rate = delay, rate
        self.up = self.down = 0
        self._loop = asyncio.new_event_loop()
        self._open = asyncio.Event()
        self._open.set()
        self._tasks: set[asyncio.Task[None]] = set()
        self._thread = threading.Thread(target=self._loop.run_forever)
        self._thread.start()
        self._server = self._do(self._listen())
        self.endpoint = f"tcp://127.0.0.1:{self._server.sockets[0].getsockname()[1]}"

    def cut(self) -> None:
        """Stops everything until :meth:`mend`."""
        self._loop.call_soon_threadsafe(self._open.clear)

    def mend(self) -> None:
        """Lets everything through again."""
        self._loop.call_soon_threadsafe(self._open.set)

    def cut_for(self, seconds: float) -> None:
        """Cuts, waits and mends."""
        self.cut()
        time.sleep(seconds)
        self.mend()

    def reset(self) -> None:
        """Ends every connection at once, as a router that is started anew does."""
        self._do(self._end())

    def close(self) -> None:
        """Ends everything."""
        self._server.close()
        self._do(self._end())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(20)
        self._loop.close()

    def __enter__(self) -> Link:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _do(self, what: Coroutine[Any, Any, _T]) -> _T:
        return asyncio.run_coroutine_threadsafe(what, self._loop).result(20)

    async def _listen(self) -> asyncio.Server:
        return await asyncio.start_server(self._connected, "127.0.0.1", 0)

    async def _end(self) -> None:
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = self._loop.create_task(self._relay(reader, writer))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _relay(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        far: asyncio.StreamWriter | None = None
        try:
            await self._open.wait()
            back, far = await asyncio.open_connection("127.0.0.1", self._port)
            ways = [
                asyncio.ensure_future(self._way(reader, far, "up")),
                asyncio.ensure_future(self._way(back, writer, "down")),
            ]
            try:
                # One end gone is the connection gone.
                await asyncio.wait(ways, return_when=asyncio.FIRST_COMPLETED)
            finally:
                for way in ways:
                    way.cancel()
                await asyncio.gather(*ways, return_exceptions=True)
        except OSError:  # nobody listens there (any more)
            pass
        finally:
            for end in (writer, far):
                if end is not None:
                    end.transport.abort()

    async def _way(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, direction: str) -> None:
        """Carries one direction until its sender has gone."""
        under_way: asyncio.Queue[tuple[float, bytes]] = asyncio.Queue(_QUEUED)
        delivery = asyncio.ensure_future(self._deliver(under_way, writer, direction))
        free = 0.0
        try:
            data = b"first"
            while data:
                try:
                    data = await reader.read(_CHUNK)
                except OSError:
                    data = b""
                now = self._loop.time()
                free = max(free, now) + (8 * len(data) / self._rate if self._rate else 0.0)
                await under_way.put((free + self._delay, data))
            await delivery
        finally:
            delivery.cancel()

    async def _deliver(
        self, under_way: asyncio.Queue[tuple[float, bytes]], writer: asyncio.StreamWriter, direction: str
    ) -> None:
        while True:
            due, data = await under_way.get()
            await asyncio.sleep(max(0.0, due - self._loop.time()))
            await self._open.wait()
            if not data:
                return
            try:
                writer.write(data)
                await writer.drain()
            except OSError:
                return
            setattr(self, direction, getattr(self, direction) + len(data))


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
