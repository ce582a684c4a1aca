"""``qtl-export inspect --bench``: seconds a picture on a device, from that device's own measurement."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from edge_runtime import cold
from edge_runtime.cli import cli as device
from qtl_core import exits
from qtl_export.cli import main
from tests.export.conftest import Export

CPU, CUDA = "CPUExecutionProvider", "CUDAExecutionProvider"


def row(variant: str, ms: float | None, threads: int = 4, **more: Any) -> dict[str, Any]:
    whole = {"variant": variant, "provider": CPU, "threads": threads, "ms": ms, "acceptable": ms is not None}
    return {**whole, "runs": 9, **more}


def bench_file(folder: Path, gflop: float | None = 2.0, **changes: Any) -> Path:
    rows = [
        row("fp32", 100.0),
        row("fp32", 150.0, 2),
        row("int8-arm64", 40.0),
        row("int8-other", 1.0, acceptable=False),
        row("fp32", 20.0, 0, provider=CUDA),
        row("fp16", None),
    ]
    machine = {"board": "Raspberry Pi 5 Model B", "cpu": "Cortex-A76", "memory": 8_000_000_000, "cores": 4}
    said = {"machine": machine, "bundle": {"model": "timed", "gflop": gflop}, "rows": rows, "chosen": rows[2]}
    file = folder / "bench.json"
    file.write_text(json.dumps({**said, **changes}))
    return file


def inspected(capsys: pytest.CaptureFixture[str], *options: object) -> dict[str, Any]:
    assert main(["inspect", *map(str, options), "--json"]) == 0
    said: dict[str, Any] = json.loads(capsys.readouterr().out)
    return said


def test_rates_are_scaled_to_this_checkpoints_operations(
    checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    said = inspected(capsys, checkpoint, "--bench", bench_file(tmp_path))
    share = said["gflop"] / 2.0
    paces = said["bench"]["paces"]
    assert [(one["variant"], one["provider"], one["threads"]) for one in paces] == [
        ("fp32", CUDA, 0),
        ("int8-arm64", CPU, 4),
        ("fp32", CPU, 4),
    ]
    assert [one["seconds"] for one in paces] == pytest.approx([0.02 * share, 0.04 * share, 0.1 * share])
    assert [one["gflop_per_s"] for one in paces] == pytest.approx([100, 50, 20])
    assert [one["chosen"] for one in paces] == [False, True, False]
    assert said["bench"]["device"] == "Raspberry Pi 5 Model B" and said["bench"]["fits"] is True
    assert "times more operations: a rough guide" in said["bench"]["assumed"]


def test_what_does_not_fit_into_memory_is_said(
    checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    machine = {"board": "unknown", "cpu": "Cortex-A53", "memory": 1000}
    file = bench_file(tmp_path, 1e-6, machine=machine)
    assert main(["inspect", str(checkpoint), "--bench", str(file)]) == 0
    out = capsys.readouterr().out
    assert "on Cortex-A53" in out and "does not fit into" in out
    assert "int8-arm64 on CPU, 4 threads" in out and "times fewer operations: a rough guide" in out


def test_a_real_measurement_of_the_same_checkpoint(
    exported: Export,
    checkpoint: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    bundle, _ = exported(4)
    monkeypatch.setattr(
        cold,
        "start",
        lambda *args, **more: cold.Cold(seconds=1, answer_seconds=None, resident=None, peak=None),
    )
    options = ["--threads", "1", "--provider", CPU, "--seconds", "0.2", "--no-store", "--json"]
    command = ["--bundle", str(bundle / "client"), "bench", *options]
    assert exits.run(lambda: device.main(args=command, standalone_mode=False)) == 0
    measured = json.loads(capsys.readouterr().out)
    file = tmp_path / "here.json"
    file.write_text(json.dumps(measured))
    said = inspected(capsys, checkpoint, "--bench", file)
    assert measured["bundle"]["gflop"] == pytest.approx(said["gflop"])
    (pace,) = said["bench"]["paces"]
    assert pace["chosen"] and pace["seconds"] == pytest.approx(measured["chosen"]["ms"] / 1000)
    assert json.loads((bundle / "server" / "manifest.json").read_text())["gflop"] == 0


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"gflop": None}, "timed, does not say its GFLOP; export it again"),
        ({"rows": []}, "no graph made the codes it should"),
        ({"rows": "none"}, "is no output of edge_runtime bench --json"),
    ],
)
def test_files_that_say_too_little(
    checkpoint: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    changes: dict[str, Any],
    named: str,
) -> None:
    file = bench_file(tmp_path, **changes)
    assert main(["inspect", str(checkpoint), "--bench", str(file)]) == 3
    assert named in capsys.readouterr().err
    file.unlink()
    assert main(["inspect", str(checkpoint), "--bench", str(file)]) == 3
    assert "cannot read" in capsys.readouterr().err
