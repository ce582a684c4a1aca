"""What the edge's tests share."""

from __future__ import annotations

import socket
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from edge_runtime import EdgeClient
from tests.edge import tiny
from tests.edge.peer import ScriptedServer


@pytest.fixture(autouse=True)
def state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where choices of ``edge_runtime bench`` are kept in a test: never the developer's own."""
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    return tmp_path / "state" / "qtl"


@pytest.fixture
def half(tmp_path: Path) -> Path:
    """A client half."""
    tiny.write_client(tmp_path / "bundle" / "client")
    return tmp_path / "bundle" / "client"


@pytest.fixture
def image(tmp_path: Path) -> Path:
    """A picture file."""
    path = tmp_path / "scene.png"
    path.write_bytes(tiny.file_bytes(tiny.scene(height=48, width=64)))
    return path


@pytest.fixture
def serve() -> Iterator[Callable[..., ScriptedServer]]:
    """Starts scripted servers that end with the test."""
    with ExitStack() as stack:
        yield lambda *args, **kwargs: stack.enter_context(ScriptedServer(*args, **kwargs))


@pytest.fixture
def connect(half: Path) -> Iterator[Callable[..., EdgeClient]]:
    """Makes clients of a server (or an address) that end with the test."""
    with ExitStack() as stack:

        def make(server: ScriptedServer | str, **settings: Any) -> EdgeClient:
            address = server if isinstance(server, str) else server.endpoint
            settings.setdefault("bundle", half)
            return stack.enter_context(EdgeClient(server=address, threads=1, **settings))

        yield make


@pytest.fixture
def nobody() -> str:
    """An address where nothing listens."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return f"tcp://127.0.0.1:{probe.getsockname()[1]}"
