"""The folder of a run: what a kill leaves, and whose answers are let in."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from qtl_core.errors import BenchmarkError, StorageError
from qtl_training.paper_benchmarks.answers import AnswerLine, Cost, RunIdentity, digest, open_answers
from qtl_training.paper_benchmarks.benchmark import Question

QUESTIONS = [
    Question(
        where=f"line {i}", id="same", text=f"what is {i}?", prompt=f"what is {i}?", picture=Path("a.png")
    )
    for i in range(4)
]
MINE = RunIdentity(benchmark="pope", fingerprint="f" * 32, questions=digest(QUESTIONS), max_tokens=128)


def _line(index: int, text: str) -> AnswerLine:
    return AnswerLine(
        question_id="same",
        prompt=QUESTIONS[index].prompt,
        text=text,
        answer_id=f"pope-{index}",
        model_id="tiny",
        metadata=Cost(index=index, finish="stop", payload_bytes=7),
    )


def test_answers_come_back_and_end_up_in_order(tmp_path: Path) -> None:
    with open_answers(tmp_path / "run", MINE, QUESTIONS) as answers:
        answers.append(_line(2, "zwei\n"))
        answers.append(_line(0, "null"))
    with open_answers(tmp_path / "run", MINE, QUESTIONS) as answers:
        assert {index: line.text for index, line in answers.lines.items()} == {2: "zwei\n", 0: "null"}
        answers.append(_line(1, "eins"))
        answers.sort()
    rows = [json.loads(row) for row in (tmp_path / "run/answers.jsonl").read_text("utf-8").splitlines()]
    assert [row["text"] for row in rows] == ["null", "eins", "zwei\n"]
    assert list(rows[0]) == ["question_id", "prompt", "text", "answer_id", "model_id", "metadata"]
    assert list((tmp_path / "run").glob("*.new")) == []


def test_every_cut_of_the_last_line_costs_that_answer_only(tmp_path: Path) -> None:
    with open_answers(tmp_path, MINE, QUESTIONS) as answers:
        answers.append(_line(0, "a"))
        first = (tmp_path / "answers.jsonl").read_bytes()
        answers.append(_line(3, "b"))
    whole = (tmp_path / "answers.jsonl").read_bytes()
    for size in range(len(first), len(whole)):
        (tmp_path / "answers.jsonl").write_bytes(whole[:size])
        with open_answers(tmp_path, MINE, QUESTIONS) as answers:
            assert list(answers.lines) == [0]
            answers.append(_line(3, "b"))
        assert (tmp_path / "answers.jsonl").read_bytes() == whole


@pytest.mark.parametrize(
    ("field", "value"),
    [("benchmark", "gqa"), ("fingerprint", "0" * 32), ("questions", "00"), ("max_tokens", 9)],
)
def test_answers_of_another_run_are_not_mixed_in(field: str, value: object, tmp_path: Path) -> None:
    with open_answers(tmp_path, MINE, QUESTIONS):
        pass
    other = RunIdentity(**{**{f: getattr(MINE, f) for f in RunIdentity.__struct_fields__}, field: value})
    with (
        pytest.raises(BenchmarkError, match=f"another run: {field} is .*--output"),
        open_answers(tmp_path, other, QUESTIONS),
    ):
        pass


def test_a_file_that_is_not_ours_is_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "answers.jsonl"
    path.write_text("{}\n")
    with pytest.raises(BenchmarkError, match="of another program"), open_answers(tmp_path, MINE, QUESTIONS):
        pass
    assert path.read_text() == "{}\n"


@pytest.mark.parametrize("row", ["{}", "no json", '{"question_id": 1}'])
def test_a_damaged_line_is_named_by_its_number(row: str, tmp_path: Path) -> None:
    with open_answers(tmp_path, MINE, QUESTIONS) as answers:
        answers.append(_line(0, "a"))
    path = tmp_path / "answers.jsonl"
    path.write_text(path.read_text("utf-8") + row + "\n", "utf-8")
    with (
        pytest.raises(BenchmarkError, match=r"answers.jsonl line 2 is no answer"),
        open_answers(tmp_path, MINE, QUESTIONS),
    ):
        pass


def test_an_answer_to_no_question_is_refused(tmp_path: Path) -> None:
    with open_answers(tmp_path, MINE, QUESTIONS) as answers:
        answers.append(_line(3, "a"))
    path = tmp_path / "answers.jsonl"
    whole = path.read_text("utf-8")
    for old, new in (('"index":3', '"index":4'), ('"question_id":"same"', '"question_id":"other"')):
        path.write_text(whole.replace(old, new), "utf-8")
        with (
            pytest.raises(BenchmarkError, match=r"line 1 answers question"),
            open_answers(tmp_path, MINE, QUESTIONS),
        ):
            pass


def test_a_damaged_identity_is_said(tmp_path: Path) -> None:
    (tmp_path / "run.json").write_text('{"benchmark": 1}')
    with pytest.raises(BenchmarkError, match=r"run.json is damaged"), open_answers(tmp_path, MINE, QUESTIONS):
        pass


def test_a_kill_before_the_first_byte_leaves_a_folder_that_works(tmp_path: Path) -> None:
    (tmp_path / "run.json").touch()
    with open_answers(tmp_path, MINE, QUESTIONS) as answers:
        assert answers.lines == {}
    assert json.loads((tmp_path / "run.json").read_text("utf-8"))["benchmark"] == "pope"


def test_one_run_at_a_time(tmp_path: Path) -> None:
    with (
        open_answers(tmp_path, MINE, QUESTIONS),
        pytest.raises(BenchmarkError, match="another qtl-eval is at work"),
        open_answers(tmp_path, MINE, QUESTIONS),
    ):
        pass


def test_a_place_that_cannot_be_a_folder(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(StorageError, match="--output"), open_answers(tmp_path / "file/run", MINE, QUESTIONS):
        pass


def test_the_digest_tells_questions_apart() -> None:
    other = Question(where="line 0", id="same", text="what is 0?", prompt="x", picture=None)
    assert len({digest(QUESTIONS), digest(QUESTIONS[:3]), digest([other, *QUESTIONS[1:]])}) == 3
