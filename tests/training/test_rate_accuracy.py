"""The comparison: what is chosen, what is claimed, and that nothing is computed twice."""

from __future__ import annotations

import json
import math
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("benchmarks.rate_accuracy", reason="benchmarks run in a checkout")
pytest.importorskip("vector_quantize_pytorch", reason="rivals need the extra [bench]")
pytest.importorskip("zstandard", reason="rivals need the extra [bench]")

from click.testing import CliRunner

from benchmarks.rate_accuracy.__main__ import cli
from benchmarks.rate_accuracy.claims import bytes_at, claims
from benchmarks.rate_accuracy.jobs import Frame, Measure, Train
from benchmarks.rate_accuracy.report import in_short
from benchmarks.rate_accuracy.rows import collected
from benchmarks.rate_accuracy.store import Store, checkpoint_hash, key, read_json
from benchmarks.rate_accuracy.study import choose
from qtl_core.errors import CheckpointError, StorageError
from qtl_training.rivals.methods import Setting, Variant, at_rates
from qtl_training.rivals.trial import Conditions


def row(name: str, size: float, macro: float, *, net: float | None = None, **more: Any) -> dict[str, Any]:
    family = more.pop("family", name.partition("-")[0])
    return {
        "row": name,
        "method": name,
        "family": family,
        "kind": "rival",
        "knob": 16,
        "payload_bytes_mean": size,
        "net_bytes_mean": net,
        "accuracy": {"macro": macro},
        "overhead_bytes_max": 50,
        **more,
    }


def test_bytes_at_an_accuracy_are_interpolated_on_the_best_of_the_curve() -> None:
    curve = [row("a", 100, 90.0), row("b", 400, 94.0), row("worse", 300, 89.0), row("c", 401, 93.0)]
    assert bytes_at(curve, 92.0) == {
        "bytes": pytest.approx(math.sqrt(100 * 400)), "where": "between", "rows": ["a", "b"]
    }  # fmt: skip
    assert bytes_at(curve, 94.0) == {"bytes": 400, "where": "at", "rows": ["b"]}
    assert bytes_at(curve, 80.0) == {"bytes": 100, "where": "below", "macro": 90.0}
    assert bytes_at(curve, 95.0) == {"bytes": 400, "where": "beyond", "best_macro": 94.0}
    assert bytes_at([row("x", 500, 90.0, net=100.0)], 90.0)["bytes"] == 100


def test_claims_are_what_the_rows_say() -> None:
    rows = [
        row("fp16", 9216, 96.0),
        row("shipped-fp16", 9216, 96.0),
        row("paper-2bit", 1152, 95.2),
        row("small", 20, 95.6),
        row("tiny", 8, 94.0),
        row("jpeg-1", 500, 95.0, net=180.0),
        row("jpeg-2", 700, 96.0, net=360.0),
        row("webp-1", 300, 95.6, net=130.0),
        row("vq-36", 54, 95.5, family="vq"),
        row("vq-9", 14, 93.0, family="vq"),
    ]
    found = {one["claim"].partition(",")[0]: one for one in claims(rows, 36)}
    held = [one["holds"] for one in claims(rows, 36)]
    assert held == [True, True, True, False, True, True, True, None, True]
    best = found["small: at most 1/6 of the best picture codec's bytes"]
    assert best["best"] == "webp" and best["share_of_bytes"] == pytest.approx(20 / 130)
    assert best["rivals_need"]["jpeg"]["where"] == "between"
    worse = [{**one, "payload_bytes_mean": 30} if one["method"] == "small" else one for one in rows]
    changed = {one["claim"].partition(",")[0]: one["holds"] for one in claims(worse, 36)}
    assert not changed["small: at most 1/6 of the best picture codec's bytes"]
    assert all(one["holds"] is None for one in claims(rows[:1], 36)[:-1])
    # A codec that is better from its smallest file on might need less: nothing is claimed.
    above = [*rows, row("avif-1", 600, 99.0, net=300.0)]
    open_ended = {one["claim"].partition(",")[0]: one["holds"] for one in claims(above, 36)}
    assert open_ended["small: at most 1/6 of the best picture codec's bytes"] is None


def test_what_is_beaten_is_not_chosen() -> None:
    codec = Variant(
        method="jpeg", kind="picture", knobs=tuple(Setting(side=96, quality=q) for q in (1, 2, 3))
    )
    knobs = [{"side": 96, "quality": q, "chroma": "4:2:0"} for q in (1, 2, 3)]
    rows = [
        row("jpeg-1", 400, 90.0, net=100, knob=knobs[0]),
        row("jpeg-2", 390, 91.0, net=110, knob=knobs[1]),
        row("jpeg-3", 380, 90.5, net=120, knob=knobs[2]),
    ]
    ours = Variant(method="small", kind="ours")
    other = Variant(method="nf", name="x", knobs=(4,), unit="{}bit")
    # Unbeaten in one of its two forms is enough.
    both = [row("nf-x-2bit", 50, 80.0, knob=4), row("nf-x-2bit-coded", 30, 80.0, family="nf-coded", knob=4)]
    third = Variant(method="nf", name="y", knobs=(4,), unit="{}bit")
    beaten = [row("nf-y-2bit", 40, 80.0, knob=4), row("nf-y-2bit-coded", 39, 80.0, family="nf-coded", knob=4)]
    results = [{"rows": rows}, {"rows": [row("small", 9, 1.0)]}, {"rows": both}, {"rows": beaten}]
    chosen = choose([codec, ours, other, third], results)
    assert chosen == [(codec, codec.knobs[:2]), (ours, ()), (other, (4,)), (third, (4,))]
    # y is smaller at fixed length, but may be too bad.
    for macro, kept in ((76.0, ["x", "y"]), (74.0, ["x"])):
        worse = [{**one, "accuracy": {"macro": macro}} for one in beaten]
        chosen = choose([other, third], [{"rows": both}, {"rows": worse}])
        assert [variant.name for variant, _ in chosen] == kept


def test_each_variant_keeps_its_better_learning_rate() -> None:
    variant = Variant(method="vq", knobs=(4096,))
    slow, fast = at_rates(variant, (1e-4, 4e-4))
    results = [{"rows": [row("vq", 14, accuracy, knob=4096)]} for accuracy in (97.0, 96.0)]
    assert choose([slow, fast], results) == [(slow, (4096,))]
    assert choose([slow, fast], results[::-1]) == [(fast, (4096,))]
    assert at_rates(Variant(method="small", kind="ours")) == [Variant(method="small", kind="ours")]


def test_rows_are_means_over_seeds() -> None:
    variant = Variant(method="onebit", knobs=(2,))

    def result(seed: int, macro: float) -> dict[str, Any]:
        sizes = dict.fromkeys(("payload_bytes_p95", "wire_bytes_mean", "wire_bytes_curve_mean"), 60.0)
        one = row("onebit", 10.0 + seed, macro, types={"sum": macro}, **sizes)
        del one["net_bytes_mean"]
        seconds = {"train": 1.0}
        return {
            "variant": "onebit",
            "lr": 0.0,
            "seed": seed,
            "steps": 5,
            "rows": [one],
            "cpu_seconds": seconds,
        }

    (found,) = collected([variant], [result(1, 70.0)], [result(1, 80.0), result(2, 90.0)])
    assert found["accuracy"]["macro"] == 85 and found["accuracy_sd"]["macro"] == pytest.approx(math.sqrt(50))
    assert found["payload_bytes_mean"] == 11.5 and found["seeds"] == [1, 2]
    assert found["chosen_by"] == {"split": "validation", "macro": 70.0, "payload_bytes_mean": 11.0}
    assert found["net_bytes_mean"] is None
    (alone,) = collected([variant], [result(1, 70.0)], [result(1, 80.0)])
    assert alone["accuracy_sd"] == {"macro": None}


def test_the_short_table_takes_the_smallest_near_16_bit() -> None:
    rows = [
        row("fp16", 9216, 96.0),
        row("a-1", 10, 94.0, family="a"),
        row("a-2", 20, 95.2, family="a"),
        row("a-3", 30, 96.0, family="a"),
        row("b-1", 10, 80.0, family="b"),
        row("b-2", 20, 85.0, family="b"),
        row("small", 12, 95.0, kind="ours"),
    ]
    assert {one["method"] for one in in_short(rows)} == {"fp16", "a-2", "b-2", "small"}


def test_files_are_written_whole_or_not_at_all(tmp_path: Path) -> None:
    store = Store(tmp_path)
    path = store.path("results", "x", ".json", a=1)
    assert path != store.path("results", "x", ".json", a=2)
    assert key({"a": 1, "b": (1, 2)}) == key({"b": [1, 2], "a": 1})

    def fails(part: Path) -> None:
        part.write_text("half")
        raise OSError(28, "No space left on device")

    with pytest.raises(StorageError, match="No space left"):
        store.write(path, fails)
    assert list(tmp_path.rglob("*.*")) == []
    store.write_json(path, {"a": 1})
    assert read_json(path) == {"a": 1}
    with pytest.raises(CheckpointError, match=r"model\.safetensors is missing"):
        checkpoint_hash(tmp_path)


def test_names_follow_everything_a_result_depends_on(tiny_folder: Path, tmp_path: Path) -> None:
    recipes = Path(__file__).parents[2] / "training" / "recipes"
    variant = Variant(method="onebit", settings={"code_dim": 8}, knobs=(2,))

    def names(**change: Any) -> tuple[Path, Path]:
        conditions = Conditions(start=tiny_folder, recipes=recipes, steps=change.get("steps", 2), scenes=40)
        frame = Frame(
            conditions=conditions,
            start_hash=change.get("start", checkpoint_hash(tiny_folder)),
            each_type=change.get("each_type", 1),
            work=tmp_path,
        )
        other = change.get("variant", variant)
        job = Measure(variant=other, seed=change.get("seed", 1), split="test")
        return job.path(frame), Train(variant=other, seed=job.seed).path(frame)

    assert names() == names()
    for change in ({"steps": 3}, {"start": "0"}, {"seed": 2},
                   {"variant": Variant(method="onebit", settings={"code_dim": 9}, knobs=(2,))}):  # fmt: skip
        assert not set(names()) & set(names(**change)), change
    assert names()[0] != names(each_type=2)[0] and names()[1] == names(each_type=2)[1]


def test_wrong_commands_are_one_line() -> None:
    runner = CliRunner()
    answer = runner.invoke(cli, ["--methods", "fp16,gzip"])
    assert answer.exit_code == 2 and "no method 'gzip'" in answer.output
    answer = runner.invoke(cli, ["--help"])
    assert answer.exit_code == 0 and "--quick" in answer.output and "Examples" in answer.output


@pytest.mark.slow
def test_a_killed_comparison_goes_on(tiny_folder: Path, tmp_path: Path, source_env: dict[str, str]) -> None:
    work, out = tmp_path / "work", tmp_path / "rate.json"
    command = [
        sys.executable, "-m", "benchmarks.rate_accuracy", "--quick",
        "--methods", "fp16,onebit,jpeg,paper-2bit",
        "--start", str(tiny_folder), "--steps", "2", "--seeds", "2", "--jobs", "2",
        "--work", str(work), "--json", str(out), "--plot", str(tmp_path / "rate.png"),
    ]  # fmt: skip
    root, env = Path(__file__).parents[2], {**source_env, "OMP_WAIT_POLICY": "passive"}
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    with subprocess.Popen(command, cwd=root, env=env, start_new_session=True, **quiet) as process:  # type: ignore[call-overload]
        while process.poll() is None and not list((work / "results").glob("*.json")):
            time.sleep(0.05)
        assert process.poll() is None, "the run ended before it could be killed"
        os.killpg(process.pid, signal.SIGKILL)
    kept = times(work)
    assert kept and not out.exists()

    subprocess.run(command, cwd=root, env=env, check=True, capture_output=True, timeout=900)
    found = json.loads(out.read_text())
    assert {path: times(work)[path] for path in kept} == kept
    assert (
        found["quick"] is True and found["seeds"] == [1, 2] and (tmp_path / "rate.png").stat().st_size > 1000
    )
    for one in found["rows"]:
        assert one["payload_bytes_mean"] <= one["wire_bytes_mean"] < one["wire_bytes_curve_mean"]
        assert (
            one["seeds"] == [1, 2]
            and one["accuracy_sd"]["macro"] is not None
            and one["accuracy"]["macro"] >= 0
        )
    names = {one["method"] for one in found["rows"]}
    assert {"fp16", "onebit-d16", "onebit-d16-coded", "paper-2bit", "paper-2bit-coded"} <= names

    done = times(work)
    subprocess.run(command, cwd=root, env=env, check=True, capture_output=True, timeout=900)
    assert times(work) == done and json.loads(out.read_text())["rows"] == found["rows"]


def times(work: Path) -> dict[Path, int]:
    """When each whole file was written."""
    return {
        path: path.stat().st_mtime_ns for path in work.rglob("*") if path.is_file() and path.name[0] != "."
    }
