"""A server as a process: signals, the ready line, the ready file."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType

from qtl_core.bundle import Manifest
from qtl_core.errors import StorageError
from server_runtime.server import Server


def run(
    server: Server, manifest: Manifest, *, say: Callable[[str], None], ready_file: Path | None = None
) -> None:
    """Serve until SIGTERM or SIGINT; then the current answer is finished, clients are told, and it returns.

    Args:
        server: Built and bound; closed on return.
        manifest: What it serves, for the ready line.
        say: Prints a line.
        ready_file: Gets the endpoint once the server is ready, in one step.

    Raises:
        StorageError: The ready file cannot be written.
    """
    with server, _stopped_by_signals(server):
        if ready_file is not None:
            _write(ready_file, server.endpoint)
        say(ready_line(server.endpoint, manifest))
        server.serve()


def ready_line(endpoint: str, manifest: Manifest) -> str:
    """The line that says that the server answers now."""
    cut = manifest.cut
    kind = f"{cut.bits} bits" if not cut.quantized or cut.levels == 1 << cut.bits else f"{cut.levels} levels"
    return (
        f"qtl-server ready on {endpoint} (model {manifest.model}, {kind}, fingerprint {manifest.fingerprint})"
    )


@contextmanager
def _stopped_by_signals(server: Server) -> Iterator[None]:
    def stop(number: int, frame: FrameType | None) -> None:
        server.stop()

    before = {number: signal.signal(number, stop) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _write(path: Path, endpoint: str) -> None:
    fresh = path.with_name(path.name + ".new")
    try:
        fresh.write_text(endpoint + "\n", encoding="utf-8")
        os.replace(fresh, path)
    except OSError as error:
        raise StorageError(
            f"cannot write the ready file {path}: {error.strerror}: choose another place"
        ) from error
