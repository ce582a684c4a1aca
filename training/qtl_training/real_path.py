"""Answers through the real path: the device's client, a socket, and a server in a process of its own."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from tqdm import tqdm

from edge_runtime import Answer, EdgeClient
from qtl_core.errors import ServerUnavailable
from qtl_training.digits.dataset import QuestionSet

_START_S = 120.0
_STOP_S = 15.0
_POLL_S = 0.05
# `-m server_runtime`, after asking Linux to end it with us (PR_SET_PDEATHSIG, 1), even if we are killed.
_SERVE = """
import ctypes, runpy, signal, sys
if sys.platform.startswith("linux"):
    ctypes.CDLL(None).prctl(1, signal.SIGTERM)
runpy.run_module("server_runtime", run_name="__main__", alter_sys=True)
"""


@contextmanager
def server(
    bundle: Path,
    *,
    options: Sequence[str] = (),
    clock: Callable[[], float] = time.monotonic,
    wait: Callable[[float], None] = time.sleep,
) -> Iterator[str]:
    """Runs ``qtl-server`` on the bundle's server half, on a free loopback port; yields its address.

    Args:
        bundle: the server half, or the bundle that holds it.
        options: further options of ``qtl-server``.
        clock: seconds, monotonic.
        wait: sleeps for so many seconds.

    Raises:
        ServerUnavailable: if it ends or stays silent while it starts; its last line is in the message.
    """
    with tempfile.TemporaryDirectory(prefix="qtl-eval-") as folder:
        ready, log = Path(folder) / "ready", Path(folder) / "log"
        command = [sys.executable, "-c", _SERVE, str(bundle), "--bind", "tcp://127.0.0.1:*"]
        # The same import path as ours: in a checkout that is not installed, it would not find the server.
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
        with log.open("wb") as output:
            process = subprocess.Popen(
                [*command, "--ready-file", str(ready), *options],
                stdout=output,
                stderr=output,
                env=environment,
            )
        try:
            deadline = clock() + _START_S
            while not ready.exists():
                if process.poll() is not None or clock() > deadline:
                    said = log.read_text("utf-8", "replace").strip().splitlines()
                    raise ServerUnavailable(
                        f"qtl-server did not start: {said[-1] if said else 'it said nothing'}"
                    )
                wait(_POLL_S)
            yield ready.read_text("utf-8").strip()
        finally:
            process.terminate()
            try:
                process.wait(_STOP_S)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


@dataclass(frozen=True)
class Traffic:
    """What crossed for one question on average, in bytes; messages are whole, headers included."""

    payload_bytes: float
    bytes_up: float
    bytes_down: float
    feature_bytes_16bit: float
    jpeg_bytes: float
    round_trip_ms: float


def ask_all(client: EdgeClient, data: QuestionSet, *, progress: bool = True) -> tuple[list[str], Traffic]:
    """Asks every question; each picture is encoded once, and its codes are sent with each question.

    Returns:
        The answers in the order of the questions, and the mean traffic of a question.
    """
    replies: list[Answer] = []
    scene, encoded = -1, None
    for question in tqdm(data.questions, desc="questions", unit="q", disable=not progress or None):
        if encoded is None or question.scene != scene:
            scene = question.scene
            encoded = client.encode(data.picture(scene))
        replies.append(client.ask(encoded, question.text))

    def mean(name: str) -> float:
        return float(np.mean([getattr(reply, name) for reply in replies]))

    traffic = Traffic(
        mean("payload_bytes"),
        mean("bytes_up"),
        mean("bytes_down"),
        mean("feature_bytes_16bit"),
        mean("jpeg_bytes"),
        float(np.mean([reply.ms.round_trip for reply in replies])),
    )
    return [reply.answer for reply in replies], traffic
