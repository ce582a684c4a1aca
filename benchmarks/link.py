"""A network as slow, late or broken as one wants it, between two processes of one machine."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Coroutine
from types import TracebackType
from typing import Any, Final, TypeVar

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
