"""A cold start: a fresh process from its first moment to the first picture's codes, and the memory it takes.

``python -m edge_runtime.cold`` is that process; it opens the bundle as any run does, hashes included, and
asks one question where it is told of a server.
"""

from __future__ import annotations

import json
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from qtl_core.errors import HostError, QtlError, ServerUnavailable

_SECONDS: Final = 600.0
_QUESTION: Final = "what is in the picture?"


@dataclass(frozen=True, kw_only=True)
class Cold:
    """What a fresh process took.

    Attributes:
        seconds: from its start to the first picture's codes.
        answer_seconds: from its start to the end of the first answer; None if no server was named.
        resident: bytes in RAM after the first picture; None if unknown here.
        peak: the most bytes it had by then; None if unknown here.
    """

    seconds: float
    answer_seconds: float | None
    resident: int | None
    peak: int | None


def start(
    half: Path,
    variant: str,
    provider: str,
    threads: int,
    *,
    link: Mapping[str, Any] | None = None,
    clock: Callable[[], float] = time.monotonic,
) -> Cold:
    """Starts such a process and waits for it.

    Args:
        half: the client half.
        variant: name of the graph.
        provider: onnxruntime execution provider.
        threads: of the graph; 0 leaves it to onnxruntime.
        link: settings of ``EdgeClient`` that lead to a server (``server``, ``key``, ...), to ask there.
        clock: seconds.

    Raises:
        HostError: it failed, or took longer than ten minutes.
        ServerUnavailable: its codes were made, but no answer came.
    """
    task = {"half": str(half), "variant": variant, "provider": provider, "threads": threads, "link": link}
    command = [sys.executable, "-m", "edge_runtime.cold", json.dumps(task)]
    begun = clock()
    try:
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    except OSError as error:
        raise HostError(f"cannot start {sys.executable}: {error.strerror}") from error
    late = threading.Timer(_SECONDS, process.kill)
    late.start()
    try:
        with process:
            assert process.stdout is not None and process.stderr is not None  # both are pipes
            line = process.stdout.readline()
            # Its own way out is no part of the wait for the first picture.
            seconds = clock() - begun
            answer = process.stdout.readline()
            answered = clock() - begun
            complaint = process.stderr.read().strip().splitlines()
    finally:
        late.cancel()
    why = complaint[-1] if complaint else f"it ended, or said nothing for {_SECONDS:.0f} s"
    try:
        told = json.loads(line)
    except ValueError as error:
        raise HostError(f"a fresh process could not run {variant} on {provider}: {why}") from error
    if link is not None and answer != "answered\n":
        raise ServerUnavailable(answer.strip() or why)
    return Cold(
        seconds=seconds,
        answer_seconds=None if link is None else answered,
        resident=told["resident"],
        peak=told["peak"],
    )


def main(task: Mapping[str, Any]) -> None:
    """Encodes one picture and prints what that took, as JSON; then asks about it, if it knows whom."""
    from qtl_core.bundle import open_half

    from .encoder import Encoder
    from .golden import golden_of, made_up
    from .variants import variant

    providers = (task["provider"],)
    if task["link"] is not None:
        _ask(task, providers)
        return
    half = open_half(task["half"], "client")
    golden = golden_of(half)
    graph = variant(half, task["variant"]).graph
    encoder = Encoder(half, graph=graph, threads=task["threads"], providers=providers)
    encoder.run((made_up(half, 1) if golden is None else golden.pictures)[:1])
    _tell()


def _ask(task: Mapping[str, Any], providers: tuple[str, ...]) -> None:
    import numpy as np

    from .client import EdgeClient

    settings = {"threads": task["threads"], "providers": providers, "variant": task["variant"]}
    with EdgeClient(task["half"], **settings, **task["link"]) as client:
        spec = client.manifest.picture
        encoded = client.encode(np.full((spec.height, spec.width, 3), 127, np.uint8))
        _tell()
        try:
            client.ask(encoded, _QUESTION)
        except QtlError as error:
            sys.stdout.write(" ".join(str(error).split()) + "\n")
        else:
            sys.stdout.write("answered\n")


def _tell() -> None:
    from .resident import peak_bytes, resident_bytes

    sys.stdout.write(json.dumps({"resident": resident_bytes(), "peak": peak_bytes()}) + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    main(json.loads(sys.argv[1]))
