"""Runs on both processors: the device's code makes payloads of pictures, one at a time, as a device does.

    python encode.py WORK SIDE JOBS

reads ``WORK/plan.json`` (a list of ``plan.Graph``) and ``WORK/pictures.npy`` (uint8 [n, height, width, 3]),
and starts JOBS processes, which share the chunks of ``CHUNK`` pictures that each graph's first ``pictures``
pictures are cut into. The payloads of one go to ``WORK/SIDE/NAME.CHUNK.npy`` (uint8 [n, payload bytes]); one
that is there is not made again. What ran is said in ``WORK/SIDE/machine.json``. A line ``done N`` tells that
another N pictures are through. Nothing of the checkout is needed beyond this file.
"""

from __future__ import annotations

import importlib
import json
import os
import platform
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

import qtl_core
from edge_runtime.encoder import CPU, INPUT, Encoder, onnxruntime_module
from edge_runtime.machine import look
from qtl_core.bundle import open_half

CHUNK = 8
_MODULES = ("numpy", "onnxruntime", "zmq", "msgspec", "PIL")


def encode(work: Path, side: str, jobs: int, job: int) -> None:
    """Encodes its share of what the plan says: of all chunks every ``jobs``-th, from ``job`` on."""
    pictures = np.load(work / "pictures.npy", mmap_mode="r", allow_pickle=False)
    number = -1
    for graph in json.loads((work / "plan.json").read_bytes()):
        run = None
        for start in range(0, graph["pictures"], CHUNK):
            number += 1
            path = work / side / f"{graph['name']}.{start // CHUNK}.npy"
            chunk = np.asarray(pictures[start : min(start + CHUNK, graph["pictures"])])
            if number % jobs != job:
                continue
            if not path.exists():
                run = _runner(work, graph) if run is None else run
                rows = [np.frombuffer(run(one[np.newaxis]), np.uint8) for one in chunk]
                fresh = path.with_suffix(".new.npy")
                np.save(fresh, np.stack(rows))
                fresh.replace(path)
            # In one piece: the processes share the stream.
            os.write(1, f"done {len(chunk)}\n".encode())


def main(work: Path, side: str, jobs: int) -> int:
    """Starts the processes, and says what machine they ran on."""
    (work / side).mkdir(exist_ok=True)
    command = [sys.executable, __file__, str(work), side, str(jobs)]
    running = [subprocess.Popen([*command, str(job)]) for job in range(jobs)]
    codes = [process.wait() for process in running]
    told = {
        "architecture": platform.machine(),
        # Without the kernel: under emulation it is the other machine's.
        "system": look().system.partition(" (Linux")[0],
        "versions": {
            "python": platform.python_version(),
            "qtl-edge": qtl_core.__version__,
            **{name: str(importlib.import_module(name).__version__) for name in _MODULES},
        },
    }
    (work / side / "machine.json").write_text(json.dumps(told))
    return max(codes, key=abs)


def _runner(work: Path, graph: dict[str, Any]) -> Callable[[Any], bytes]:
    """One picture, uint8 [1, height, width, 3], to its payload."""
    if graph["half"]:
        half = open_half(work / graph["half"], "client")
        encoder = Encoder(half, graph=graph["file"], threads=1)
        return lambda picture: encoder.run(picture)[0]
    runtime = onnxruntime_module()
    options = runtime.SessionOptions()
    options.intra_op_num_threads = 1
    session = runtime.InferenceSession(str(work / graph["file"]), options, providers=[CPU])
    return lambda picture: session.run(None, {INPUT: picture})[0].tobytes()


if __name__ == "__main__":
    where, name, numbers = Path(sys.argv[1]), sys.argv[2], [int(word) for word in sys.argv[3:]]
    if len(numbers) == 1:
        sys.exit(main(where, name, numbers[0]))
    encode(where, name, *numbers)
