"""What a server is told when it starts: one frozen value, checked when it is built."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Final

from qtl_core.errors import BindError, HostError
from qtl_core.shipped import SERVER
from qtl_core.sockets import is_loopback
from qtl_core.wire import HEADER_CAP

LONGEST_QUESTION: Final = HEADER_CAP - 1024
"""A question travels in the header; this leaves room for the header's other fields."""
DEVICES: Final = ("auto", "cpu", "cuda")
DTYPES: Final = ("float32", "bfloat16", "float16")


@dataclass(frozen=True, kw_only=True)
class ServerConfig:
    """Settings of one server process.

    Attributes:
        bind: The endpoint to listen on; port ``*`` or ``0`` takes a free one.
        keys: Folder made by ``qtl-server keygen``; with it every connection is encrypted and every client
            known.
        insecure: Allow plaintext on an address that other machines can reach.
        device: "cpu", "cuda", or "auto" for CUDA where there is one.
        dtype: Precision of the server partition's weights and activations.
        credits: How many questions one client may have in flight.
        max_sessions: How many clients are served at once.
        max_waiting: How many accepted questions may wait for the engine, over all clients.
        max_question: Longest question in UTF-8 bytes.
        max_tokens: Longest answer in tokens; also what a request that names no number gets.
        idle_s: A session silent for so long is forgotten.
        kept_answers: How many finished answers each session keeps for retries.
        grace_s: How long the answer being computed may go on once the server was told to stop.
        log_every_s: How often the counters are logged at level INFO.

    Raises:
        BindError: Plaintext on a public address without ``insecure``.
        HostError: A number is out of range, or a name unknown.
    """

    bind: str = SERVER
    keys: Path | None = None
    insecure: bool = False
    device: str = "auto"
    dtype: str = "float32"
    credits: int = 4
    max_sessions: int = 256
    max_waiting: int = 64
    max_question: int = 4096
    max_tokens: int = 64
    idle_s: float = 600.0
    kept_answers: int = 32
    grace_s: float = 10.0
    log_every_s: float = 30.0

    def __post_init__(self) -> None:
        for name in ("credits", "max_sessions", "max_waiting", "max_question", "max_tokens", "kept_answers"):
            if getattr(self, name) < 1:
                raise HostError(f"{name} is {getattr(self, name)}: give at least 1")
        if self.max_question > LONGEST_QUESTION:
            raise HostError(f"max_question is {self.max_question}: give at most {LONGEST_QUESTION} bytes")
        for name in ("idle_s", "log_every_s"):
            if not getattr(self, name) > 0:
                raise HostError(f"{name} is {getattr(self, name)}: give a number of seconds above 0")
        if self.grace_s < 0:
            raise HostError(f"grace_s is {self.grace_s}: give 0 or more seconds")
        if self.device not in DEVICES:
            raise HostError(f"device is {self.device!r}: give one of {', '.join(DEVICES)}")
        if self.dtype not in DTYPES:
            raise HostError(f"dtype is {self.dtype!r}: give one of {', '.join(DTYPES)}")
        if self.keys is None and not self.insecure and not is_loopback(self.bind):
            raise BindError(
                f"{self.bind} can be reached from other machines, and without keys everybody there could "
                "read and ask: make keys with `qtl-server keygen DIR` and give --keys DIR, or bind to "
                "127.0.0.1, or accept plaintext with --insecure"
            )
