"""doctor, bench and selftest as commands: what they print, keep and write, and how they end."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from edge_runtime import cli, cold
from qtl_core.errors import HostError, ServerUnavailable
from tests.edge import tiny
from tests.edge.peer import ScriptedServer

Serve = Callable[..., ScriptedServer]


@dataclass
class Outcome:
    code: int
    out: str
    err: str


Run = Callable[..., Outcome]


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    """A client half with golden pictures, and variants of which one may be chosen."""
    files = {
        "client.near.onnx": tiny.variant("near"),
        "client.far.onnx": tiny.variant("far"),
        "golden.npz": tiny.golden(),
    }
    tiny.write_client(tmp_path / "client", files=files)
    return tmp_path / "client"


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    def runs(*args: object) -> Outcome:
        monkeypatch.setattr(sys, "argv", ["edge_runtime", *map(str, args)])
        code = cli.main()
        captured = capsys.readouterr()
        return Outcome(code, captured.out, captured.err)

    return runs


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> list[tuple[Any, ...]]:
    """Cold starts that are none: fresh processes are tried once, below."""
    started: list[tuple[Any, ...]] = []

    def start(*args: Any, link: Any = None) -> cold.Cold:
        started.append((*args, link))
        return cold.Cold(seconds=1.25, answer_seconds=None, resident=50_000_000, peak=60_000_000)

    monkeypatch.setattr(cold, "start", start)
    return started


def test_doctor_prints_one_line_for_each_thing(run: Run, bundle: Path, serve: Serve) -> None:
    outcome = run("doctor", "--bundle", bundle, "--server", serve().endpoint)
    lines = outcome.out.splitlines()
    assert outcome.code == 0, outcome.out
    assert lines[-1] == "no problems"
    assert all(line.startswith("ok  ") for line in lines[:-1])


def test_doctor_ends_with_the_code_of_the_first_problem(run: Run, bundle: Path, nobody: str) -> None:
    # The bundle is named before the command, the server after it.
    outcome = run("--bundle", bundle, "doctor", "--server", nobody, "--timeout", "0.2")
    assert outcome.code == 5
    (bad,) = [line for line in outcome.out.splitlines() if line.startswith("BAD ")]
    assert "start qtl-server there" in bad
    assert outcome.out.splitlines()[-1] == "1 problem"
    outcome = run("--bundle", bundle, "doctor", "--json", "--server", nobody, "--timeout", "0.2")
    told = json.loads(outcome.out)
    assert outcome.code == told["exit_code"] == 5
    assert told["problems"] == 1
    assert [check["name"] for check in told["checks"] if not check["ok"]] == ["server"]


def test_bench_keeps_the_fastest_whose_codes_are_right(
    run: Run, bundle: Path, state: Path, serve: Serve, image: Path, quick: list[tuple[Any, ...]]
) -> None:
    outcome = run("bench", "--bundle", bundle, "--seconds", "0.05", "--threads", "1", "--json")
    assert outcome.code == 0, outcome.err
    told = json.loads(outcome.out)
    assert [row["variant"] for row in told["rows"]] == ["fp32", "far", "near"]
    assert [row["acceptable"] for row in told["rows"]] == [True, False, True]
    assert "by 2 levels" in told["rows"][1]["why_not"]
    acceptable = [row for row in told["rows"] if row["acceptable"]]
    assert told["chosen"] == min(acceptable, key=lambda row: row["ms"])
    assert len(quick) == len(told["cold_starts"]) == 3
    (path,) = (state / "choices").iterdir()
    assert str(path) in outcome.err
    kept = json.loads(path.read_bytes())
    assert (kept["variant"], kept["threads"]) == (told["chosen"]["variant"], 1)

    server = serve()
    asked = run("ask", "--bundle", bundle, "--server", server.endpoint, "--image", image, "how many?")
    assert asked.out == "four red\n"
    said = f"using what bench chose: {kept['variant']} on CPUExecutionProvider, 1 thread"
    assert said in asked.err.splitlines()
    for own in (("--threads", 0), ("--variant", "fp32"), ("--provider", "CPUExecutionProvider")):
        asked = run(
            "ask", "--bundle", bundle, "--server", server.endpoint, *own, "--image", image, "how many?"
        )
        assert asked.code == 0
        assert "bench" not in asked.err
    path.write_bytes(b"{}")
    asked = run("ask", "--bundle", bundle, "--server", server.endpoint, "--image", image, "how many?")
    assert "not using what bench chose: its file is damaged" in asked.err


def test_the_variant_that_was_named_is_the_one_that_runs(
    run: Run, bundle: Path, serve: Serve, image: Path
) -> None:
    payloads = []
    for name in ("fp32", "far"):
        server = serve()
        arguments = ("ask", "--bundle", bundle, "--server", server.endpoint, "--variant", name)
        assert run(*arguments, "--image", image, "how many?").code == 0
        payloads.append(server.requests[0].payloads["v"])
    assert payloads[0] != payloads[1]
    outcome = run(
        "ask", "--bundle", bundle, "--server", server.endpoint, "--variant", "x", "--image", image, "?"
    )
    assert outcome.code == 3
    assert "it has fp32, far, near" in outcome.err


def test_bench_prints_a_table(run: Run, bundle: Path, state: Path, quick: list[tuple[Any, ...]]) -> None:
    outcome = run(
        "bench", "--bundle", bundle, "--seconds", "0.05", "--threads", "1", "--variant", "fp32", "--no-store"
    )
    head, row, cold_line = outcome.out.splitlines()
    assert head.split()[:3] == ["variant", "provider", "threads"]
    assert re.match(r"\*  fp32 +CPU +1 +\d+\.\d\d +\d+\.\d\d  0 of 192", row)
    assert cold_line.startswith("fp32 on CPU: first codes 1.25 s after a cold start; 50 MB in memory, ")
    assert not state.exists()
    outcome = run("bench", "--bundle", bundle, "--variant", "int3")
    assert outcome.code == 3


def test_bench_refuses_when_nothing_is_right(
    run: Run, bundle: Path, state: Path, quick: list[tuple[Any, ...]]
) -> None:
    outcome = run("bench", "--bundle", bundle, "--seconds", "0.05", "--threads", "1", "--variant", "far")
    assert outcome.code == 9
    assert "refused: a code differs by 2 levels" in outcome.out
    assert not state.exists()
    near = ("bench", "--bundle", bundle, "--seconds", "0.05", "--threads", "1", "--variant", "near")
    assert run(*near, "--tolerance", "0").code == 9
    assert run(*near).code == 0


def test_bench_asks_the_server_where_one_is_named(
    run: Run, bundle: Path, quick: list[tuple[Any, ...]]
) -> None:
    one = ("--seconds", "0.05", "--threads", "1", "--variant", "fp32", "--no-store")
    run("bench", "--bundle", bundle, *one, "--server", "tcp://127.0.0.1:1", "--timeout", "3")
    link = {"server": "tcp://127.0.0.1:1", "key": None, "server_key": None, "timeout": 3.0, "insecure": False}
    assert quick == [(bundle, "fp32", "CPUExecutionProvider", 1, link)]


def test_a_cold_start_is_a_fresh_process(bundle: Path, serve: Serve, nobody: str) -> None:
    ticks = iter(range(0, 100, 10))
    link: dict[str, Any] = {"server": serve().endpoint}
    found = cold.start(bundle, "fp32", "CPUExecutionProvider", 1, link=link, clock=lambda: next(ticks))
    assert (found.seconds, found.answer_seconds) == (10, 20)
    if sys.platform == "linux":
        assert found.resident is not None and found.peak is not None
        assert 10_000_000 < found.resident <= found.peak
    with pytest.raises(HostError, match="no variant 'absent'"):
        cold.start(bundle, "absent", "CPUExecutionProvider", 1)
    with pytest.raises(ServerUnavailable, match=f"no server at {nobody}"):
        cold.start(bundle, "fp32", "CPUExecutionProvider", 1, link={"server": nobody, "timeout": 0.2})


def test_selftest_writes_a_report_to_share(
    run: Run, bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tiny.write_client(
        tmp_path / "whole", files={"golden.npz": tiny.golden(), "client.near.onnx": tiny.variant("near")}
    )
    report = tmp_path / "report.json"
    outcome = run("selftest", "--bundle", tmp_path / "whole", "-o", report)
    assert outcome.code == 0, outcome.err
    assert outcome.out.splitlines()[-1] == f"passed; the report is in {report}"
    told = json.loads(report.read_bytes())
    assert told["passed"] is True
    first, near = told["graphs"]
    assert (first["variant"], first["compared"], first["differ"], first["fault"]) == ("fp32", 192, 0, "")
    assert near["differ"] > 0 and near["largest"] == 1 and near["fault"] == ""
    assert first["median_ms"] > 0 and first["runs"] == 19
    assert told["cold_start_s"] > 0
    assert told["versions"].keys() == {"qtl-edge", "python", "numpy", "onnxruntime", "zmq", "msgspec", "PIL"}
    assert told["throttling"].keys() == {"before", "after"}
    if sys.platform == "linux":
        assert told["memory"]["peak_bytes"] >= told["memory"]["resident_bytes"] > 0
    # Nothing about who ran it, or where.
    text = report.read_text("utf-8")
    assert str(tmp_path) not in text
    assert str(Path.home()) not in text.replace('"/"', "")


def test_selftest_fails_where_codes_come_out_otherwise(
    run: Run, bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, quick: list[tuple[Any, ...]]
) -> None:
    monkeypatch.chdir(tmp_path)
    outcome = run("selftest", "--bundle", bundle, "--json")
    assert outcome.code == 9
    assert "far on CPUExecutionProvider: a code differs by 2 levels" in outcome.err
    told = json.loads(outcome.out)
    assert told["passed"] is False
    assert json.loads((tmp_path / "selftest.json").read_bytes()) == told


def test_selftest_needs_golden_pictures_and_a_place_to_write(
    run: Run, half: Path, bundle: Path, tmp_path: Path
) -> None:
    outcome = run("selftest", "--bundle", half)
    assert outcome.code == 4
    assert "without --validate 0" in outcome.err
    outcome = run("selftest", "--bundle", bundle, "-o", tmp_path / "absent" / "report.json")
    assert outcome.code == 9
