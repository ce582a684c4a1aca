"""``python -m tests.server.fake_server ENDPOINT READY_FILE GO_FILE``: a server whose engine waits for a file.

The first token comes at once, the others once GO_FILE exists.
"""

from __future__ import annotations

import logging
import sys
import time
from pathlib import Path

from qtl_core import exits
from server_runtime import FakeEngine, Server, ServerConfig
from server_runtime.process import run
from tests.server.conftest import make_manifest
from tests.server.peer import PATIENCE_S


def main(endpoint: str, ready: str, go: str) -> None:
    end = time.monotonic() + 3 * PATIENCE_S

    def wait(index: int) -> None:
        while index and not Path(go).exists() and time.monotonic() < end:
            time.sleep(0.005)

    logging.basicConfig(level=logging.INFO)
    manifest = make_manifest()
    server = Server(ServerConfig(bind=endpoint, grace_s=60), FakeEngine(manifest, "abc", before_piece=wait))
    run(server, manifest, say=print, ready_file=Path(ready))


if __name__ == "__main__":
    sys.exit(exits.run(lambda: main(*sys.argv[1:])))
