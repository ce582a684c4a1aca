"""ScienceQA: school questions with choices, with and without a picture (arXiv 2209.09513)."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from qtl_core.errors import BenchmarkError

from .benchmark import LONG, ONE_LETTER, Benchmark, Question, Replies, Scores, percent
from .layout import Record, find, json_entries, json_object

_LETTERS = "ABCDE"
_MARK = "<image>"
_SENTENCE = re.compile(r"The answer is ([A-Z]).")


@dataclass(frozen=True)
class _Problem:
    choices: int
    answer: int


class ScienceQa(Benchmark):
    """Reads ``llava_test_CQM-A.json``, ``problems.json``, ``pid_splits.json`` and ``images/test/``."""

    name: ClassVar[str] = "scienceqa"
    max_tokens: ClassVar[int] = LONG

    def read(self) -> Sequence[Question]:
        """The questions of the test split."""
        path = find(self.folder, "llava_test_CQM-A.json")
        pictures = find(self.folder, "images/test")
        problems = json_object(find(self.folder, "problems.json"))
        splits = json_object(find(self.folder, "pid_splits.json"))
        test = set(splits.texts("test"))
        questions: list[Question] = []
        self._problems: list[_Problem] = []
        for record in json_entries(path):
            name = str(record.identity("id"))
            entry = problems.fields.get(name)
            if name not in test or not isinstance(entry, dict):
                raise BenchmarkError(
                    f"{record.where}: {problems.where} and the test split have no problem {name}"
                )
            self._problems.append(_problem(Record(f"{problems.where} problem {name}", entry)))
            asked = f"{_human(record).replace(_MARK, '').strip()}\n{ONE_LETTER}"
            picture = record.picture(pictures) if "image" in record.fields else None
            # LLaVA's scorer tells by this mark which questions had a picture.
            prompt = asked if picture is None else f"{_MARK}\n{asked}"
            questions.append(
                Question(where=record.where, id=name, text=asked, prompt=prompt, picture=picture)
            )
        self._left_out = sorted(test - {str(question.id) for question in questions})
        return questions

    def predictions(self, replies: Replies) -> dict[str, str]:
        """For ScienceQA's own ``evaluate_acc.py``: the chosen option of every problem, -1 for none."""
        chosen = {str(self.questions[i].id): self._chosen(i, reply) for i, reply in sorted(replies.items())}
        scores = self.score(replies)
        result = {
            "acc": scores["accuracy"],
            "correct": scores["correct"],
            "count": scores["n"],
            "results": chosen,
            "outputs": {str(self.questions[i].id): reply for i, reply in sorted(replies.items())},
        }
        return {"scienceqa_results.json": json.dumps(result, indent=2)}

    def score(self, replies: Replies) -> Scores:
        """Accuracy over all, over questions with a picture, and over those without.

        Once all were asked, problems of the test split that the question file leaves out count as wrong, and
        as without a picture, as in the published scorer.
        """
        right = {i: self._chosen(i, reply) == self._problems[i].answer for i, reply in replies.items()}
        pictured = [good for i, good in right.items() if self.questions[i].picture is not None]
        left_out = len(self._left_out) if self.complete(replies) else 0
        n, correct = len(right) + left_out, sum(right.values())
        without = n - len(pictured)
        return {
            "n": n,
            "correct": correct,
            "accuracy": percent(correct, n),
            "n_with_picture": len(pictured),
            "accuracy_with_picture": percent(sum(pictured), len(pictured)),
            "n_without_picture": without,
            "accuracy_without_picture": percent(correct - sum(pictured), without),
        }

    def _chosen(self, index: int, reply: str) -> int:
        letter = chosen_letter(reply)
        place = _LETTERS.find(letter) if letter else -1
        return place if place < self._problems[index].choices else -1


def chosen_letter(reply: str) -> str:
    """The letter an answer gives: alone, before a full stop, or in "The answer is X."; "" for none."""
    if len(reply) == 1 and reply in _LETTERS:
        return reply
    if reply[1:3] == ". " and reply[0] in _LETTERS:
        return reply[0]
    found = _SENTENCE.findall(reply)
    return found[0] if len(found) == 1 else ""


def _human(record: Record) -> str:
    turns = record.fields.get("conversations")
    if not isinstance(turns, list) or not turns or not isinstance(turns[0], dict):
        raise record.wrong("conversations", "a list that begins with the question")
    return Record(record.where, turns[0]).text("value")


def _problem(record: Record) -> _Problem:
    choices, answer = record.texts("choices"), record.fields.get("answer")
    if not isinstance(answer, int) or not 0 <= answer < min(len(choices), len(_LETTERS)):
        raise record.wrong("answer", "the place of one of its choices")
    return _Problem(len(choices), answer)
