"""How hot the device is and whether that slows it: thermal zones, clocks, a Raspberry Pi's own word."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

_NOW: Final = {0: "under-voltage", 1: "clock capped", 2: "throttled", 3: "soft temperature limit"}
_SINCE_BOOT: Final = 16
"""The same four bits again, so much higher: it has happened since the device was started."""
_SECONDS: Final = 5.0


@dataclass(frozen=True, kw_only=True)
class Heat:
    """One look at the device's temperature.

    Attributes:
        celsius: of the hottest thermal zone; None if there is none.
        clock_mhz: the first core's clock now; None if unknown.
        clock_max_mhz: the fastest that core goes; None if unknown.
        throttled: what ``vcgencmd get_throttled`` says on a Raspberry Pi, as it says it ("0x50005"); None
            elsewhere.
        now: what slows the device down at this moment, by that word.
        since_boot: what did so since it was started.
    """

    celsius: float | None
    clock_mhz: float | None
    clock_max_mhz: float | None
    throttled: str | None
    now: tuple[str, ...] = ()
    since_boot: tuple[str, ...] = ()


def vcgencmd() -> str:
    """What ``vcgencmd get_throttled`` prints; empty where there is no such program, or it fails."""
    program = shutil.which("vcgencmd")
    if program is None:
        return ""
    try:
        done = subprocess.run(
            [program, "get_throttled"], capture_output=True, text=True, timeout=_SECONDS, check=False
        )
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout if done.returncode == 0 else ""


def feel(root: Path = Path("/"), ask: Callable[[], str] = vcgencmd) -> Heat:
    """Looks at the thermal zones, the clock and the firmware's word.

    Args:
        root: where the system's files are.
        ask: prints a line such as ``throttled=0x50005``, or nothing.
    """
    zones = [_number(path) for path in sorted((root / "sys/class/thermal").glob("thermal_zone*/temp"))]
    # Millidegrees; a zone that is switched off says a large negative number or zero.
    celsius = [value / 1000 for value in zones if value is not None and value > 0]
    clock = root / "sys/devices/system/cpu/cpu0/cpufreq"
    now, top = _number(clock / "scaling_cur_freq"), _number(clock / "cpuinfo_max_freq")
    word = ask().strip().partition("throttled=")[2]
    try:
        bits = int(word, 16)
    except ValueError:
        word, bits = "", 0
    return Heat(
        celsius=max(celsius, default=None),
        clock_mhz=None if now is None else now / 1000,
        clock_max_mhz=None if top is None else top / 1000,
        throttled=word or None,
        now=tuple(name for bit, name in _NOW.items() if bits >> bit & 1),
        since_boot=tuple(name for bit, name in _NOW.items() if bits >> (bit + _SINCE_BOOT) & 1),
    )


def _number(path: Path) -> int | None:
    try:
        return int(path.read_text("ascii"))
    except (OSError, ValueError):
        return None
