"""A client as a test wants it: says exactly the bytes it is told to, right or wrong."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import msgspec
import numpy as np
import zmq

from qtl_core.bundle import Manifest
from qtl_core.codes import pack
from qtl_core.keys import load_public, load_secret
from qtl_core.messages import CODECS, PROTOCOL, Answer, Ask, Bye, Error, Frame, Hello, Message, Token, Welcome
from qtl_core.sockets import dealer
from qtl_core.wire import frame_codes, join, split
from server_runtime import FakeEngine, Server

PATIENCE_S = 20.0
"""How long a test waits for something that must happen; never how long it does happen to take."""


@dataclass
class Peer:
    """A raw client of a server under test."""

    context: zmq.Context[zmq.Socket[bytes]]
    endpoint: str
    manifest: Manifest
    device: Path | None = None
    name: str = ""
    capabilities: tuple[str, ...] = ()
    tables: bytes = b""
    socket: zmq.Socket[bytes] = field(init=False)
    session: bytes = b""

    def __post_init__(self) -> None:
        self.connect()

    def connect(self) -> None:
        keys = server_key = None
        if self.device is not None:
            keys = load_secret(self.device / f"{self.name}.key_secret")
            server_key = load_public(self.device / "server.key")
        self.socket = dealer(self.context, keys=keys, server_key=server_key)
        self.socket.setsockopt(zmq.SNDTIMEO, round(PATIENCE_S * 1000))
        self.socket.setsockopt(zmq.LINGER, round(PATIENCE_S * 1000))
        self.socket.connect(self.endpoint)

    def reconnect(self) -> None:
        """A new connection, as after a network cut: nothing is said to the server."""
        self.socket.close(linger=0)
        self.connect()

    def send(self, message: Message, payloads: Sequence[bytes] = ()) -> None:
        self.socket.send_multipart(join(message, payloads))

    def send_frames(self, *frames: bytes) -> None:
        self.socket.send_multipart(list(frames))

    def receive(self, seconds: float = PATIENCE_S) -> Message:
        """The next message; fails the test where none comes."""
        assert self.socket.poll(round(seconds * 1000)), "no message came"
        message, payloads = split(self.socket.recv_multipart())
        assert not payloads
        return message

    def hears_nothing(self, seconds: float = 0.2) -> bool:
        return not self.socket.poll(round(seconds * 1000))

    def hello_message(self) -> Hello:
        return Hello(
            protocol=PROTOCOL,
            fingerprint=self.manifest.fingerprint_bytes,
            codecs=(CODECS[self.manifest.cut.codec],),
            text=self.manifest.text.mode,
            agent="test",
            capabilities=self.capabilities,
            tables=self.tables,
        )

    def hello(self, resume: bytes = b"") -> Welcome:
        self.send(msgspec.structs.replace(self.hello_message(), resume=resume))
        welcome = self.receive()
        assert isinstance(welcome, Welcome), welcome
        self.session = welcome.session
        return welcome

    def payload(self, seed: int = 0) -> bytes:
        """A picture's payload."""
        cut = self.manifest.cut
        draw = np.random.default_rng(seed)
        if cut.quantized:
            return pack(draw.integers(0, cut.levels, (cut.tokens, cut.code_dim)), cut.levels)
        return draw.standard_normal((cut.tokens, cut.code_dim)).astype("<f2").tobytes()

    def ask(
        self, id: int = 1, question: str = "how many?", *, stream: bool = False, max_tokens: int = 0
    ) -> None:
        data = self.payload()
        frame = self.frame(data)
        self.send(Ask(id, (frame,), question, max_tokens, stream), [data])

    def frame(self, data: bytes) -> Frame:
        return frame_codes("v", data, codec=CODECS[self.manifest.cut.codec])

    def error(self) -> Error:
        """The next message, which must be an error."""
        message = self.receive()
        assert isinstance(message, Error), message
        return message

    def answer(self) -> Answer:
        """The next message, which must be an answer."""
        message = self.receive()
        assert isinstance(message, Answer), message
        return message

    def streamed(self) -> tuple[list[Token], Answer]:
        """Tokens up to the answer, and the answer."""
        tokens = []
        while isinstance(message := self.receive(), Token):
            tokens.append(message)
        assert isinstance(message, Answer), message
        return tokens, message

    def bye(self) -> None:
        self.send(Bye())

    def close(self) -> None:
        self.socket.close(linger=0)


@dataclass
class Running:
    """A server on a thread of this process."""

    server: Server
    engine: FakeEngine
    thread: threading.Thread
    failures: list[BaseException]

    @property
    def endpoint(self) -> str:
        return self.server.endpoint

    def stop(self) -> None:
        self.server.stop()
        self.thread.join(PATIENCE_S)
        assert not self.thread.is_alive(), "the server did not stop"
        assert not self.failures, self.failures


class Clock:
    """A clock that only a test moves."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


class Hold:
    """Holds a fake engine before each piece until it is let go."""

    def __init__(self) -> None:
        self._permits = threading.Semaphore(0)
        self.reached = threading.Semaphore(0)

    def __call__(self, index: int) -> None:
        self.reached.release()
        assert self._permits.acquire(timeout=PATIENCE_S), "the test never let the engine go"

    def let(self, pieces: int) -> None:
        for _ in range(pieces):
            self._permits.release()

    def wait_reached(self) -> None:
        assert self.reached.acquire(timeout=PATIENCE_S), "the engine never began"


def eventually(condition: Callable[[], bool]) -> bool:
    """Whether ``condition`` comes true within the patience; for effects that nobody announces."""
    end = time.monotonic() + PATIENCE_S
    while not condition():
        if time.monotonic() > end:
            return False
        time.sleep(0.005)
    return True
