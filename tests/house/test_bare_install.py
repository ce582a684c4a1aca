"""The device's install in fresh environments: the oldest of everything it promises, and the newest."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.house import environments
from tests.house.environments import Environment

pytestmark = pytest.mark.slow

ABSENT = ("torch", "transformers", "onnx", "onnxscript", "optimum", "safetensors", "tokenizers", "sklearn")


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[Path]:
    """A temporary folder that does not outlive the test: environments are large."""
    yield tmp_path
    shutil.rmtree(tmp_path, ignore_errors=True)


def _check(environment: Environment, root: Path, folder: Path) -> None:
    assert [name for name in ABSENT if environment.has(name)] == []
    where = environment.python("-c", "import qtl_core; print(qtl_core.__file__)", cwd=folder)
    assert str(environment.folder) in where
    output = environment.test(root, folder / "bare", ("core", "edge"))
    assert " passed" in output, output


def test_oldest(repo_root: Path, wheel: Path, folder: Path) -> None:
    python = environments.find_python("3.10")
    if python is None:
        pytest.skip("no Python 3.10 on this machine")
    environment = Environment.make(python, folder / "venv")
    lowest = environments.lowest_direct_pins(repo_root)
    assert "onnxruntime==1.19.*" in lowest
    environment.install(str(wheel), *lowest, "pytest", "hypothesis")
    _check(environment, repo_root, folder)


def test_newest(repo_root: Path, wheel: Path, folder: Path) -> None:
    _, python = environments.newest_python()
    environment = Environment.make(python, folder / "venv")
    environment.install(str(wheel), "pytest", "hypothesis")
    _check(environment, repo_root, folder)
