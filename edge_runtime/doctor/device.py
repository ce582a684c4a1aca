"""The device itself: processor, Python, packages, temperature, clock."""

from __future__ import annotations

import importlib
import time
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path
from typing import Any, Final

from edge_runtime.heat import Heat
from edge_runtime.machine import Machine, megabytes
from qtl_core.errors import HostError

from .finding import Finding

OLDEST_PYTHON: Final = (3, 10)
OLDEST: Final = {
    "onnxruntime": "1.19",
    "numpy": "1.22",
    "zmq": "25.1",
    "msgspec": "0.18",
    "PIL": "10.0",
    "click": "8.1",
}
"""Oldest versions that the device install takes, by module."""
_DISTRIBUTION: Final = {"zmq": "pyzmq", "PIL": "Pillow"}
_HOT: Final = 80.0
_DAY: Final = 86_400.0
_NO_32_BIT: Final = (
    "this Python is 32-bit, and onnxruntime exists for 64-bit systems only; install the 64-bit system of "
    "your board (Raspberry Pi OS 64-bit) and start again there"
)


def machine_of(machine: Machine) -> Finding:
    speedups = f" ({', '.join(machine.speedups)})" if machine.speedups else ""
    said = (
        f"{machine.board}: {machine.cpu}, {machine.architecture}{speedups}, {machine.cores} cores, "
        f"{megabytes(machine.memory)} of memory, {megabytes(machine.available)} free; {machine.system}"
    )
    if machine.bits < 64:
        return Finding(name="machine", said=said, remedy=_NO_32_BIT, exit_code=HostError.exit_code)
    return Finding(name="machine", said=said)


def python_of(machine: Machine) -> Finding:
    if _numbers(machine.python) < OLDEST_PYTHON:
        least = ".".join(map(str, OLDEST_PYTHON))
        remedy = f"install Python {least} or newer, and the package there"
        return Finding(name="python", said=machine.python, remedy=remedy, exit_code=HostError.exit_code)
    return Finding(name="python", said=machine.python)


def package(name: str) -> Finding:
    least = OLDEST[name]
    line = f'pip install "{_DISTRIBUTION.get(name, name)}>={least}"'
    try:
        module = importlib.import_module(name)
    except Exception as error:  # a wheel for another processor fails in many ways; all mean this
        remedy = f"it does not load; run: {line}"
        said = f"{type(error).__name__}: {' '.join(str(error).split())}"
        return Finding(name=name, said=said, remedy=remedy, exit_code=HostError.exit_code)
    version = _version(name, module)
    said = version + _particulars(name, module)
    if _numbers(version) < _numbers(least):
        remedy = f"older than {least}; run: {line}"
        return Finding(name=name, said=said, remedy=remedy, exit_code=HostError.exit_code)
    if name == "zmq" and not module.has("curve"):
        remedy = "it cannot encrypt (no CURVE); install pyzmq from its official wheel"
        return Finding(name=name, said=said, remedy=remedy, exit_code=HostError.exit_code)
    return Finding(name=name, said=said)


def _version(name: str, module: Any) -> str:
    # From the module first: onnxruntime comes as several distributions. click has only its metadata.
    version = vars(module).get("__version__")
    return str(version) if version else metadata.version(_DISTRIBUTION.get(name, name))


def _particulars(name: str, module: Any) -> str:
    if name == "onnxruntime":
        return f", providers {', '.join(module.get_available_providers())}"
    if name == "zmq":
        return f", libzmq {module.zmq_version()}"
    return ""


def heat_of(heat: Heat) -> Finding:
    parts = []
    if heat.celsius is not None:
        parts.append(f"{heat.celsius:.0f} °C")
    if heat.clock_mhz is not None and heat.clock_max_mhz is not None:
        parts.append(f"{heat.clock_mhz:.0f} of {heat.clock_max_mhz:.0f} MHz")
    if heat.since_boot:
        parts.append(f"since it was started: {', '.join(heat.since_boot)}")
    said = ", ".join(parts) or "unknown"
    bad = [*heat.now]
    if heat.celsius is not None and heat.celsius >= _HOT and "throttled" not in bad:
        bad.append("hot")
    if not bad:
        return Finding(name="heat", said=said)
    remedy = (
        "use the board's own power supply and a short cable"
        if "under-voltage" in bad
        else "cool it: a heat sink and a fan, or fewer --threads"
    )
    return Finding(
        name="heat", said=f"{said}; now: {', '.join(bad)}", remedy=remedy, exit_code=HostError.exit_code
    )


def clock(now: float, files: Sequence[Path]) -> Finding:
    said = time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime(now))
    # Boards without a battery start in the past. Files know better than that, whichever was made last.
    witnesses = [path.stat().st_mtime for path in (Path(__file__), *files)]
    if now < max(witnesses) - _DAY:
        remedy = "it is before this software was installed; set it: sudo timedatectl set-ntp true"
        return Finding(name="clock", said=said, remedy=remedy, exit_code=HostError.exit_code)
    return Finding(name="clock", said=said)


def _numbers(version: str) -> tuple[int, ...]:
    """The leading numbers of a version: "1.31.1+cpu" is (1, 31, 1)."""
    found = []
    for part in version.split("+")[0].split("."):
        digits = part[: len(part) - len(part.lstrip("0123456789"))]
        if not digits:
            break
        found.append(int(digits))
    return tuple(found)
