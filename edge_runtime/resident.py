"""How much memory this process has: now, and at its highest. Linux and macOS; elsewhere it is not known."""

from __future__ import annotations

import sys
from pathlib import Path


def resident_bytes(status: Path = Path("/proc/self/status")) -> int | None:
    """Bytes in RAM now; None where the system does not say (anything but Linux).

    Args:
        status: the kernel's page about this process.
    """
    return _status(status, "VmRSS")


def peak_bytes(status: Path = Path("/proc/self/status")) -> int | None:
    """The most bytes this process ever had in RAM; None on Windows.

    Args:
        status: the kernel's page about this process.
    """
    found = _status(status, "VmHWM")
    if found is not None or sys.platform == "win32":
        return found
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else 1024 * peak


def _status(path: Path, name: str) -> int | None:
    try:
        lines = path.read_text("ascii", "replace").splitlines()
    except OSError:
        return None
    for line in lines:
        if line.startswith(name + ":"):
            return int(line.split()[1]) * 1024
    return None
