"""A user's questions: lines that are read, those that are refused by their number, and what is right."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from qtl_core.errors import PictureError, QuestionError
from qtl_core.question_file import Asked, read_questions, share_right

GOOD = {"image": "a.png", "question": "what is it?", "answer": "a cat"}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "pictures" / "more").mkdir(parents=True)
    for name in ("a.png", "more/b.png"):
        (tmp_path / "pictures" / name).write_bytes(b"")
    return tmp_path / "pictures"


def write(folder: Path, *lines: str) -> Path:
    file = folder.parent / "asked.jsonl"
    file.write_text("\n".join(lines), "utf-8")
    return file


def test_lines_are_read_in_order(folder: Path) -> None:
    several = {"image": "more/b.png", "question": "how many?", "answer": ["2", "two"], "id": 7}
    found = read_questions(write(folder, json.dumps(GOOD), "", json.dumps(several), ""), folder)
    assert found == (
        Asked(folder / "a.png", "what is it?", ("a cat",)),
        Asked(folder / "more/b.png", "how many?", ("2", "two")),
    )


@pytest.mark.parametrize(
    ("reply", "right"),
    [("2", True), (" Two.\n", True), ("TWO", True), ("two  of", False), ("12", False), ("", False)],
)
def test_what_is_right(reply: str, right: bool) -> None:
    assert Asked(Path("a"), "how many?", ("2", "two")).right(reply) is right


def test_share() -> None:
    asked = [Asked(Path("a"), "?", ("yes",)), Asked(Path("a"), "?", ("no",))]
    assert share_right(asked, ["Yes", "yes"]) == 0.5
    assert share_right(asked, ["yes.", "no"]) == 1.0


@pytest.mark.parametrize(
    ("second", "says"),
    [
        ("{", "line 2 is no JSON"),
        ("[1]", "line 2 is no JSON object"),
        ("[" * 100_000, "line 2 is no JSON"),
        (json.dumps({**GOOD, "image": 3}), 'line 2: "image" must be a text'),
        (json.dumps({**GOOD, "question": " "}), 'line 2: "question" must be a text'),
        (json.dumps({"image": "a.png", "question": "?"}), 'line 2: "answer" must be a text'),
        (json.dumps({**GOOD, "answer": []}), 'line 2: "answer" must be a text'),
        (json.dumps({**GOOD, "answer": ["yes", 1]}), 'line 2: "answer" must be a text'),
        (json.dumps({**GOOD, "answer": ""}), 'line 2: "answer" must be a text'),
    ],
)
def test_a_line_that_is_no_question_is_named(folder: Path, second: str, says: str) -> None:
    with pytest.raises(QuestionError, match=says):
        read_questions(write(folder, json.dumps(GOOD), second), folder)


def test_files_that_hold_nothing(folder: Path) -> None:
    with pytest.raises(QuestionError, match="is empty; put a question on each line"):
        read_questions(write(folder, "", " "), folder)
    with pytest.raises(QuestionError, match="cannot be read"):
        read_questions(folder / "none.jsonl", folder)


def test_missing_pictures_are_named(folder: Path) -> None:
    lines = [
        json.dumps({**GOOD, "image": name}) for name in ("a.png", "x.png", "x.png", "y.png", "z.png", "w.png")
    ]
    with pytest.raises(PictureError, match=r"x\.png, .*y\.png, .*z\.png and 1 more; paths are from"):
        read_questions(write(folder, *lines), folder)
