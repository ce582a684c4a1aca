"""Megabytes and packages of the device's install.

    python -m benchmarks.install_size --json build/install.json

builds the wheel, installs it into a fresh environment with nothing else in it, and sums what lies on disk
there beyond the empty environment: with the bytecode that pip compiles, and without. ``--quick`` needs no
network: it sums the files of the same distributions in the environment it runs in, and says so.
"""

from __future__ import annotations

import json
import platform
import subprocess
import sys
import tempfile
from importlib import metadata
from pathlib import Path
from typing import Any, Final, TypeAlias

import click

from qtl_core.exits import run

GOAL_MB: Final = 150.0
DISTRIBUTION: Final = "qtl-edge"
Packages: TypeAlias = "dict[str, tuple[str, int, int]]"
"""Name -> version, bytes, and how many of these are bytecode."""
_ROOT: Final = Path(__file__).resolve().parent.parent

# Runs in the environment that is measured: bytes on disk, and of each distribution.
_MEASURE: Final = """
import json, os, sys
from importlib import metadata

sizes = {}
for top, _, names in os.walk(sys.prefix):
    for name in names:
        sizes[os.path.realpath(os.path.join(top, name))] = os.lstat(os.path.join(top, name)).st_size
packages = {}
for one in metadata.distributions():
    paths = {os.path.realpath(str(one.locate_file(file))) for file in one.files or ()}
    compiled = sum(sizes.get(path, 0) for path in paths if path.endswith(".pyc"))
    packages[one.metadata["Name"]] = [one.version, sum(sizes.get(path, 0) for path in paths), compiled]
compiled = sum(size for path, size in sizes.items() if path.endswith(".pyc"))
print(json.dumps({"bytes": sum(sizes.values()), "compiled": compiled, "packages": packages}))
"""


@click.command()
@click.option("--quick", is_flag=True, help="Sum what is installed here instead; the JSON says so.")
@click.option(
    "--json", "json_file", type=click.Path(path_type=Path), metavar="FILE", help="Write the numbers here."
)
def cli(quick: bool, json_file: Path | None) -> None:
    """Megabytes and packages of the device's install, beyond Python."""
    packages, total, compiled = installed_here() if quick else installed_afresh()
    result = {
        "quick": quick,
        "measured": "the distributions in this environment" if quick else "a fresh environment",
        "megabytes": round(total / 1e6, 1),
        "megabytes_without_bytecode": round((total - compiled) / 1e6, 1),
        "packages": len(packages),
        "goal_megabytes": GOAL_MB,
        "over_goal": round(total / 1e6 / GOAL_MB, 3),
        "by_package": {
            name: {
                "version": version,
                "megabytes": round(size / 1e6, 2),
                "bytecode_megabytes": round(bytecode / 1e6, 2),
            }
            for name, (version, size, bytecode) in packages.items()
        },
        "versions": {"python": platform.python_version(), "system": platform.system()},
        "machine": platform.machine(),
    }
    click.echo(table(result))
    if json_file is not None:
        json_file.parent.mkdir(parents=True, exist_ok=True)
        json_file.write_text(json.dumps(result, indent=1) + "\n", "utf-8")


def installed_afresh() -> tuple[Packages, int, int]:
    """What one install brings, all bytes it puts on disk, and how many of them are bytecode."""
    with tempfile.TemporaryDirectory(prefix="qtl-install-") as name:
        folder = Path(name)
        _run(sys.executable, "-m", "pip", "wheel", "-qq", "--no-deps", "-w", str(folder), str(_ROOT))
        (wheel,) = folder.glob("*.whl")
        _run(sys.executable, "-m", "venv", str(folder / "venv"))
        python = str(folder / "venv" / ("Scripts" if sys.platform == "win32" else "bin") / "python")
        empty = json.loads(_run(python, "-c", _MEASURE))
        # The exact pins are for Python 3.11 and newer.
        pins = ["--constraint", str(_ROOT / "constraints.txt")] if sys.version_info >= (3, 11) else []
        _run(python, "-m", "pip", "install", "-qq", "--disable-pip-version-check", *pins, str(wheel))
        full = json.loads(_run(python, "-c", _MEASURE))
    packages = {
        each: (version, size, bytecode)
        for each, (version, size, bytecode) in sorted(full["packages"].items())
        if each not in empty["packages"]
    }
    return packages, full["bytes"] - empty["bytes"], full["compiled"] - empty["compiled"]


def installed_here() -> tuple[Packages, int, int]:
    """The same of the distributions that the plain install needs, as they lie in this environment."""
    from packaging.requirements import Requirement

    packages: Packages = {}
    waiting = [DISTRIBUTION]
    while waiting:
        name = waiting.pop()
        found = metadata.distribution(name)
        if found.metadata["Name"] in packages:
            continue
        paths = {Path(str(found.locate_file(file))) for file in found.files or ()}
        files = {path: path.stat().st_size for path in paths if path.exists()}
        bytecode = sum(size for path, size in files.items() if path.suffix == ".pyc")
        packages[found.metadata["Name"]] = (found.version, sum(files.values()), bytecode)
        needs = [Requirement(text) for text in found.requires or ()]
        waiting += [need.name for need in needs if need.marker is None or need.marker.evaluate({"extra": ""})]
    _, sizes, bytecodes = zip(*packages.values(), strict=True)
    return dict(sorted(packages.items())), sum(sizes), sum(bytecodes)


def table(result: dict[str, Any]) -> str:
    """A line for each package, the largest first, and the sum."""
    rows = sorted(result["by_package"].items(), key=lambda row: -row[1]["megabytes"])
    lines = [
        f"{row['megabytes']:>8.1f} MB  {name} {row['version']} (bytecode {row['bytecode_megabytes']:.1f})"
        for name, row in rows
    ]
    lines.append(
        f"{result['megabytes']:>8.1f} MB  in {result['packages']} packages, {result['measured']}; "
        f"{result['megabytes_without_bytecode']:.1f} MB without bytecode (goal: at most "
        f"{result['goal_megabytes']:.0f} MB)"
    )
    return "\n".join(lines)


def _run(*command: str) -> str:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise click.ClickException(f"{' '.join(command[:5])} failed:\n{done.stderr.strip()}")
    return done.stdout


if __name__ == "__main__":
    sys.exit(run(lambda: cli.main(prog_name="python -m benchmarks.install_size", standalone_mode=False)))
