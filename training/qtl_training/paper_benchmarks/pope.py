"""POPE: is there a ... in the picture? Yes or no, for objects picked in three ways (arXiv 2305.10355)."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from qtl_core.errors import BenchmarkError

from .benchmark import Benchmark, Question, Replies, Scores, percent, plain_question
from .layout import find, json_lines

_QUESTIONS = "llava_pope_test.jsonl"
_LABELS = "coco/coco_pope_{}.json"


@dataclass(frozen=True)
class _Asked:
    category: str
    question: str
    yes: bool


class Pope(Benchmark):
    """Reads ``llava_pope_test.jsonl``, ``coco/coco_pope_*.json`` and ``val2014/``."""

    name: ClassVar[str] = "pope"

    def read(self) -> Sequence[Question]:
        """The questions; labels stand in one file for each category, in the same order."""
        path = find(self.folder, _QUESTIONS)
        pictures = find(self.folder, "val2014")
        records = json_lines(path)
        categories = dict.fromkeys(record.text("category") for record in records)
        labels = {
            category: iter(json_lines(find(self.folder, _LABELS.format(category)))) for category in categories
        }
        self._asked: list[_Asked] = []
        for record in records:
            category = record.text("category")
            label = next(labels[category], None)
            if label is None:
                raise BenchmarkError(
                    f"{record.where} has no label: {_LABELS.format(category)} is shorter than the questions "
                    f"of {category!r}; use the version that docs/benchmarks.md names"
                )
            # The texts differ in spelling between the two files, the pictures do not.
            if label.text("image") != record.text("image"):
                raise BenchmarkError(
                    f"{label.where} is about {label.text('image')}, {record.where} about "
                    f"{record.text('image')}; use the version of the labels that docs/benchmarks.md names"
                )
            if label.text("label") not in ("yes", "no"):
                raise label.wrong("label", "'yes' or 'no'")
            self._asked.append(_Asked(category, label.text("text"), label.text("label") == "yes"))
        for left in labels.values():
            label = next(left, None)
            if label is not None:
                raise BenchmarkError(
                    f"{label.where} has no question in {path}; use the version that docs/benchmarks.md names"
                )
        return [plain_question(record, pictures) for record in records]

    def predictions(self, replies: Replies) -> dict[str, str]:
        """For POPE's own ``evaluate.py``: a file for each category, question and answer a line."""
        files: dict[str, str] = {}
        for index, reply in sorted(replies.items()):
            asked = self._asked[index]
            line = json.dumps({"question": asked.question, "answer": reply}) + "\n"
            name = f"coco_pope_{asked.category}_answers.json"
            files[name] = files.get(name, "") + line
        return files

    def score(self, replies: Replies) -> Scores:
        """Accuracy, F1, precision and recall of "yes", and share of "yes": by category, and their mean."""
        by_category: dict[str, list[tuple[bool, bool]]] = {}
        for index, reply in sorted(replies.items()):
            asked = self._asked[index]
            by_category.setdefault(asked.category, []).append((says_yes(reply), asked.yes))
        scores: Scores = {category: _rates(pairs) for category, pairs in by_category.items()}
        keys = ("accuracy", "f1", "precision", "recall", "yes_share")
        mean = (
            {key: sum(group[key] for group in scores.values()) / len(scores) for key in keys}
            if scores
            else {}
        )
        return {**scores, "mean": mean}


def says_yes(reply: str) -> bool:
    """Whether an answer counts as yes: its first sentence has none of the words No, no and not."""
    first = reply.split(".")[0].replace(",", "")
    return not {"No", "no", "not"} & set(first.split(" "))


def _rates(pairs: Sequence[tuple[bool, bool]]) -> dict[str, float]:
    both = sum(said and true for said, true in pairs)
    said = sum(said for said, _ in pairs)
    true = sum(true for _, true in pairs)
    return {
        "n": len(pairs),
        "accuracy": percent(sum(said == true for said, true in pairs), len(pairs)),
        "f1": percent(2 * both, said + true),
        "precision": percent(both, said),
        "recall": percent(both, true),
        "yes_share": percent(said, len(pairs)),
    }
