"""qtl-eval on published benchmarks: the real path, what it writes, and going on after a kill.

The tiny model's answers mean nothing; these tests are about the way there and back.
"""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from edge_runtime import EdgeClient
from qtl_core.errors import PictureError
from qtl_export.config import ExportConfig
from qtl_export.exporter import export
from qtl_training import real_path
from qtl_training.paper_benchmarks.benchmark import LONG
from qtl_training.paper_benchmarks.run import BENCHMARKS, evaluate_benchmark, table
from tests.training import miniature

NOBODY = "tcp://127.0.0.1:1"


@pytest.fixture(scope="module")
def bundle(tiny_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny model, set to take questions of up to 300 tokens."""
    folder = tmp_path_factory.mktemp("benchmarks")
    checkpoint = folder / "checkpoint"
    checkpoint.mkdir()
    for file in tiny_folder.iterdir():
        (checkpoint / file.name).write_bytes(file.read_bytes())
    settings = json.loads((checkpoint / "qtl.json").read_text("utf-8"))
    (checkpoint / "qtl.json").write_text(json.dumps({**settings, "max_question_tokens": 300}), "utf-8")
    export(ExportConfig(checkpoint=checkpoint, output=folder / "bundle", levels=4, validate=0))
    return folder / "bundle"


@pytest.fixture(scope="module")
def server(bundle: Path) -> Iterator[str]:
    with real_path.server(bundle, options=("--max-question", "8192", "--max-tokens", str(LONG))) as address:
        yield address


def _command(bundle: Path, *arguments: str | Path) -> list[str]:
    return [sys.executable, "-m", "qtl_training.eval_cli", "--bundle", str(bundle), *map(str, arguments)]


def _run(env: dict[str, str], command: list[str]) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command, env=env, capture_output=True, text=True, timeout=300, check=False)


def _answers(output: str | Path) -> list[dict[str, Any]]:
    return [json.loads(row) for row in (Path(output) / "answers.jsonl").read_text("utf-8").splitlines()]


@pytest.mark.parametrize("name", list(BENCHMARKS))
def test_answers_are_those_of_the_client_and_stand_in_the_order_of_the_questions(
    name: str, bundle: Path, server: str, tmp_path: Path
) -> None:
    folder = miniature.MAKE[name](tmp_path / "files")
    result = evaluate_benchmark(bundle, name, folder, output=tmp_path / "run", server=server, progress=False)
    benchmark = BENCHMARKS[name](folder)
    rows = _answers(tmp_path / "run")
    assert [row["question_id"] for row in rows] == [question.id for question in benchmark.questions]
    assert [row["prompt"] for row in rows] == [question.prompt for question in benchmark.questions]
    with EdgeClient(bundle, server) as client:
        for row, question in zip(rows, benchmark.questions, strict=True):
            if question.picture is not None:
                said = client.ask(question.picture, question.text, max_tokens=benchmark.max_tokens)
                assert row["text"] == said.text.strip()
                assert row["metadata"]["payload_bytes"] == said.payload_bytes
    replies = {index: row["text"] for index, row in enumerate(rows)}
    assert result["scores"] == benchmark.score(replies)
    assert result["n"] == result["asked"] == len(rows) and result["reused"] == result["refused"] == 0
    assert result["complete"] and result["payload_bytes"] > 0 and result["bytes_up"] > result["payload_bytes"]
    assert result["without_picture"] == sum(question.picture is None for question in benchmark.questions)
    assert json.loads((tmp_path / "run/result.json").read_text("utf-8")) == result
    for file, content in benchmark.predictions(replies).items():
        assert (tmp_path / "run" / file).read_text("utf-8") == content
    shown = table(result)
    assert shown.startswith(f"{name}: {len(rows)} questions") and "answers.jsonl" in shown
    assert (benchmark.scored_at in shown) if benchmark.scored_at else ("scored by" not in shown)


def test_the_command_starts_a_server_prints_json_and_asks_nothing_twice(
    bundle: Path, tmp_path: Path, source_env: dict[str, str]
) -> None:
    folder = miniature.pope(tmp_path / "pope")
    command = _command(bundle, "--data", "pope", folder, "--json")
    first = _run(source_env, command)
    assert (first.returncode, first.stderr) == (0, "")
    result = json.loads(first.stdout)
    assert (result["n"], result["asked"], result["bits"]) == (6, 6, 2)
    assert set(result["scores"]) == {"adversarial", "popular", "mean"}
    assert Path(result["output"]).parent == folder / "answers"
    # A server that is not there: the answers are.
    second = _run(source_env, [*command, "--server", NOBODY])
    assert second.returncode == 0
    assert json.loads(second.stdout) == {**result, "asked": 0, "reused": 6}


def test_a_killed_run_goes_on_where_it_was_and_its_server_ends_with_it(
    bundle: Path, tmp_path: Path, source_env: dict[str, str]
) -> None:
    folder = miniature.vqav2(tmp_path / "vqav2")
    rows = [
        {
            "question_id": i,
            "image": "COCO_test2015_000000262144.jpg",
            "text": f"What is {i}?",
            "category": "x",
        }
        for i in range(150)
    ]
    for name in ("test2015", "test-dev2015"):
        miniature.lines(folder / f"llava_vqav2_mscoco_{name}.jsonl", rows)
    output = tmp_path / "run"
    command = _command(bundle, "--data", "vqav2", folder, "--output", output, "--json")
    path = output / "answers.jsonl"
    with subprocess.Popen(
        command, env=source_env, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE
    ) as process:
        try:
            while process.poll() is None and not (path.exists() and path.read_bytes().count(b"\n") >= 2):
                time.sleep(0.02)
            children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
        finally:
            process.send_signal(signal.SIGKILL)
    assert process.returncode == -signal.SIGKILL, "the run was over before it could be killed"
    before = path.read_bytes()
    before = before[: before.rfind(b"\n") + 1]
    done = before.count(b"\n")
    assert 2 <= done < 150 and children
    deadline = time.monotonic() + 60
    while any(_alive(int(child)) for child in children) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not any(_alive(int(child)) for child in children)

    again = _run(source_env, command)
    assert again.returncode == 0, again.stderr
    result = json.loads(again.stdout)
    assert (result["reused"], result["asked"], result["n"]) == (done, 150 - done, 150)
    assert path.read_bytes().startswith(before)
    assert [row["question_id"] for row in _answers(output)] == list(range(150))
    assert len(json.loads((output / "vqav2_submission.json").read_text("utf-8"))) == 150


def _alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def test_a_trial_of_a_few_questions_is_a_start(bundle: Path, server: str, tmp_path: Path) -> None:
    folder = miniature.mme(tmp_path / "mme")
    trial = evaluate_benchmark(bundle, "mme", folder, server=server, limit=3, progress=False)
    assert (trial["n"], trial["asked"], trial["questions"], trial["complete"]) == (3, 3, 8, False)
    assert set(trial["scores"]["perception"]) == {"score", "OCR"}
    assert "3 questions of 8: a part only" in table(trial)
    whole = evaluate_benchmark(bundle, "mme", folder, server=server, progress=False)
    assert (whole["n"], whole["asked"], whole["reused"], whole["complete"]) == (8, 5, 3, True)
    # A trial after the whole is over its own questions only.
    again = evaluate_benchmark(bundle, "mme", folder, server=NOBODY, limit=3, progress=False)
    assert again["scores"] == trial["scores"] and len(_answers(again["output"])) == 8


def test_a_question_that_is_too_long_is_a_wrong_answer_and_not_the_end(
    bundle: Path, server: str, tmp_path: Path
) -> None:
    folder = miniature.mm_vet(tmp_path)
    path = folder / "llava-mm-vet.jsonl"
    first, second = path.read_text("utf-8").splitlines()
    long_question = json.dumps({**json.loads(first), "text": "Why " * 1000 + "?"})
    longest_question = json.dumps({**json.loads(first), "text": "Why " * 3000 + "?"})
    path.write_text(f"{long_question}\n{second}\n{longest_question}\n", "utf-8")
    result = evaluate_benchmark(bundle, "mm-vet", folder, server=server, progress=False)
    assert (result["refused"], result["n"]) == (2, 3)
    rows = _answers(result["output"])
    assert [row["metadata"]["finish"] == "refused" for row in rows] == [True, False, True]
    assert rows[0]["text"] == rows[2]["text"] == "" and "tokens" in rows[0]["metadata"]["refused"]
    assert "bytes" in rows[2]["metadata"]["refused"]
    assert "2 refused by the server" in table(result)


def test_a_model_that_takes_no_question_is_not_scored(
    bundle: Path, tmp_path: Path, source_env: dict[str, str]
) -> None:
    folder = miniature.mm_vet(tmp_path)
    path = folder / "llava-mm-vet.jsonl"
    row = json.loads(path.read_text("utf-8").splitlines()[0])
    miniature.lines(path, [{**row, "text": "Why " * 1000, "question_id": i} for i in range(2)])
    done = _run(source_env, _command(bundle, "--data", "mm-vet", folder))
    assert done.returncode == 6 and done.stdout == "" and len(done.stderr.splitlines()) == 1
    assert "refused all 2 questions" in done.stderr and "tokens" in done.stderr
    assert not list(tmp_path.rglob("result.json"))


def test_a_broken_picture_keeps_the_answers_before_it(bundle: Path, server: str, tmp_path: Path) -> None:
    folder = miniature.pope(tmp_path)
    whole = (folder / "val2014/b.jpg").read_bytes()
    (folder / "val2014/b.jpg").write_bytes(whole[:100])
    with pytest.raises(PictureError, match=r"val2014/b.jpg"):
        evaluate_benchmark(bundle, "pope", folder, output=tmp_path / "run", server=server, progress=False)
    # Questions about one picture are asked together: the three about a.jpg.
    assert sorted(row["metadata"]["index"] for row in _answers(tmp_path / "run")) == [0, 1, 4]
    (folder / "val2014/b.jpg").write_bytes(whole)
    result = evaluate_benchmark(
        bundle, "pope", folder, output=tmp_path / "run", server=server, progress=False
    )
    assert (result["reused"], result["asked"]) == (3, 3)


def test_changed_questions_are_another_run(
    bundle: Path, server: str, tmp_path: Path, source_env: dict[str, str]
) -> None:
    folder = miniature.mm_vet(tmp_path)
    evaluate_benchmark(bundle, "mm-vet", folder, server=server, progress=False)
    path = folder / "llava-mm-vet.jsonl"
    path.write_text(path.read_text("utf-8").replace("x in", "y in"), "utf-8")
    done = _run(source_env, _command(bundle, "--data", "mm-vet", folder, "--server", NOBODY))
    assert done.returncode == 3 and done.stdout == ""
    assert len(done.stderr.splitlines()) == 1 and "holds answers of another run: questions" in done.stderr


@pytest.mark.parametrize(
    ("arguments", "code", "says"),
    [
        (["--data", "pope"], 2, "needs the FOLDER"),
        (["somewhere"], 2, "take no FOLDER"),
        (["--data", "pope", "somewhere", "--split", "test"], 2, "--split means nothing to --data pope"),
        (["--data", "pope", "somewhere", "--each-type", "1"], 2, "--each-type means nothing"),
        (["--limit", "1"], 2, "--limit means nothing to --data digits"),
        (["--output", "x"], 2, "--output means nothing to --data digits"),
        (["--data", "chess", "somewhere"], 2, "chess"),
        (["--data", "pope", "somewhere"], 3, "there is no folder somewhere"),
    ],
)
def test_a_command_line_that_does_not_fit(
    arguments: list[str], code: int, says: str, bundle: Path, source_env: dict[str, str]
) -> None:
    done = _run({**source_env, "COLUMNS": "200"}, _command(bundle, *arguments))
    assert done.returncode == code and says in done.stderr and "Traceback" not in done.stderr


def test_help_shows_how_it_is_called(source_env: dict[str, str]) -> None:
    done = _run(source_env, [sys.executable, "-m", "qtl_training.eval_cli", "--help"])
    assert "qtl-eval --bundle bundle --data pope eval/pope" in done.stdout
    assert all(name in done.stdout for name in BENCHMARKS)


def test_a_folder_that_cannot_be_written_is_said_before_anything_is_asked(
    bundle: Path, tmp_path: Path, source_env: dict[str, str]
) -> None:
    folder = miniature.mm_vet(tmp_path)
    (tmp_path / "taken").touch()
    command = _command(bundle, "--data", "mm-vet", folder, "--output", tmp_path / "taken", "--server", NOBODY)
    done = _run(source_env, command)
    assert done.returncode == 9 and "--output" in done.stderr and len(done.stderr.splitlines()) == 1
    assert not (folder / "answers").exists()
