"""What a client is told when it is built: one frozen value, checked at once."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

from qtl_core.errors import InputError
from qtl_core.shipped import BUNDLE, SERVER
from qtl_core.sockets import parse_endpoint
from qtl_core.wire import MAX_MULTIPLE


@dataclass(frozen=True, kw_only=True)
class EdgeConfig:
    """Settings of one client.

    Attributes:
        bundle: the bundle's client half, or the bundle that holds it.
        server: the server's address, such as ``tcp://127.0.0.1:5555``.
        key: this client's ``.key_secret`` file; with ``server_key`` everything is encrypted (CURVE).
        server_key: the server's ``.key`` file.
        timeout: seconds to wait for the server: for the connection, between two signs of life, and while
            it says that it is busy.
        patience: seconds to wait for one whole answer of a server that does show signs of life.
        comeback: seconds a server that is lost in the middle of an answer has to come back.
        threads: threads the graph may use; 0 leaves it to onnxruntime.
        providers: onnxruntime execution providers, best first; empty means the CPU.
        variant: name of the bundle's graph to run; "" for the manifest's own.
        measured: run as ``edge_runtime bench`` chose, if it has.
        insecure: speak plaintext to an address that is not on this machine.
        pad: make each of a question's two frames a multiple of so many bytes long; 0 does not.

    Raises:
        InputError: an address that is none, a number out of range, one key without the other, plaintext to
            another machine without ``insecure``, or ``measured`` beside a setting that it would overrule.
    """

    bundle: Path = Path(BUNDLE)
    server: str = SERVER
    key: Path | None = None
    server_key: Path | None = None
    timeout: float = 10.0
    patience: float = 300.0
    comeback: float = 2.0
    threads: int = 0
    providers: tuple[str, ...] = ()
    variant: str = ""
    measured: bool = False
    insecure: bool = False
    pad: int = 0

    def __post_init__(self) -> None:
        for name in ("timeout", "patience", "comeback"):
            value = getattr(self, name)
            if not (value > 0 and math.isfinite(value)):
                raise InputError(f"{name} is {value}: give a number of seconds above 0")
        if self.threads < 0:
            raise InputError(f"threads is {self.threads}: give 0 (let onnxruntime choose) or more")
        if self.measured and (self.threads or self.providers or self.variant):
            raise InputError("measured takes threads, provider and variant from bench; leave them out")
        if not 0 <= self.pad <= MAX_MULTIPLE:
            raise InputError(f"pad is {self.pad}: give a number of bytes up to {MAX_MULTIPLE}, or 0 for none")
        endpoint = parse_endpoint(self.server)
        if endpoint.transport == "tcp" and (endpoint.port == 0 or endpoint.host == "*"):
            raise InputError(
                f"{self.server} can be listened on but not connected to; give the server's name and port"
            )
        if (self.key is None) != (self.server_key is None):
            given, missing = ("--key", "--server-key") if self.key else ("--server-key", "--key")
            raise InputError(
                f"{given} was given without {missing}; encryption needs this client's .key_secret file "
                "(--key) and the server's .key file (--server-key)"
            )
        if self.key is None and not self.insecure and not endpoint.is_loopback:
            raise InputError(
                f"{self.server} is not on this machine, and without keys everybody on the way can read the "
                "question, the codes and the answer: give --key and --server-key, or accept plaintext with "
                "--insecure"
            )
