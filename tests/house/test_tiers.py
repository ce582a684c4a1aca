"""Each extra by itself is enough for its own programs and tests."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

import pytest

from tests.house import environments
from tests.house.environments import Environment

pytestmark = pytest.mark.slow

# extra -> folders of tests it must run, what it brings, what it must not bring
TIERS = {
    "text": (("core", "edge"), "tokenizers", "torch"),
    "server": (("core", "edge", "nn", "server"), "torch", "onnx"),
    "export": (("core", "edge", "nn", "server", "export"), "onnx", "sklearn"),
    "train": (("core", "edge", "nn", "server", "export", "training"), "sklearn", ""),
}


@pytest.mark.parametrize("extra", TIERS)
def test_tier(extra: str, repo_root: Path, wheel: Path, tmp_path: Path) -> None:
    tests, brings, must_not_bring = TIERS[extra]
    environment = Environment.make(Path(sys.executable), tmp_path / "venv")
    pins = ("--constraint", str(repo_root / "constraints.txt"))
    try:
        if extra != "text":
            # Alone and pinned first: a looser request may bring gigabytes of CUDA.
            environment.install(*pins, environments.constraint(repo_root, "torch"))
        environment.install(*pins, f"{wheel}[{extra}]", "pytest", "hypothesis")
        assert environment.has(brings)
        assert not must_not_bring or not environment.has(must_not_bring)
        output = environment.test(repo_root, tmp_path / "tier", tests)
        assert " passed" in output, output
    finally:
        shutil.rmtree(tmp_path, ignore_errors=True)
