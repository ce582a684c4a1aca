"""What the emulated system runs: codes, the device's tests and commands, and the sum of its sizes."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Final, TypeAlias

import msgspec

from qtl_core.errors import HostError
from tests.aarch64.emulation import Root, Running
from tests.aarch64.installing import PYTHON
from tests.aarch64.plan import HERE, THERE

Each: TypeAlias = "Callable[[int], object]"
WORK: Final = "/work"
"""The work folder, in the system."""
_SUITE: Final = "/suite"
_ENV: Final = {"OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "passive", "QTL_TIER": "bare"}
_ENCODE: Final = "tests/aarch64/encode.py"
_COPIED: Final = ("tests", "docs", "deploy", "benchmarks", "pyproject.toml", "constraints.txt", "README.md")
FOLDERS: Final = ("tests/core", "tests/edge")
_LONG: Final = "minutes each under emulation"
LEFT_OUT: Final = {
    **{
        f"tests/core/test_entropy.py::{name}": _LONG
        for name in (
            "test_a_long_payload_says_how_it_is_coded",
            "test_corruptions_of_long_payloads",
            "test_every_truncation_and_every_extension_raises",
            "test_large_pictures_far_cheaper_than_their_tables_expect",
            "test_long_payloads",
            "test_noise_as_a_long_payload",
            "test_pictures_far_cheaper_than_their_tables_expect",
            "test_ten_thousand_corruptions",
        )
    },
    "tests/edge/test_start.py::test_help_takes_less_than_importing_onnxruntime": (
        "since both times that are compared are the emulator's"
    ),
}
"""Tests that cannot run there, and why."""
_COMMANDS: Final = ("doctor", "selftest")
# They end with the code of what they found, and have said it by then.
_ANY: Final = tuple(range(10))
_SUMMARY: Final = re.compile(r"(?P<n>\d+) (?P<what>passed|failed|skipped|deselected|errors?)")
_FAILED: Final = re.compile(r"^(?:FAILED|ERROR) (\S+)", re.MULTILINE)
_PERCENT: Final = re.compile(r"\[ *(\d+)%\]$", re.MULTILINE)


class Tests(msgspec.Struct, frozen=True, kw_only=True):
    """What pytest said.

    Attributes:
        passed: how many tests.
        skipped: how many, as in every bare install: they need what a device does not have.
        failed: names of those that failed.
        left_out: names of those that were not run, and why.
    """

    passed: int
    skipped: int
    failed: list[str]
    left_out: dict[str, str]


class Machine(msgspec.Struct, frozen=True, kw_only=True):
    """One of the two processors.

    Attributes:
        architecture: as Python says.
        system: operating system.
        versions: of Python and the packages.
    """

    architecture: str
    system: str
    versions: dict[str, str]


class Size(msgspec.Struct, frozen=True, kw_only=True):
    """The device's install on aarch64.

    Attributes:
        megabytes: as pip leaves it, bytecode included.
        megabytes_without_bytecode: the same, with ``pip install --no-compile``.
        by_package: name -> megabytes, bytecode included.
    """

    megabytes: float
    megabytes_without_bytecode: float
    by_package: dict[str, float]


def copy(checkout: Path, root: Root) -> None:
    """Copies the tests and what they read, without the sources: what is installed is what is tested."""
    folder = root.path(_SUITE)
    shutil.rmtree(folder, ignore_errors=True)
    ignore = shutil.ignore_patterns("__pycache__")
    for name in _COPIED:
        if (checkout / name).is_dir():
            shutil.copytree(checkout / name, folder / name, ignore=ignore)
        else:
            shutil.copy2(checkout / name, folder / name)


def start_tests(root: Root, folder: str, output: Path) -> AbstractContextManager[Running]:
    """Starts the tests of one folder.

    Args:
        root: the emulated system.
        folder: one of ``FOLDERS``.
        output: where what pytest says goes.
    """
    deselected = [word for name in LEFT_OUT for word in ("--deselect", name)]
    command = [PYTHON, "-m", "pytest", "-q", "-p", "no:cacheprovider", *deselected, folder]
    return root.start(command, output, cwd=_SUITE, env=_ENV)


def percent(output: str) -> int:
    """How much of the tests is done, by what pytest has said so far."""
    found = _PERCENT.findall(output)
    return int(found[-1]) if found else 0


def parse(outputs: Sequence[str]) -> Tests:
    """What pytest's last lines and its summaries say.

    Args:
        outputs: of ``pytest -q -ra``, one for each time it ran.
    """
    passed = skipped = 0
    failed: list[str] = []
    for output in outputs:
        last = next((line for line in reversed(output.splitlines()) if " in " in line), "")
        counts = {match["what"]: int(match["n"]) for match in _SUMMARY.finditer(last)}
        passed += counts.get("passed", 0)
        skipped += counts.get("skipped", 0)
        failed += _FAILED.findall(output)
    return Tests(passed=passed, skipped=skipped, failed=failed, left_out=LEFT_OUT)


class Selftest(msgspec.Struct, frozen=True, kw_only=True):
    """What the device's own commands said of one bundle.

    Attributes:
        bundle: name of the bundle.
        passed: whether ``edge_runtime selftest`` ended well.
        compared: codes of the golden pictures, over all graphs.
        differ: how many are not what they should be.
        faults: what is over its bound.
        problems: what ``edge_runtime doctor`` found.
    """

    bundle: str
    passed: bool
    compared: int
    differ: int
    faults: list[str]
    problems: list[str]


def selftest(root: Root, bundle: str) -> Selftest:
    """``edge_runtime doctor`` and ``edge_runtime selftest`` of one bundle.

    Args:
        root: the emulated system.
        bundle: its name in the work folder.

    Raises:
        HostError: one of them did not say what it found.
    """
    client = f"{WORK}/bundles/{bundle}/client"
    doctor, test = ([PYTHON, "-m", "edge_runtime", name, "--bundle", client, "--json"] for name in _COMMANDS)
    found = json.loads(root.run(doctor, env=_ENV, ends=_ANY))
    told = json.loads(root.run([*test, "-o", f"{WORK}/selftest.json"], env=_ENV, ends=_ANY))
    rows = told["graphs"]
    return Selftest(
        bundle=bundle,
        passed=told["passed"],
        compared=sum(row["compared"] for row in rows),
        differ=sum(row["differ"] for row in rows),
        faults=[f"{row['variant']}: {row['fault']}" for row in rows if row["fault"]],
        problems=[f"{one['name']}: {one['said']}" for one in found["checks"] if not one["ok"]],
    )


def encode(root: Root, jobs: int, each: Each) -> None:
    """Runs ``encode`` there; its results are in the work folder.

    Args:
        root: the emulated system.
        jobs: how many processes.
        each: called with how many further pictures are done.
    """
    command = [PYTHON, f"{_SUITE}/{_ENCODE}", WORK, THERE, str(jobs)]
    root.run(command, env=_ENV, each=lambda line: each(int(line.split()[1])))


def encode_here(checkout: Path, work: Path, jobs: int, each: Each) -> None:
    """Runs ``encode`` on this machine.

    Args:
        checkout: whose code runs.
        work: the work folder.
        jobs: how many processes.
        each: called with how many further pictures are done.

    Raises:
        HostError: it failed; what it said stands above.
    """
    command = [sys.executable, str(checkout / _ENCODE), str(work), HERE, str(jobs)]
    env = {**os.environ, **_ENV, "PYTHONPATH": str(checkout)}
    with subprocess.Popen(command, env=env, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            for line in process.stdout:
                each(int(line.split()[1]))
        except BaseException:
            process.kill()
            raise
    if process.returncode:
        raise HostError(f"encoding on this machine ended with exit code {process.returncode}; see above")


def machine(folder: Path) -> Machine:
    """What ``encode`` said of the machine it ran on.

    Args:
        folder: of its results.
    """
    return msgspec.json.decode((folder / "machine.json").read_bytes(), type=Machine)


def install_size(root: Root) -> Size:
    """Megabytes of the device's packages there, as pip installed them."""
    report = f"{WORK}/install.json"
    root.run([PYTHON, "-m", "benchmarks.install_size", "--quick", "--json", report], cwd=_SUITE, env=_ENV)
    told = json.loads(root.path(report).read_bytes())
    return Size(
        megabytes=told["megabytes"],
        megabytes_without_bytecode=told["megabytes_without_bytecode"],
        by_package={name: one["megabytes"] for name, one in told["by_package"].items()},
    )
