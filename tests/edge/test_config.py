"""Settings are checked when they are given, and each refusal says what to give instead."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from edge_runtime.config import EdgeConfig
from qtl_core.errors import InputError


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"timeout": 0.0}, "timeout is 0.0"),
        ({"timeout": float("inf")}, "timeout is inf"),
        ({"patience": -1.0}, "patience"),
        ({"comeback": float("nan")}, "comeback"),
        ({"threads": -1}, "threads is -1"),
        ({"server": "127.0.0.1:5555"}, "is no address"),
        ({"server": "tcp://127.0.0.1:0"}, "can be listened on"),
        ({"server": "tcp://127.0.0.1:*"}, "can be listened on"),
        ({"server": "tcp://*:5555"}, "can be listened on"),
        ({"key": Path("me.key_secret")}, "--key was given without --server-key"),
        ({"server_key": Path("server.key")}, "--server-key was given without --key"),
        ({"server": "tcp://10.0.0.2:5555"}, "not on this machine.*--insecure"),
        ({"server": "tcp://example.org:5555"}, "not on this machine"),
    ],
)
def test_refused(settings: dict[str, Any], says: str) -> None:
    with pytest.raises(InputError, match=says):
        EdgeConfig(**settings)


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"server": "tcp://localhost:1"},
        {"server": "tcp://[::1]:5555"},
        {"server": "ipc:///tmp/qtl"},
        {"server": "tcp://10.0.0.2:5555", "insecure": True},
        {"server": "tcp://10.0.0.2:5555", "key": Path("a"), "server_key": Path("b")},
    ],
)
def test_accepted(settings: dict[str, Any]) -> None:
    EdgeConfig(**settings)
