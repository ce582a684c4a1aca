"""A hub on this machine: the few routes of its interface that a download asks for."""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

NAME, COMMIT = "somebody/tiny-llava", "c0ffee" + "0" * 34


class Hub:
    """One model, ``NAME`` at ``COMMIT`` (``main``), out of a folder.

    Attributes:
        folder: its files.
        refuse: the code with which the hub says no to everything ("GatedRepo", ...); empty for yes.
        got: the files that were downloaded.
    """

    def __init__(self, folder: Path) -> None:
        self.folder, self.refuse = folder, ""
        self.got: list[str] = []
        self.address = ""

    def answer(self, path: str) -> tuple[int, dict[str, str], bytes]:
        """Status, headers and body of a GET."""
        if self.refuse:
            return 403, {"X-Error-Code": self.refuse}, b"{}"
        if path == f"/api/models/{NAME}/revision/main":
            return _json({"_id": "1", "id": NAME, "sha": COMMIT, "siblings": [], "tags": []})
        if path == f"/api/models/{NAME}/tree/{COMMIT}":
            files = [file for file in self.folder.rglob("*") if file.is_file()]
            return _json(
                [
                    {
                        "type": "file",
                        "path": file.relative_to(self.folder).as_posix(),
                        "size": file.stat().st_size,
                        "oid": _etag(file),
                    }
                    for file in files
                ]
            )
        start = f"/{NAME}/resolve/{COMMIT}/"
        if path.startswith(start):
            file = self.folder / path.removeprefix(start)
            return 200, {"ETag": f'"{_etag(file)}"', "X-Repo-Commit": COMMIT}, file.read_bytes()
        known = path.startswith(f"/api/models/{NAME}/")
        return 404, {"X-Error-Code": "RevisionNotFound" if known else "RepoNotFound"}, b"{}"


@contextmanager
def serving(folder: Path) -> Iterator[Hub]:
    """A hub that answers on loopback until the block ends."""
    hub = Hub(folder)

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_HEAD(self) -> None:
            self.reply(body=False)

        def do_GET(self) -> None:
            self.reply(body=True)

        def reply(self, *, body: bool) -> None:
            path = self.path.partition("?")[0]
            status, headers, data = hub.answer(path)
            self.send_response(status)
            for key, value in {**headers, "Content-Length": str(len(data))}.items():
                self.send_header(key, value)
            self.end_headers()
            if body:
                if "/resolve/" in path:
                    hub.got.append(path.partition(f"{COMMIT}/")[2])
                self.wfile.write(data)

        def log_message(self, format: str, *args: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    hub.address = f"http://127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
        thread.join(10)


def _json(value: Any) -> tuple[int, dict[str, str], bytes]:
    return 200, {"Content-Type": "application/json"}, json.dumps(value).encode()


def _etag(file: Path) -> str:
    return hashlib.sha1(file.read_bytes()).hexdigest()
