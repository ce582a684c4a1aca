"""What the aarch64 check says where it cannot run, and how it leaves the machine."""

from __future__ import annotations

import os
import platform
import shutil
from collections.abc import Sequence
from pathlib import Path

import pytest

from qtl_core.errors import HostError
from tests.aarch64 import emulation


@pytest.fixture
def able(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine that has everything."""
    monkeypatch.setattr(platform, "system", lambda: "Linux")
    monkeypatch.setattr(platform, "machine", lambda: "x86_64")
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    monkeypatch.setattr(shutil, "which", lambda name: f"/usr/bin/{name}")


@pytest.mark.usefixtures("able")
def test_what_is_missing_is_one_line_with_a_remedy(monkeypatch: pytest.MonkeyPatch) -> None:
    emulation.require()
    have = {"unshare"}
    monkeypatch.setattr(shutil, "which", lambda name: name if name in have else None)
    with pytest.raises(HostError, match=r"apt install debootstrap qemu-user-static$"):
        emulation.require()
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    with pytest.raises(HostError, match="needs root; run it with sudo"):
        emulation.require()
    monkeypatch.setattr(platform, "machine", lambda: "aarch64")
    with pytest.raises(HostError, match="`make test-bare`"):
        emulation.require()
    monkeypatch.setattr(platform, "system", lambda: "Darwin")
    with pytest.raises(HostError, match="Darwin"):
        emulation.require()
    assert HostError.exit_code == 9


class _Kernel:
    """Stands in for binfmt_misc: what is written to ``register`` becomes an entry while it is mounted."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.commands: list[str] = []

    def mount(self, command: Sequence[str]) -> str:
        self.commands.append(command[0])
        if command[0] == "mount":
            (self.folder / "register").write_text("")
        return ""


@pytest.mark.parametrize("fails", [False, True])
def test_the_kernel_is_left_as_it_was(tmp_path: Path, fails: bool) -> None:
    kernel = _Kernel(tmp_path)
    try:
        with emulation.interpreter(tmp_path, kernel.mount):
            registered = (tmp_path / "register").read_text()
            (tmp_path / "qemu-aarch64").write_text("enabled\nflags: F\n")
            if fails:
                raise KeyboardInterrupt
    except KeyboardInterrupt:
        pass
    assert registered.startswith(":qemu-aarch64:M::") and registered.endswith(":F")
    assert (tmp_path / "qemu-aarch64").read_text() == "-1"
    assert kernel.commands == ["mount", "umount"]


def test_an_entry_that_is_there_is_taken_and_left(tmp_path: Path) -> None:
    (tmp_path / "register").write_text("")
    (tmp_path / "qemu-aarch64").write_text("enabled\nflags: POF\n")
    kernel = _Kernel(tmp_path)
    with emulation.interpreter(tmp_path, kernel.mount):
        pass
    assert (tmp_path / "qemu-aarch64").read_text() == "enabled\nflags: POF\n"
    assert not (tmp_path / "register").read_text() and not kernel.commands
    (tmp_path / "qemu-aarch64").write_text("enabled\nflags: OC\n")
    with pytest.raises(HostError, match="without the flag F"), emulation.interpreter(tmp_path, kernel.mount):
        pass


def test_only_one_check_at_a_time(tmp_path: Path) -> None:
    with (
        emulation.alone(tmp_path / "work"),
        pytest.raises(HostError, match="another check"),
        emulation.alone(tmp_path / "work"),
    ):
        pass
    with emulation.alone(tmp_path / "work"):
        pass


def test_a_failure_says_the_last_lines(tmp_path: Path) -> None:
    with pytest.raises(HostError, match=r"sh ended with exit code 3: one \| two$"):
        emulation.checked(["sh", "-c", "echo one; echo two >&2; exit 3"])
    assert emulation.checked(["echo", "well"]) == "well\n"


def test_what_is_mounted_into_is_not_removed(tmp_path: Path) -> None:
    folder, mounts = tmp_path / "root", tmp_path / "mounts"
    (folder / "proc").mkdir(parents=True)
    mounts.write_text(f"proc /proc proc rw 0 0\nproc {folder.resolve()}/proc proc rw 0 0\n")
    with pytest.raises(HostError, match=r"root/proc is mounted; run: umount"):
        emulation.remove(folder, mounts)
    assert (folder / "proc").is_dir()
    mounts.write_text("proc /proc proc rw 0 0\n")
    emulation.remove(folder, mounts)
    assert not folder.exists()
