"""Servers on real sockets, with the fake engine, and clients for them."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
import zmq

from qtl_core.bundle import Cut, Manifest, Picture, Template, Text
from qtl_core.codes import bits_of, packed_size
from qtl_core.entropy import Tables
from server_runtime import FakeEngine, Server, ServerConfig
from tests.server.peer import PATIENCE_S, Peer, Running

TOKENS, CODE_DIM = 6, 5


def make_manifest(levels: int = 5, *, text_levels: int = 0) -> Manifest:
    """A manifest of a tiny cut: 5 levels, so that not every byte is a code, or others; 0: float16."""
    n_codes = TOKENS * CODE_DIM
    cut = Cut(
        tokens=TOKENS,
        width=CODE_DIM,
        code_dim=CODE_DIM,
        merge=1,
        levels=levels,
        bits=bits_of(levels) if levels else 16,
        scaling="image" if levels else "none",
        codec="packed" if levels else "float16",
        payload_bytes=packed_size(n_codes, levels) if levels else 2 * n_codes,
    )
    text = Text(
        mode="codes" if text_levels else "plain",
        levels=text_levels,
        code_dim=4 if text_levels else 0,
        width=8,
        max_tokens=7,
        scaling="image" if text_levels else "none",
    )
    return Manifest(
        half="server",
        fingerprint="0123456789abcdef" * 2,
        model="test-model",
        cut=cut,
        picture=Picture(height=8, width=8, resample="bicubic", fit="square", pad_colour=(0, 0, 0)),
        text=text,
        template=Template(before_image="", between=" ", after_question=" "),
        files={},
    )


@pytest.fixture
def manifest() -> Manifest:
    return make_manifest()


Serve = Callable[..., Running]
Connect = Callable[..., Peer]


@pytest.fixture
def serve() -> Iterator[Serve]:
    """Starts servers, and stops those that a test leaves running; a server that failed fails the test."""
    with ExitStack() as opened:

        def start(
            engine: FakeEngine | Manifest | None = None,
            *,
            clock: Callable[[], float] | None = None,
            tables: Tables | None = None,
            **settings: Any,
        ) -> Running:
            if not isinstance(engine, FakeEngine):
                engine = FakeEngine(engine or make_manifest())
            settings.setdefault("bind", "tcp://127.0.0.1:*")
            config = ServerConfig(**settings)
            server = Server(config, engine, clock=clock or time.monotonic, tables=tables)
            failures: list[BaseException] = []

            def run() -> None:
                try:
                    server.serve()
                except BaseException as error:
                    failures.append(error)

            thread = threading.Thread(target=run, daemon=True)
            running = Running(server, engine, thread, failures)
            opened.callback(running.stop)
            thread.start()
            return running

        yield start


@pytest.fixture
def connect(serve: Serve) -> Iterator[Connect]:
    """Connects clients; depends on ``serve`` so that they are closed before the servers stop."""
    with ExitStack() as opened:
        context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        opened.callback(context.term)

        def open_peer(running: Running, *, device: Path | None = None, name: str = "") -> Peer:
            peer = Peer(context, running.endpoint, running.engine.manifest, device, name)
            opened.callback(lambda: peer.close())
            return peer

        yield open_peer


@pytest.fixture
def patience() -> float:
    return PATIENCE_S
