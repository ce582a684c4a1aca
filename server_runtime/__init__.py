"""The GPU host: takes codes and a question from many devices, runs the server partition, sends text back.

:class:`Server` and :class:`ServerConfig` are all a program needs besides an engine; PyTorch is imported only
by ``server_runtime.torch_engine``, when an engine is built.
"""

from __future__ import annotations

from server_runtime.config import ServerConfig
from server_runtime.engine import Engine, FakeEngine, Prompt
from server_runtime.server import Server

__all__ = ["Engine", "FakeEngine", "Prompt", "Server", "ServerConfig"]
