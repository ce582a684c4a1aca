"""`make demo`: the whole path with real processes, and what crossed the wire.

Exports the shipped checkpoint at 2 bits, starts a server on a free loopback port, asks it about a picture
as a device would, and prints the answers and the bytes beside what the alternatives would have sent.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import signal
import subprocess
import sys
import sysconfig
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from qtl_core import exits, shipped
from qtl_core.errors import LinkError, QtlError

QUESTIONS = ("how many digits are there?", "where is the 5?", "what colour is the digit middle left?")
OUTPUT = Path("build") / "demo"
# Generous, for machines that are busy with something else; nothing here takes long by itself.
READY_TIMEOUT_S = 300.0
COMMAND_TIMEOUT_S = 900.0
STOP_TIMEOUT_S = 10.0


def main() -> None:
    """Runs the demo; everything it starts has ended when it returns."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--bits", default="2", help="bits per code, 1 to 8, or 16 for no quantizer")
    parser.add_argument("--image", type=Path, default=None, help="a picture (default: the shipped scene)")
    parser.add_argument("--checkpoint", type=Path, default=None, help="default: the shipped one")
    parser.add_argument("questions", nargs="*", default=list(QUESTIONS), metavar="QUESTION")
    options = parser.parse_args()

    picture: Path = options.image or shipped.picture()
    checkpoint: Path = options.checkpoint or shipped.digits()
    bundle = OUTPUT / "bundle"
    started = time.monotonic()
    _say(f"1. qtl-export --bits {options.bits}: checkpoint -> {bundle}/client and {bundle}/server")
    _run("qtl-export", str(checkpoint), "--bits", options.bits, "--output", str(bundle))
    exported = time.monotonic()

    _say("2. qtl-server: the server half, on a free loopback port")
    with _server(bundle) as endpoint:
        ready = time.monotonic()
        _say(f"3. edge_runtime ask: the client half, without PyTorch, to {endpoint}\n")
        _say(f"   picture   {picture}")
        replies = [_ask(bundle, endpoint, picture, question) for question in options.questions]
    for question, reply in zip(options.questions, replies, strict=True):
        _say(f"   question  {question}\n   answer    {' '.join(reply['answer'].split())}")
    _say("")
    _say(_table(replies[0]))
    _say(
        f"\n   seconds: export {exported - started:.1f}, server start {ready - exported:.1f},"
        f" {len(replies)} questions {time.monotonic() - ready:.1f} (each a fresh process)"
    )
    _say(f"   look at: {picture}  (the picture)  {bundle}  (what was exported)")


def _table(reply: dict[str, Any]) -> str:
    """What one question about the picture sent, beside what else could have been sent."""
    payload = int(reply["payload_bytes"])
    code = f"{reply['tokens']} tokens x {reply['code_dim']} codes x {reply['bits']} bits"
    rows = [
        (f"codes ({code}), as they were sent", payload),
        ("the same codes packed", int(reply["packed_bytes"])),
        ("whole message up: codes, question, header", int(reply["bytes_up"])),
        ("whole messages down: the answer", int(reply["bytes_down"])),
        ("the same features at 16 bits", int(reply["feature_bytes_16bit"])),
        ("the same picture as JPEG, quality 90", int(reply["jpeg_bytes"])),
    ]
    width = max(len(name) for name, _ in rows)
    lines = [f"   {'':{width}}  {'bytes':>7}  {'x codes':>8}"]
    lines += [f"   {name:{width}}  {size:7,}  {size / payload:8.1f}" for name, size in rows]
    ms = reply["ms"]
    parts = ", ".join(f"{name} {ms[name]:.1f}" for name in ("preprocess", "encode", "round_trip", "server"))
    return "\n".join([*lines, "", f"   milliseconds of the first question: {parts}"])


def _ask(bundle: Path, endpoint: str, picture: Path, question: str) -> dict[str, Any]:
    where = ["--bundle", str(bundle / "client"), "--server", endpoint, "--image", str(picture)]
    reply: dict[str, Any] = json.loads(_run("edge_runtime", "ask", *where, "--json", question, quiet=True))
    return reply


@contextmanager
def _server(bundle: Path) -> Iterator[str]:
    """A running `qtl-server` and the address it chose; gone afterwards, whatever happens."""
    with tempfile.TemporaryDirectory() as folder:
        ready_file = Path(folder) / "endpoint"
        where = ["--bind", "tcp://127.0.0.1:*", "--ready-file", str(ready_file)]
        log = OUTPUT / "server.log"
        with log.open("wb") as sink:
            process = subprocess.Popen(
                [_program("qtl-server"), str(bundle / "server"), *where], stdout=sink, stderr=sink
            )
        try:
            yield _endpoint(process, ready_file, log)
        finally:
            process.terminate()
            try:
                process.wait(STOP_TIMEOUT_S)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def _endpoint(process: subprocess.Popen[bytes], ready_file: Path, log: Path) -> str:
    """Waits until the server has written where it listens."""
    deadline = time.monotonic() + READY_TIMEOUT_S
    while time.monotonic() < deadline:
        if ready_file.exists() and (endpoint := ready_file.read_text().strip()):
            return endpoint
        if process.poll() is not None:
            raise LinkError(f"qtl-server ended with exit code {process.returncode}; its log is {log}")
        time.sleep(0.05)
    raise LinkError(f"qtl-server was not ready within {READY_TIMEOUT_S:.0f} s; its log is {log}")


def _run(name: str, *arguments: str, quiet: bool = False) -> str:
    """Runs one of our commands and returns its output; what it prints is shown unless `quiet`."""
    try:
        done = subprocess.run(
            [_program(name), *arguments],
            stdout=subprocess.PIPE if quiet else None,
            text=True,
            timeout=COMMAND_TIMEOUT_S,
            check=False,
        )
    except subprocess.TimeoutExpired as error:
        raise QtlError(f"{name} did not end within {COMMAND_TIMEOUT_S:.0f} s") from error
    if done.returncode:
        raise QtlError(f"{name} ended with exit code {done.returncode}; it says why above")
    return done.stdout or ""


def _program(name: str) -> str:
    """The console script that belongs to this interpreter, else the one on PATH."""
    scripts = sysconfig.get_path("scripts")
    found = shutil.which(name, path=os.pathsep.join([scripts, os.environ.get("PATH", "")]))
    if found is None:
        raise QtlError(f'{name} is not installed; run `make demo`, or: pip install -e ".[all]"')
    return found


def _say(text: str) -> None:
    print(text, flush=True)


if __name__ == "__main__":
    # A polite kill must not leave the server behind either.
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))
    OUTPUT.mkdir(parents=True, exist_ok=True)
    sys.exit(exits.run(main))
