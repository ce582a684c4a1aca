"""``edge_runtime --help`` answers before onnxruntime could even be imported."""

from __future__ import annotations

import statistics
import subprocess
import sys
import time
from pathlib import Path

import pytest

_HEAVY = (
    "onnxruntime",
    "numpy",
    "zmq",
    "msgspec",
    "PIL",
    "importlib.metadata",
    "asyncio",
    "edge_runtime.client",
)
_LOADED = """
import sys
from edge_runtime.cli import main
sys.argv = ["edge_runtime", *{arguments!r}]
code = main()
print([name for name in {heavy!r} if name in sys.modules])
sys.exit(code)
"""


def _python(program: str, env: dict[str, str], root: Path) -> str:
    done = subprocess.run(
        [sys.executable, "-c", program],
        env=env,
        cwd=root,
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    return done.stdout


@pytest.mark.parametrize("arguments", [["--help"], ["ask", "--help"]])
def test_help_loads_nothing_heavy(arguments: list[str], source_env: dict[str, str], repo_root: Path) -> None:
    output = _python(_LOADED.format(arguments=arguments, heavy=_HEAVY), source_env, repo_root)
    assert output.startswith("Usage: edge_runtime")
    assert output.splitlines()[-1] == "[]"


def test_version_is_the_package_s(source_env: dict[str, str], repo_root: Path) -> None:
    program = "import sys, edge_runtime.cli as c; sys.argv[1:] = ['--version']; sys.exit(c.main())"
    wanted = _python("import qtl_core; print(qtl_core.__version__)", source_env, repo_root)
    assert _python(program, source_env, repo_root) == f"edge_runtime, version {wanted}"


def test_help_takes_less_than_importing_onnxruntime(source_env: dict[str, str], repo_root: Path) -> None:
    """The promise is half; this leaves room for a busy machine, and fails when laziness is lost."""
    programs = {
        "help": "import sys, edge_runtime.cli as c; sys.argv[1:] = ['--help']; sys.exit(c.main())",
        "onnxruntime": "import onnxruntime",
    }
    seconds: dict[str, list[float]] = {name: [] for name in programs}
    for _ in range(7):
        for name, program in programs.items():
            start = time.perf_counter()
            _python(program, source_env, repo_root)
            seconds[name].append(time.perf_counter() - start)
    ratio = statistics.median(seconds["help"]) / statistics.median(seconds["onnxruntime"])
    assert ratio < 0.8, seconds
