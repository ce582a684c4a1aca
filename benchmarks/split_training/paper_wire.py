"""The wire of the paper's published code, as a yardstick: pickled objects over a TCP socket.

Up go fixed-length packed codes, questions and answers in clear; down comes the gradient of what crossed in
float32; one batch at a time, each side waiting for the other. Written anew from what that code sends; the
model, the data, and what both sides compute are those of our own run.
"""

from __future__ import annotations

import pickle
import socket
import struct
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Final, Protocol

import numpy as np
from numpy.typing import NDArray

from qtl_core import codes as packing
from qtl_core.crossing import Crossed, MicroBatch, Row

_LENGTH: Final = struct.Struct("!Q")


class Client(Protocol):
    """The client partition, as ``qtl_training.split.client_side`` has it."""

    def forward(self, micro: int, pictures: Sequence[int], levels: int) -> Crossed:
        """What crosses."""
        ...

    def backward(self, micro: int, gradient: NDArray[np.float32]) -> None:
        """Takes its gradient."""
        ...

    def squared_norm(self, answer_tokens: int) -> float:
        """Of this side's gradients."""
        ...

    def apply(self, step: int, squared_norm: float) -> None:
        """Takes the optimizer step."""
        ...


@dataclass
class Sent:
    """What a run of the paper's wire came to.

    Attributes:
        steps: taken.
        samples: pictures with their questions.
        up, down: bytes given to the sockets.
        seconds: for all steps.
    """

    steps: int
    samples: int
    up: int
    down: int
    seconds: float


def run(
    client: Client,
    server: Any,
    batches: Callable[[int], Sequence[MicroBatch]],
    *,
    levels: int,
    steps: int,
    route: Callable[[str], str] = lambda address: address,
) -> Sent:
    """Trains a few steps over the paper's wire, client and server in threads of this process.

    Args:
        client: the client partition.
        server: the server partition: ``run``, ``squared_norm``, ``apply``.
        batches: the micro-batches of a step; they cross one after the other.
        levels: L.
        steps: how many.
        route: from the server's address, tcp://..., to the one that the client connects to.
    """
    listener = socket.create_server(("127.0.0.1", 0))
    port = int(route(f"tcp://127.0.0.1:{listener.getsockname()[1]}").rpartition(":")[2])
    failed: list[BaseException] = []
    thread = threading.Thread(target=_caught(_serve, failed), args=(listener, server, levels))
    thread.start()
    up = down = samples = 0
    try:
        with socket.create_connection(("127.0.0.1", port)) as link:
            link.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            started = time.monotonic()
            for step in range(steps):
                tokens = 0
                for number, micro in enumerate(batches(step)):
                    crossed = client.forward(number, micro.pictures, levels)
                    rows = [[list(row.pictures), [list(turn) for turn in row.turns]] for row in micro.rows]
                    up += _send(
                        link,
                        {"codes": packing.pack(crossed, levels), "shape": crossed.shape, "labels": rows},
                    )
                    reply, size = _receive(link)
                    down += size
                    samples += len(micro.pictures)
                    tokens += reply["tokens"]
                    client.backward(number, reply["gradient"])
                # Each side clips by itself there; the squared norm of both does not cross.
                client.apply(step, client.squared_norm(tokens))
                up += _send(link, {"step": step, "tokens": tokens})
                down += _receive(link)[1]
            seconds = time.monotonic() - started
            up += _send(link, None)
    finally:
        listener.close()
        thread.join(60)
    if failed:
        raise failed[0]
    return Sent(steps, samples, up, down, seconds)


def _serve(listener: socket.socket, server: Any, levels: int) -> None:
    link, _ = listener.accept()
    with link:
        link.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        while (message := _receive(link)[0]) is not None:
            if "step" in message:
                server.apply(message["step"], server.squared_norm(message["tokens"]))
                _send(link, {"step": message["step"]})
                continue
            crossed = packing.unpack(message["codes"], levels, message["shape"])
            rows = [
                Row(tuple(places), tuple((q, a) for q, a in turns)) for places, turns in message["labels"]
            ]
            result = server.run(crossed, levels, rows)
            _send(link, {"gradient": result.gradient, "loss": result.loss, "tokens": result.tokens})


def _caught(target: Callable[..., None], failed: list[BaseException]) -> Callable[..., None]:
    def run_it(*arguments: Any) -> None:
        try:
            target(*arguments)
        except BaseException as error:
            failed.append(error)

    return run_it


def _send(link: socket.socket, message: object) -> int:
    data = pickle.dumps(message, protocol=pickle.HIGHEST_PROTOCOL)
    link.sendall(_LENGTH.pack(len(data)) + data)
    return _LENGTH.size + len(data)


def _receive(link: socket.socket) -> tuple[Any, int]:
    (size,) = _LENGTH.unpack(_exactly(link, _LENGTH.size))
    # Our own process is at the other end: this is how the published code does it, and why nobody should.
    return pickle.loads(_exactly(link, size)), _LENGTH.size + size


def _exactly(link: socket.socket, size: int) -> bytes:
    parts = bytearray()
    while len(parts) < size:
        data = link.recv(min(size - len(parts), 1 << 20))
        if not data:
            raise ConnectionError("the other side of the paper's wire has gone")
        parts += data
    return bytes(parts)
