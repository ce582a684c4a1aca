"""What the device says about itself, from files that a test lays out; without them nothing is guessed."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

from edge_runtime.heat import Heat, feel, vcgencmd
from edge_runtime.machine import UNKNOWN, look, megabytes
from edge_runtime.resident import peak_bytes, resident_bytes

PI = """processor\t: 0
BogoMIPS\t: 108.00
Features\t: fp asimd evtstrm crc32 atomics fphp asimdhp cpuid asimdrdm lrcpc dcpop asimddp
CPU implementer\t: 0x41
CPU part\t: 0xd0b

processor\t: 1
Features\t: none
"""
PC = """processor\t: 0
model name\t: Some Processor
flags\t\t: fpu avx2 avx512f avx512_vnni
"""
MEMORY = "MemTotal:        8128512 kB\nMemFree:  1 kB\nMemAvailable:    7000000 kB\n"


def lay(root: Path, **files: str) -> Path:
    for name, text in files.items():
        path = root / name.replace("__", "/")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    return root


def test_a_raspberry_pi(tmp_path: Path) -> None:
    root = lay(
        tmp_path,
        proc__cpuinfo=PI,
        proc__meminfo=MEMORY,
        **{
            "proc/device-tree/model": "Raspberry Pi 5 Model B Rev 1.0\0",
            "etc/os-release": 'PRETTY_NAME="Debian 12"\n',
        },
    )
    found = look(root)
    assert found.board == "Raspberry Pi 5 Model B Rev 1.0"
    assert found.cpu == "implementer 0x41 part 0xd0b"
    assert found.speedups == ("asimd", "asimddp", "fphp")
    assert (found.memory, found.available) == (8128512 * 1024, 7000000 * 1024)
    assert found.system.startswith("Debian 12 (")
    assert found.key == f"{found.architecture}, {found.cpu}, {found.cores} cores"


def test_a_pc_and_a_container_s_limit(tmp_path: Path) -> None:
    root = lay(
        tmp_path,
        proc__cpuinfo=PC,
        proc__meminfo=MEMORY,
        **{
            "sys/devices/virtual/dmi/id/sys_vendor": "Maker\n",
            "sys/devices/virtual/dmi/id/product_name": "Box 3\n",
            "sys/fs/cgroup/memory.max": "1000000000\n",
            "sys/fs/cgroup/memory.current": "400000000\n",
        },
    )
    found = look(root)
    assert (found.board, found.cpu) == ("Maker Box 3", "Some Processor")
    assert found.speedups == ("avx2", "avx512f", "avx512_vnni")
    assert (found.memory, found.available) == (1_000_000_000, 600_000_000)
    (root / "sys/fs/cgroup/memory.max").write_text("max\n")
    assert look(root).memory == 8128512 * 1024


def test_nothing_is_known_without_the_files(tmp_path: Path) -> None:
    found = look(tmp_path)
    assert (found.board, found.speedups, found.available) == (UNKNOWN, (), None)
    assert found.bits == (64 if sys.maxsize > 2**32 else 32)
    assert found.cores >= 1
    assert megabytes(None) == UNKNOWN
    assert megabytes(1_234_000_000) == "1,234 MB"


def test_heat(tmp_path: Path) -> None:
    assert feel(tmp_path, lambda: "") == Heat(
        celsius=None, clock_mhz=None, clock_max_mhz=None, throttled=None
    )
    root = lay(
        tmp_path,
        **{
            "sys/class/thermal/thermal_zone0/temp": "51200\n",
            "sys/class/thermal/thermal_zone1/temp": "83500\n",
            "sys/class/thermal/thermal_zone2/temp": "-274000\n",
            "sys/class/thermal/thermal_zone3/temp": "nonsense\n",
            "sys/devices/system/cpu/cpu0/cpufreq/scaling_cur_freq": "1500000\n",
            "sys/devices/system/cpu/cpu0/cpufreq/cpuinfo_max_freq": "2400000\n",
        },
    )
    found = feel(root, lambda: "throttled=0x50004\n")
    assert (found.celsius, found.clock_mhz, found.clock_max_mhz) == (83.5, 1500.0, 2400.0)
    assert found.throttled == "0x50004"
    assert found.now == ("throttled",)
    assert found.since_boot == ("under-voltage", "throttled")
    assert feel(root, lambda: "error: not a Pi").throttled is None


@pytest.mark.skipif(os.name != "posix", reason="the program is a shell script")
def test_the_firmware_is_asked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert vcgencmd() == ""
    program = tmp_path / "vcgencmd"
    program.write_text('#!/bin/sh\n[ "$1" = get_throttled ] && echo throttled=0x1\n')
    program.chmod(0o755)
    assert vcgencmd() == "throttled=0x1\n"
    program.write_text("#!/bin/sh\necho throttled=0x1; exit 3\n")
    assert vcgencmd() == ""


def test_memory_of_this_process(tmp_path: Path) -> None:
    page = tmp_path / "status"
    page.write_text("Name:\tpython\nVmHWM:\t    2048 kB\nVmRSS:\t    1024 kB\n")
    assert (resident_bytes(page), peak_bytes(page)) == (1024**2, 2 * 1024**2)
    assert resident_bytes(tmp_path / "absent") is None
    # Without the page, the system's own accounting of this very process.
    if sys.platform != "win32":
        peak = peak_bytes(tmp_path / "absent")
        assert peak is not None
        assert peak > 5_000_000
