"""An aarch64 system to run things in: Debian in a folder, its programs interpreted by qemu.

Every command gets a mount and a process namespace of its own, so that whatever ends it (its own end, a
failure, Ctrl-C, a kill) leaves no mount and no process behind.
"""

from __future__ import annotations

import fcntl
import os
import platform
import shutil
import subprocess
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final, TextIO

from qtl_core.errors import HostError
from qtl_export.progress import Progress

SUITE: Final = "bookworm"
_PACKAGES: Final = ("python3", "python3-venv")
_QEMU: Final = "qemu-aarch64-static"
_TOOLS: Final = {"debootstrap": "debootstrap", _QEMU: "qemu-user-static", "unshare": "util-linux"}
"""Programs that are needed, and the Debian package of each."""
_BINFMT: Final = Path("/proc/sys/fs/binfmt_misc")
_ENTRY: Final = "qemu-aarch64"
# What an executable begins with: ELF, 64 bits, little endian; program or shared object; machine 183, aarch64.
_MAGIC: Final = r"\x7f\x45\x4c\x46\x02\x01\x01\x00\x00\x00\x00\x00\x00\x00\x00\x00\x02\x00\xb7\x00"
_MASK: Final = r"\xff\xff\xff\xff\xff\xff\xff\x00\xff\xff\xff\xff\xff\xff\xff\xff\xfe\xff\xff\xff"
_NAMESPACES: Final = ("unshare", "--mount", "--pid", "--fork", "--kill-child")
_PATH: Final = "/usr/sbin:/usr/bin:/sbin:/bin"
_LAST_LINES: Final = 8


def require() -> None:
    """Says what this machine lacks.

    Raises:
        HostError: it is no Linux, is aarch64 itself, or root or a program is missing.
    """
    if platform.system() != "Linux":
        raise HostError(f"the emulated system needs Linux, and this is {platform.system()}")
    if platform.machine() == "aarch64":
        raise HostError(
            "this machine is aarch64 itself: run `make test-bare` and `edge_runtime selftest` here instead"
        )
    if os.geteuid() != 0:
        raise HostError("making a Debian system in a folder needs root; run it with sudo")
    missing = [name for name in _TOOLS if shutil.which(name) is None]
    if missing:
        packages = " ".join(_TOOLS[name] for name in missing)
        raise HostError(f"{', '.join(missing)} not found; run: apt install {packages}")


def emulator() -> str:
    """Name and version of what interprets."""
    said = checked([_QEMU, "--version"]).splitlines()
    return said[0].strip()


@contextmanager
def alone(folder: Path) -> Iterator[None]:
    """Holds the work folder: two runs in one root would undo each other.

    Raises:
        HostError: another run holds it.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise HostError(
                f"another check is running in {folder}; wait for it, or name another --work"
            ) from error
        yield


@contextmanager
def interpreter(
    binfmt: Path = _BINFMT, mount: Callable[[Sequence[str]], str] | None = None
) -> Iterator[None]:
    """Has the kernel start aarch64 programs with qemu, and puts it back afterwards as it was.

    Args:
        binfmt: where binfmt_misc is.
        mount: runs ``mount`` and ``umount``.

    Raises:
        HostError: the kernel does not let us.
    """
    mount = checked if mount is None else mount
    entry = binfmt / _ENTRY
    mounted = registered = False
    try:
        if not (binfmt / "register").exists():
            mount(["mount", "-t", "binfmt_misc", "binfmt_misc", str(binfmt)])
            mounted = True
        if not entry.exists():
            # F: the interpreter is opened now, so that it need not lie in the root.
            line = f":{_ENTRY}:M::{_MAGIC}:{_MASK}:{shutil.which(_QEMU)}:F"
            try:
                (binfmt / "register").write_text(line)
            except OSError as error:
                raise HostError(f"cannot register {_QEMU} in {binfmt}: {error.strerror}") from error
            registered = True
        elif "F" not in _flags(entry.read_text()):
            raise HostError(
                f"{entry} is registered without the flag F, so that a chroot has no interpreter; "
                f"remove it with: echo -1 > {entry}"
            )
        yield
    finally:
        if registered:
            entry.write_text("-1")
        if mounted:
            # What others have open keeps it mounted, which harms nobody.
            with suppress(HostError):
                mount(["umount", str(binfmt)])


def _flags(entry: str) -> str:
    found = [line.partition(":")[2] for line in entry.splitlines() if line.startswith("flags:")]
    return found[0] if found else ""


@dataclass(frozen=True, kw_only=True)
class Root:
    """The system.

    Attributes:
        folder: its ``/``.
        log: where what its commands write to standard error goes.
    """

    folder: Path
    log: Path

    @classmethod
    def make(cls, folder: Path, log: Path, suite: str, mirror: str | None, progress: Progress) -> Root:
        """The system in a folder, made there if it is not yet: about ten minutes, 600 MB.

        Args:
            folder: where.
            log: where its commands' standard error goes.
            suite: Debian's name of the release.
            mirror: where Debian's packages come from; None leaves it to debootstrap.
            progress: where to show how far it is.

        Raises:
            HostError: debootstrap failed; its last lines are in the message.
        """
        made = cls(folder=folder, log=log)
        if folder.is_dir():
            return made
        partial = folder.with_name(f"{folder.name}.partial")
        remove(partial)
        with progress.stage("downloading the arm64 system"):
            include = f"--include={','.join(_PACKAGES)}"
            command = ["debootstrap", "--foreign", "--arch=arm64", "--variant=minbase", include, suite]
            checked([*command, str(partial), *([mirror] if mirror else [])])
        with progress.stage("setting the arm64 system up under emulation, about ten minutes"):
            second = ["/debootstrap/debootstrap", "--second-stage"]
            checked([*_NAMESPACES, "chroot", str(partial), *second])
        for archive in (partial / "var/cache/apt/archives").glob("*.deb"):
            archive.unlink()
        os.replace(partial, folder)
        return made

    def path(self, inside: str) -> Path:
        """Where a path of the system lies on this machine."""
        return self.folder / inside.lstrip("/")

    def run(
        self,
        command: Sequence[str],
        *,
        cwd: str = "/",
        env: dict[str, str] | None = None,
        ends: Sequence[int] = (0,),
        each: Callable[[str], object] = lambda line: None,
    ) -> str:
        """Runs a command in the system and returns its standard output.

        Args:
            command: program and arguments, with the system's own paths.
            cwd: folder of the system to run in.
            env: environment beyond PATH and HOME.
            ends: exit codes that are no failure.
            each: called with every line, as it comes.

        Raises:
            HostError: another exit code; the last lines it wrote are in the message.
        """
        lines = []
        with self.log.open("a", encoding="utf-8") as log:
            print(f"$ {' '.join(command)}", file=log, flush=True)
            start = log.tell()
            with self._popen(command, cwd, env, subprocess.PIPE, log) as process:
                try:
                    assert process.stdout is not None
                    for line in process.stdout:
                        lines.append(line)
                        each(line.rstrip("\n"))
                except BaseException:
                    process.kill()
                    raise
            log.writelines(lines)
        if process.returncode not in ends:
            with self.log.open(encoding="utf-8", errors="replace") as log:
                log.seek(start)
                said = log.read()
            raise _failed(command, process.returncode, said, self.log)
        return "".join(lines)

    @contextmanager
    def start(
        self, command: Sequence[str], output: Path, *, cwd: str = "/", env: dict[str, str] | None = None
    ) -> Iterator[Running]:
        """Starts a command in the system beside others; it ends with the context at the latest.

        Args:
            command: program and arguments, with the system's own paths.
            output: where what it prints goes.
            cwd: folder of the system to run in.
            env: environment beyond PATH and HOME.
        """
        with (
            output.open("w", encoding="utf-8") as sink,
            self._popen(command, cwd, env, sink, sink) as process,
        ):
            try:
                yield Running(command=tuple(command), process=process, output=output)
            finally:
                process.kill()

    def _popen(
        self,
        command: Sequence[str],
        cwd: str,
        env: dict[str, str] | None,
        stdout: int | TextIO,
        stderr: TextIO,
    ) -> subprocess.Popen[str]:
        # --mount-proc mounts the new namespace's own; onnxruntime refuses external data without one.
        wrapped = [*_NAMESPACES, f"--root={self.folder}", f"--wd={cwd}", "--mount-proc", *command]
        return subprocess.Popen(
            wrapped,
            env={"PATH": _PATH, "HOME": "/root", "LANG": "C.UTF-8", **(env or {})},
            stdin=subprocess.DEVNULL,
            stdout=stdout,
            stderr=stderr,
            # Ctrl-C is for us alone; we end it.
            start_new_session=True,
            text=True,
            encoding="utf-8",
            errors="replace",
        )


@dataclass(frozen=True, kw_only=True)
class Running:
    """A command that runs in the system.

    Attributes:
        command: program and arguments.
        process: the process that holds its namespaces.
        output: what it has printed so far.
    """

    command: tuple[str, ...]
    process: subprocess.Popen[str]
    output: Path

    def wait(self, seconds: float) -> bool:
        """Waits for its end, or so long; returns whether it has ended."""
        try:
            self.process.wait(seconds)
        except subprocess.TimeoutExpired:
            return False
        return True

    def said(self) -> str:
        """What it has printed so far."""
        return self.output.read_text("utf-8", "replace")

    def check(self, ends: Sequence[int]) -> None:
        """Holds its exit code against those that are no failure.

        Raises:
            HostError: it ended with another; the last lines it printed are in the message.
        """
        if self.process.returncode not in ends:
            raise _failed(self.command, self.process.returncode, self.said(), self.output)


def _failed(command: Sequence[str], code: int | None, said: str, log: Path) -> HostError:
    last = " | ".join(said.splitlines()[-_LAST_LINES:])
    return HostError(
        f"{command[0]} ended with exit code {code} in the emulated system (all of it: {log}): {last}"
    )


def remove(folder: Path, mounts: Path = Path("/proc/self/mounts")) -> None:
    """Removes a folder of ours, if it is there.

    Args:
        folder: which.
        mounts: what is mounted where, as the kernel says.

    Raises:
        HostError: something is mounted in it: its files are not ours to remove.
    """
    places = [Path(line.split()[1]) for line in mounts.read_text("utf-8").splitlines()]
    inside = [place for place in places if place.is_relative_to(folder.resolve())]
    if inside:
        raise HostError(f"{inside[0]} is mounted; run: umount {inside[0]}")
    if folder.exists():
        shutil.rmtree(folder)


def checked(command: Sequence[str]) -> str:
    """Runs a command of this machine and returns what it printed.

    Raises:
        HostError: it failed; its last lines are in the message.
    """
    done = subprocess.run(
        command,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    if done.returncode:
        said = [line.strip() for line in done.stdout.splitlines() if line.strip()]
        last = " | ".join(said[-3:]) or "it said nothing"
        raise HostError(f"{command[0]} ended with exit code {done.returncode}: {last}")
    return done.stdout
