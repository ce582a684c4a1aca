"""GQA: questions made from scene graphs, with one answer each (arXiv 1902.09506)."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from qtl_core.errors import BenchmarkError

from .benchmark import Benchmark, Question, Replies, Scores, percent, plain_question
from .layout import Record, find, json_lines, json_object

_GOLD = "testdev_balanced_questions.json"


@dataclass(frozen=True)
class _Gold:
    answer: str
    structural: str
    semantic: str


class Gqa(Benchmark):
    """Reads ``llava_gqa_testdev_balanced.jsonl``, ``testdev_balanced_questions.json`` and ``images/``.

    The last two may also lie in ``data/``.
    """

    name: ClassVar[str] = "gqa"

    def read(self) -> Sequence[Question]:
        """The questions, each with its answer and types."""
        path = find(self.folder, "llava_gqa_testdev_balanced.jsonl")
        pictures = find(self.folder, "images", "data/images")
        gold = find(self.folder, _GOLD, f"data/{_GOLD}")
        known = json_object(gold).fields
        questions = [plain_question(record, pictures) for record in json_lines(path)]
        self._gold: list[_Gold] = []
        for question in questions:
            entry = known.get(str(question.id))
            if not isinstance(entry, dict):
                raise BenchmarkError(f"{question.where}: {gold} has no question {question.id}")
            self._gold.append(_gold(Record(f"{gold} question {question.id}", entry)))
        return questions

    def predictions(self, replies: Replies) -> dict[str, str]:
        """For GQA's ``eval.py --tier testdev_balanced``."""
        rows = [
            {"questionId": self.questions[index].id, "prediction": as_predicted(reply)}
            for index, reply in sorted(replies.items())
        ]
        return {"testdev_balanced_predictions.json": json.dumps(rows)}

    def score(self, replies: Replies) -> Scores:
        """Accuracy, over all and by answer type, structure and subject of the question."""
        right = {index: as_predicted(reply) == self._gold[index].answer for index, reply in replies.items()}
        kinds: dict[str, dict[str, list[bool]]] = {"answers": {}, "structural": {}, "semantic": {}}
        for index, good in right.items():
            gold = self._gold[index]
            open_or_not = "open" if gold.structural == "query" else "binary"
            for kind, value in zip(kinds, (open_or_not, gold.structural, gold.semantic), strict=True):
                kinds[kind].setdefault(value, []).append(good)
        grouped = {
            kind: {value: percent(sum(goods), len(goods)) for value, goods in sorted(values.items())}
            for kind, values in kinds.items()
        }
        answers = grouped.pop("answers")
        return {"accuracy": percent(sum(right.values()), len(right)), **answers, **grouped}


def as_predicted(reply: str) -> str:
    """An answer as GQA compares it: lower case, without full stops at its end."""
    return reply.rstrip(".").lower()


def _gold(record: Record) -> _Gold:
    types = record.fields.get("types")
    if not isinstance(types, dict):
        raise record.wrong("types", "an object")
    kind = Record(record.where, types)
    return _Gold(record.text("answer"), kind.text("structural"), kind.text("semantic"))
