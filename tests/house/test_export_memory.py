"""benchmarks.export_memory: what it writes is a checkpoint; its goal holds where the decoder is larger."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("torch")
pytest.importorskip("onnxscript")
pytest.importorskip("benchmarks.export_memory", reason="the tests were copied without benchmarks/")

import torch

from benchmarks.export_memory import __main__ as main
from benchmarks.export_memory.random_checkpoint import SIZES, write
from qtl_core.nn.checkpoint import load_checkpoint

KEYS = {
    "quick", "geometry", "weights", "ratio", "ratio_beyond_all_imports", "goal", "seconds", "client_bytes",
    "decoder_bytes", "decoder_over_client", "server_bytes", "peak_bytes", "peak_bytes_by_stage",
    "python_bytes", "import_torch_bytes", "import_all_bytes", "codes_compared", "codes_differ",
    "answers_compared", "versions", "machine",
}  # fmt: skip


def test_the_checkpoint_is_one(tmp_path: Path) -> None:
    decoder = write(tmp_path / "mine", SIZES["tiny"], torch.bfloat16)
    checkpoint = load_checkpoint(tmp_path / "mine")
    assert decoder == 2 * sum(each.numel() for each in checkpoint.model.decoder.parameters())
    assert all(torch.isfinite(each).all() for each in checkpoint.model.parameters())


def test_stages_are_told_by_the_client_partition() -> None:
    result = {
        "geometry": "tiny", "weights": "random", "client_bytes": 100_000_000, "decoder_bytes": 700_000_000,
        "decoder_over_client": 7.0, "server_bytes": 700_000_000, "peak_bytes": 400_000_000,
        "import_torch_bytes": 200_000_000, "import_all_bytes": 300_000_000, "ratio": 2.0, "goal": 2.5,
        "ratio_beyond_all_imports": 1.0, "seconds": 3.0,
        "peak_bytes_by_stage": {"loading": 350_000_000, "exporting": 400_000_000},
    }  # fmt: skip
    lines = main.table(result).splitlines()
    assert "ratio 2.00 (goal: at most 2.5)" in lines[2]
    assert [line.split() for line in lines[3:]] == [["1.50", "loading"], ["2.00", "exporting"]]


@pytest.mark.slow
def test_memory_is_that_of_the_client_partition(
    repo_root: Path, source_env: dict[str, str], tmp_path: Path
) -> None:
    report = tmp_path / "memory.json"
    command = [sys.executable, "-m", "benchmarks.export_memory", "--quick", "--json", str(report)]
    done = subprocess.run(
        command, cwd=repo_root, env=source_env, capture_output=True, text=True, timeout=1800, check=False
    )
    assert done.returncode == 0, done.stderr
    told = json.loads(report.read_bytes())
    print(done.stdout)
    assert told.keys() == KEYS and told["quick"] is True
    assert told["decoder_over_client"] > 3 and told["client_bytes"] > 100_000_000
    assert told["codes_differ"] <= 1 and told["answers_compared"] == 0
    # With a client partition of 0.2 GB what is imported on the way counts nearly as much as the model.
    assert told["ratio_beyond_all_imports"] <= told["goal"]
