"""A real ROUTER that follows a script: the server of the edge's tests."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field

import msgspec
import zmq

from qtl_core import messages as m
from qtl_core import sockets, wire
from qtl_core.keys import KeyPair

LIMITS = m.Limits(max_payload=4096, max_question=200, max_tokens=32, idle_ms=60_000)


@dataclass
class Request:
    """One ASK as it arrived, and the ways to answer it."""

    ask: m.Ask
    payloads: dict[str, bytes]
    frames: list[bytes]
    number: int
    server: ScriptedServer = field(repr=False)
    peer: bytes = field(repr=False)

    def send(self, message: m.Message) -> None:
        self.server.send(self.peer, message)

    def tokens(self, *pieces: str, first: int = 0) -> None:
        for index, piece in enumerate(pieces, first):
            self.send(m.Token(id=self.ask.id, index=index, text=piece))

    def answer(self, text: str) -> None:
        self.send(m.Answer(id=self.ask.id, text=text, tokens=len(text.split()), server_us=1500))

    def error(self, code: str, message: str = "because") -> None:
        self.send(m.Error(id=self.ask.id, code=code, message=message))


Script = Callable[[Request], None]


def four(request: Request) -> None:
    """The script of a server that answers as it should."""
    pieces = ("four", " red")
    if request.ask.stream:
        request.tokens(*pieces)
    request.answer("".join(pieces))


class Die(Exception):
    """Raised by a script: the server is gone at once, without a word."""


class ScriptedServer:
    """Answers HELLO, PING and BYE as a server does, and every ASK as the script says.

    Args:
        script: called for each ASK, on the server's thread.
        welcome: what HELLO gets instead of WELCOME; None for silence, bytes as frame 0.
        port: 0 takes a free one.
        keys: its CURVE pair; None for plaintext.
        pongs: whether it answers PING.
        answer_on_ping: whether the script runs at the first PING after an ASK, and not at the ASK.
        lets_in: whether its authenticator lets encrypted clients in.
    """

    def __init__(
        self,
        script: Script = four,
        *,
        welcome: Callable[[m.Hello], m.Message | bytes | None] | None = None,
        limits: m.Limits = LIMITS,
        port: int = 0,
        keys: KeyPair | None = None,
        pongs: bool = True,
        answer_on_ping: bool = False,
        lets_in: bool = True,
    ) -> None:
        self.script = script
        self.requests: list[Request] = []
        self.hellos: list[m.Hello] = []
        self.received: list[m.Message] = []
        self.bytes_up = self.bytes_down = 0
        self.failure: BaseException | None = None
        self._welcome = welcome
        self._limits = limits
        self._pongs = pongs
        self._answer_on_ping = answer_on_ping
        self._encrypted = keys is not None
        self._lets_in = lets_in
        self._stop = threading.Event()
        self._sessions: dict[bytes, bytes] = {}
        self._context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        self._socket = sockets.router(self._context, max_payload=4096, keys=keys)
        self._zap = self._context.socket(zmq.REP)
        self._zap.bind("inproc://zeromq.zap.01")
        self._socket.bind(f"tcp://127.0.0.1:{port or '*'}")
        self.port = int(self._socket.getsockopt_string(zmq.LAST_ENDPOINT).rpartition(":")[2])
        self.endpoint = f"tcp://127.0.0.1:{self.port}"
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def __enter__(self) -> ScriptedServer:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def stop(self) -> None:
        """Ends the server and fails the test if its script did."""
        self._stop.set()
        self._thread.join(10)
        assert not self._thread.is_alive()
        if self.failure is not None:
            raise self.failure

    def dead(self) -> None:
        """Waits until the script has ended the server."""
        self._thread.join(10)
        assert not self._thread.is_alive()

    def send(self, peer: bytes, message: m.Message | bytes) -> None:
        frames = [message] if isinstance(message, bytes) else wire.join(message)
        if not isinstance(message, m.Welcome):
            self.bytes_down += wire.wire_size(frames, self._encrypted)
        with suppress(zmq.ZMQError):  # a client that has left by now
            self._socket.send_multipart([peer, *frames])

    def _run(self) -> None:
        try:
            while not self._stop.is_set():
                if self._encrypted and self._zap.poll(0):
                    self._authenticate()
                if self._socket.poll(20):
                    peer, *frames = self._socket.recv_multipart()
                    self._handle(peer, frames)
        except Die:
            pass
        except BaseException as error:
            self.failure = error
        finally:
            self._socket.close(linger=0)
            self._zap.close(linger=0)
            self._context.term()

    def _handle(self, peer: bytes, frames: list[bytes]) -> None:
        message, payloads = wire.split(frames, self._limits)
        self.received.append(message)
        if isinstance(message, m.Hello):
            self._greet(peer, message)
            return
        if isinstance(message, m.Bye):
            return  # about no question
        self.bytes_up += wire.wire_size(frames, self._encrypted)
        if isinstance(message, m.Ping) and self._pongs:
            self.send(peer, m.Pong(id=message.id))
            if self._answer_on_ping:
                self.script(self.requests[-1])
        elif isinstance(message, m.Ask):
            request = Request(message, payloads, frames, len(self.requests), self, peer)
            self.requests.append(request)
            if not self._answer_on_ping:
                self.script(request)

    def _authenticate(self) -> None:
        version, request, *_ = self._zap.recv_multipart()
        verdict = [b"200", b"OK", b"somebody"] if self._lets_in else [b"400", b"no", b""]
        self._zap.send_multipart([version, request, *verdict, b""])

    def _greet(self, peer: bytes, hello: m.Hello) -> None:
        self.hellos.append(hello)
        if self._welcome is not None:
            reply = self._welcome(hello)
            if reply is not None:
                self.send(peer, reply)
            return
        welcome = m.Welcome(
            protocol=m.PROTOCOL, session=os.urandom(8), limits=self._limits, credits=2, agent="scripted"
        )
        if hello.resume:
            welcome = msgspec.structs.replace(welcome, session=hello.resume, resumed=True)
        self.send(peer, welcome)
