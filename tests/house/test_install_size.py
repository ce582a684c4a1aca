"""benchmarks.install_size: what it sums is what the plain install needs, and nothing of the extras."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("benchmarks.install_size", reason="the tests were copied without benchmarks/")


def test_quick_sums_the_device_s_distributions(
    repo_root: Path, source_env: dict[str, str], tmp_path: Path
) -> None:
    report = tmp_path / "install.json"
    command = [sys.executable, "-m", "benchmarks.install_size", "--quick", "--json", str(report)]
    done = subprocess.run(
        command, cwd=repo_root, env=source_env, capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stderr
    told = json.loads(report.read_bytes())
    assert told["quick"] is True
    names = {name.lower() for name in told["by_package"]}
    assert {"qtl-edge", "numpy", "onnxruntime", "pyzmq", "msgspec", "pillow", "click"} <= names
    assert not names & {"torch", "transformers", "onnx", "safetensors", "tokenizers", "scipy", "tqdm"}
    assert told["packages"] == len(names)
    parts = sum(one["megabytes"] for one in told["by_package"].values())
    assert told["megabytes"] == pytest.approx(parts, abs=0.1 + 0.01 * len(names))
    assert 0 < told["megabytes_without_bytecode"] < told["megabytes"]
