"""Fresh Python environments for the slow tests: find an interpreter, make a venv, install, run."""

from __future__ import annotations

import importlib.util
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

INSTALL_TIMEOUT_S = 1800.0
_PROBE = "import ensurepip, sys, venv; print('%d.%d' % sys.version_info[:2]); print(sys.executable)"


def find_python(version: str) -> Path | None:
    """An interpreter of that version (such as "3.10") on this machine, able to make environments."""
    candidates = [shutil.which(f"python{version}")]
    if f"{sys.version_info.major}.{sys.version_info.minor}" == version:
        candidates.insert(0, sys.executable)
    # pyenv's python3.x on PATH is a shim that refuses versions not chosen; pyenv itself knows where they are.
    if pyenv := shutil.which("pyenv"):
        answer = subprocess.run([pyenv, "prefix", version], capture_output=True, text=True, check=False)
        if answer.returncode == 0:
            candidates.append(str(Path(answer.stdout.strip()) / "bin" / f"python{version}"))
    for candidate in filter(None, candidates):
        probe = subprocess.run([candidate, "-c", _PROBE], capture_output=True, text=True, check=False)
        lines = probe.stdout.split("\n")
        if probe.returncode == 0 and lines[0] == version:
            return Path(lines[1])
    return None


def newest_python() -> tuple[str, Path]:
    """The newest interpreter on this machine that a device could run, and its version."""
    for minor in range(15, sys.version_info.minor, -1):
        if found := find_python(f"3.{minor}"):
            return f"3.{minor}", found
    return f"3.{sys.version_info.minor}", Path(sys.executable)


def build_wheel(root: Path, folder: Path) -> Path:
    """Builds the wheel of the checkout into a folder."""
    # The development environment has the pinned hatchling; any other lets pip fetch one.
    pinned = ["--no-build-isolation"] if importlib.util.find_spec("hatchling") else []
    run([sys.executable, "-m", "pip", "wheel", "-qq", "--no-deps", *pinned, "-w", str(folder), str(root)])
    (wheel,) = folder.glob("*.whl")
    return wheel


def constraint(root: Path, name: str) -> str:
    """The exact pin of one distribution, such as "torch==2.13.0"."""
    text = (root / "constraints.txt").read_text(encoding="utf-8")
    found = re.search(rf"^{re.escape(name)}==\S+$", text, re.MULTILINE)
    if found is None:
        raise LookupError(f"constraints.txt has no pin of {name}")
    return found.group(0)


def lowest_direct_pins(root: Path) -> list[str]:
    """The lower bound of every plain dependency in pyproject.toml, as pins such as "numpy==1.22.*"."""
    text = (root / "pyproject.toml").read_text(encoding="utf-8")
    block = text[text.index("\ndependencies = [") :]
    block = block[: block.index("\n]")]
    return [f"{name}=={bound}.*" for name, bound in re.findall(r'"([A-Za-z0-9-]+)>=([0-9.]+)"', block)]


@dataclass(frozen=True, kw_only=True)
class Environment:
    """A virtual environment in a folder of its own; nothing of the checkout is importable in it."""

    folder: Path

    @classmethod
    def make(cls, python: Path, folder: Path) -> Environment:
        """Makes an empty environment with an up-to-date pip."""
        run([str(python), "-m", "venv", str(folder)])
        made = cls(folder=folder)
        made.install("--upgrade", "pip")
        return made

    @property
    def scripts(self) -> Path:
        """Where its programs are."""
        return self.folder / "bin"

    @property
    def variables(self) -> dict[str, str]:
        """The process environment of someone who activated it."""
        env = {k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "PYTHONHOME", "QTL_TIER")}
        return {
            **env,
            "PATH": f"{self.scripts}{os.pathsep}{env.get('PATH', '')}",
            "OMP_WAIT_POLICY": "passive",
        }

    def install(self, *requirements: str) -> None:
        """Runs `pip install`."""
        self.python("-m", "pip", "install", "-qq", "--disable-pip-version-check", *requirements)

    def python(self, *arguments: str, cwd: Path | None = None) -> str:
        """Runs its interpreter; returns what it printed."""
        return run([str(self.scripts / "python"), *arguments], env=self.variables, cwd=cwd)

    def has(self, module: str) -> bool:
        """Whether a module could be imported in it."""
        program = "import importlib.util, sys; print(importlib.util.find_spec(sys.argv[1]) is not None)"
        return self.python("-c", program, module).strip() == "True"

    def test(self, root: Path, folder: Path, tests: Sequence[str], *options: str) -> str:
        """Runs folders of tests against what is installed here, from a folder without the sources.

        Args:
            root: the checkout the tests come from.
            folder: an empty folder; the tests and what they read (docs, golden data) are copied to it.
            tests: names of folders under tests/.
            options: more options for pytest.
        """
        for name in ("tests", "docs", "training/recipes", "pyproject.toml", "constraints.txt", "README.md"):
            _copy(root / name, folder / name)
        there = [f"tests/{name}" for name in tests if (root / "tests" / name).is_dir()]
        return self.python("-m", "pytest", "-q", "-p", "no:cacheprovider", *options, *there, cwd=folder)


def run(command: Sequence[str], *, env: dict[str, str] | None = None, cwd: Path | None = None) -> str:
    """Runs a command to its end and returns its standard output; fails with everything it said."""
    done = subprocess.run(
        list(command),
        env=env,
        cwd=cwd,
        capture_output=True,
        text=True,
        timeout=INSTALL_TIMEOUT_S,
        check=False,
    )
    if done.returncode:
        said = f"{done.stdout[-8000:]}\n{done.stderr[-8000:]}"
        raise AssertionError(f"{' '.join(command)} ended with exit code {done.returncode}\n{said}")
    return done.stdout


def wait_until(done: Callable[[], bool], timeout_s: float, alive: Callable[[], bool]) -> None:
    """Waits for another process to get somewhere, as long as it lives."""
    deadline = time.monotonic() + timeout_s
    while not done():
        if not alive():
            raise AssertionError("the process ended before it was ready")
        if time.monotonic() > deadline:
            raise AssertionError(f"not ready within {timeout_s:.0f} s")
        time.sleep(0.05)


def _copy(source: Path, target: Path) -> None:
    if source.is_dir():
        shutil.copytree(source, target, ignore=shutil.ignore_patterns("__pycache__"), dirs_exist_ok=True)
    elif source.exists():
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(source, target)
