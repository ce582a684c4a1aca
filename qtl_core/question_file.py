"""Questions about pictures with known answers, as a user writes them down: a JSON object on each line.

    {"image": "kitchen.jpg", "question": "Is the oven on?", "answer": "yes"}

``image`` is a file in the picture folder, or a path from there on; ``answer`` may be a list of texts of which
each is right. Other keys are left alone.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from .errors import PictureError, QuestionError

_NAMED: Final = 3
_END: Final = " .!"


@dataclass(frozen=True)
class Asked:
    """One question.

    Attributes:
        picture: the picture's file.
        text: the question.
        answers: each of them is right; at least one.
    """

    picture: Path
    text: str
    answers: tuple[str, ...]

    def right(self, reply: str) -> bool:
        """Whether a reply is one of the answers: letter case, spaces and a full stop at the end aside."""
        return _plain(reply) in map(_plain, self.answers)


def read_questions(path: Path, folder: Path) -> tuple[Asked, ...]:
    """Reads a file of questions.

    Args:
        path: JSON lines in UTF-8; blank lines are skipped.
        folder: that pictures are looked for in.

    Raises:
        QuestionError: unreadable, without a question, or a line that is none; its number is named.
        PictureError: pictures that are not there; the first few are named.
    """
    try:
        lines = path.read_bytes().split(b"\n")
    except OSError as error:
        raise QuestionError(f"the questions {path} cannot be read: {error.strerror}") from error
    found = tuple(
        _asked(line, f"{path} line {number}", folder) for number, line in enumerate(lines, 1) if line.strip()
    )
    if not found:
        raise QuestionError(
            f'{path} is empty; put a question on each line: {{"image": ..., "question": ..., "answer": ...}}'
        )
    missing = [one for one in dict.fromkeys(asked.picture for asked in found) if not one.is_file()]
    if missing:
        named = ", ".join(map(str, missing[:_NAMED]))
        more = f" and {len(missing) - _NAMED} more" if len(missing) > _NAMED else ""
        raise PictureError(
            f"{path} asks about pictures that are not there: {named}{more}; paths are from {folder} on"
        )
    return found


def share_right(asked: Sequence[Asked], replies: Sequence[str]) -> float:
    """Share of right replies, 0 to 1."""
    return sum(one.right(reply) for one, reply in zip(asked, replies, strict=True)) / len(asked)


def _asked(line: bytes, where: str, folder: Path) -> Asked:
    try:
        value: Any = json.loads(line)
    except (ValueError, RecursionError) as error:  # broken JSON and broken UTF-8 alike
        raise QuestionError(f"{where} is no JSON ({error})") from error
    if not isinstance(value, dict):
        raise QuestionError(f'{where} is no JSON object with "image", "question" and "answer"')
    for key in ("image", "question"):
        if not isinstance(value.get(key), str) or not value[key].strip():
            raise QuestionError(f'{where}: "{key}" must be a text that is not empty, not {value.get(key)!r}')
    answers = value.get("answer")
    answers = [answers] if isinstance(answers, str) else answers
    texts = isinstance(answers, list) and all(isinstance(one, str) and one.strip() for one in answers)
    if not answers or not texts:
        raise QuestionError(
            f'{where}: "answer" must be a text that is not empty, or a list of some, not '
            f"{value.get('answer')!r}"
        )
    return Asked(folder / value["image"], value["question"], tuple(answers))


def _plain(text: str) -> str:
    return " ".join(text.casefold().split()).rstrip(_END)
