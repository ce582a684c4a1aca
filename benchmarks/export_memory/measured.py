"""One export in a process of its own, which says what memory it took: its arguments are the checkpoint,
the pictures, the bundle and the codes a token.

Memory is what ``/proc/self/status`` calls resident: mapped files count as far as they were read. The
high-water mark is set back at the end of every stage, so that each stage has its own.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

T = TypeVar("T")
_VALIDATE = 2


def memory(field: str) -> int:
    """A field of ``/proc/self/status`` in bytes: "VmRSS" is what is resident now, "VmHWM" the most it was."""
    lines = Path("/proc/self/status").read_text("ascii").splitlines()
    (line,) = (line for line in lines if line.startswith(f"{field}:"))
    return 1024 * int(line.split()[1])


def measure(checkpoint: Path, pictures: Path, output: Path, code_dim: int) -> dict[str, Any]:
    """Exports at two bits with a quantizer of ``code_dim`` codes a token, fitted to the pictures."""
    bare = memory("VmRSS")
    import torch  # noqa: F401

    with_torch = memory("VmRSS")
    from qtl_export.config import ExportConfig
    from qtl_export.exporter import export
    from qtl_export.progress import Progress

    class Watching(Progress):
        """Notes the high-water mark of each stage; what is between two stages counts to the second."""

        def __init__(self) -> None:
            super().__init__()
            self.peaks: dict[str, int] = {}

        def note(self, what: str) -> None:
            """Ends a stage."""
            self.peaks[what] = max(self.peaks.get(what, 0), memory("VmHWM"))
            Path("/proc/self/clear_refs").write_text("5", "ascii")

        @contextmanager
        def stage(self, what: str) -> Iterator[None]:
            yield
            self.note(what)

        def bar(self, items: Iterable[T], what: str, total: int, unit: str, each: int = 1) -> Iterator[T]:
            yield from items
            self.note(what)

    imports = memory("VmRSS")
    watching = Watching()
    watching.note("imports")
    started = time.monotonic()
    exported = export(
        ExportConfig(
            checkpoint=checkpoint,
            levels=4,
            output=output,
            calibrate=pictures,
            code_dim=code_dim,
            validate=_VALIDATE,
        ),
        watching,
    )
    watching.note("the rest")
    client = sum(file.stat().st_size for file in (output / "client").glob("client.onnx*"))
    return {
        "seconds": time.monotonic() - started,
        "python_bytes": bare,
        "import_torch_bytes": with_torch,
        "import_all_bytes": imports,
        "client_bytes": client,
        "server_bytes": exported.sizes["server"],
        "peak_bytes": max(watching.peaks.values()),
        "peak_bytes_by_stage": watching.peaks,
        "codes_compared": exported.validation["codes"]["compared"],
        "codes_differ": exported.validation["codes"]["differ"],
        "answers_compared": exported.validation["answers"]["asked"],
    }


if __name__ == "__main__":
    checkpoint_, pictures_, output_ = map(Path, sys.argv[1:4])
    print(json.dumps(measure(checkpoint_, pictures_, output_, int(sys.argv[4]))))
