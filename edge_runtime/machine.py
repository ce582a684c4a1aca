"""What this device is: board, processor, cores, memory, system. Read from the system's own files, no library.

Whatever cannot be found out here is None or "unknown"; nothing is guessed.
"""

from __future__ import annotations

import os
import platform
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Final

UNKNOWN: Final = "unknown"

# Instructions that decide how much int8 gains: dot products on ARM, AVX and VNNI on x86.
_SPEEDUPS: Final = (
    "asimd", "asimddp", "i8mm", "fphp", "sve", "sve2",
    "avx2", "avx512f", "avx_vnni", "avx512_vnni", "amx_int8",
)  # fmt: skip
_UNLIMITED: Final = 1 << 60


@dataclass(frozen=True, kw_only=True)
class Machine:
    """One device.

    Attributes:
        board: the board's name, or the product's on a PC; "unknown" where neither is written down.
        cpu: the processor's name.
        architecture: "aarch64", "x86_64", ... as the kernel says.
        bits: 32 or 64, of this Python and not of the kernel: wheels must fit Python.
        cores: that this process may use.
        speedups: instructions the processor has, of those that int8 and half precision gain from.
        memory: bytes of RAM, or the container's limit if that is lower; None if unknown.
        available: bytes that programs can still get without swapping; None if unknown.
        system: operating system and its version.
        python: version of the interpreter.
    """

    board: str
    cpu: str
    architecture: str
    bits: int
    cores: int
    speedups: tuple[str, ...]
    memory: int | None
    available: int | None
    system: str
    python: str

    @property
    def key(self) -> str:
        """What a measurement is about: another processor or number of cores makes it void."""
        return f"{self.architecture}, {self.cpu}, {self.cores} cores"


def look(root: Path = Path("/")) -> Machine:
    """Looks at this machine.

    Args:
        root: where the system's files are; tests have their own.
    """
    cpuinfo = _text(root / "proc/cpuinfo")
    board = _board(root)
    memory, available = _memory(root)
    return Machine(
        board=board,
        cpu=_cpu(cpuinfo) or platform.processor() or UNKNOWN,
        architecture=platform.machine() or UNKNOWN,
        bits=64 if sys.maxsize > 2**32 else 32,
        cores=cores(),
        speedups=_speedups(cpuinfo),
        memory=memory,
        available=available,
        system=_system(root),
        python=platform.python_version(),
    )


def cores() -> int:
    """Cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def megabytes(count: int | None) -> str:
    """Bytes for people: "812 MB", or "unknown"."""
    return UNKNOWN if count is None else f"{count / 1e6:,.0f} MB"


def _board(root: Path) -> str:
    for name in ("proc/device-tree/model", "sys/firmware/devicetree/base/model"):
        if model := _text(root / name):
            return model
    parts = [_text(root / "sys/devices/virtual/dmi/id" / name) for name in ("sys_vendor", "product_name")]
    return " ".join(part for part in parts if part) or UNKNOWN


def _cpu(cpuinfo: str) -> str:
    names = _fields(cpuinfo)
    if "model name" in names:
        return names["model name"]
    # ARM kernels give numbers: which design (part) of which maker (implementer).
    if "CPU part" in names:
        return f"implementer {names.get('CPU implementer', UNKNOWN)} part {names['CPU part']}"
    return ""


def _speedups(cpuinfo: str) -> tuple[str, ...]:
    names = _fields(cpuinfo)
    have = set((names.get("flags") or names.get("Features") or "").split())
    return tuple(name for name in _SPEEDUPS if name in have)


def _fields(cpuinfo: str) -> dict[str, str]:
    """The first processor's fields; the others of a board are like it, or come with the same wheels."""
    found: dict[str, str] = {}
    for line in cpuinfo.splitlines():
        name, colon, value = line.partition(":")
        if colon:
            found.setdefault(name.strip(), value.strip())
    return found


def _memory(root: Path) -> tuple[int | None, int | None]:
    info = _fields(_text(root / "proc/meminfo"))
    total, available = _kilobytes(info.get("MemTotal")), _kilobytes(info.get("MemAvailable"))
    if total is None:
        try:
            total = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
        except (AttributeError, ValueError, OSError):  # Windows has no sysconf, others may lack the names
            return None, None
    limit, used = (_text(root / "sys/fs/cgroup" / name) for name in ("memory.max", "memory.current"))
    if limit.isdigit() and int(limit) < min(total, _UNLIMITED):
        total = int(limit)
        if available is not None and used.isdigit():
            available = min(available, max(total - int(used), 0))
    return total, available


def _kilobytes(value: str | None) -> int | None:
    number = (value or "").removesuffix("kB").strip()
    return int(number) * 1024 if number.isdigit() else None


def _system(root: Path) -> str:
    kernel = f"{platform.system()} {platform.release()}".strip() or UNKNOWN
    for line in _text(root / "etc/os-release").splitlines():
        if line.startswith("PRETTY_NAME="):
            return f"{line.partition('=')[2].strip().strip(chr(34))} ({kernel})"
    return kernel


def _text(path: Path) -> str:
    try:
        return path.read_bytes().decode("utf-8", "replace").strip("\0 \n")
    except OSError:
        return ""
