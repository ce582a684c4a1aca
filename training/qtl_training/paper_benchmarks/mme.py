"""MME: two yes-or-no questions about each picture, in 14 tasks (arXiv 2306.13394)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import ClassVar, Final

from qtl_core.errors import BenchmarkError

from .benchmark import Benchmark, Question, Replies, Scores, percent, plain_question
from .layout import find, json_lines, text_lines

TASKS: Final = {
    "perception": (
        "existence",
        "count",
        "position",
        "color",
        "posters",
        "celebrity",
        "scene",
        "landmark",
        "artwork",
        "OCR",
    ),
    "cognition": ("commonsense_reasoning", "numerical_calculation", "text_translation", "code_reasoning"),
}
"""The tasks of each of the two sums, in MME's order."""

_RELEASE = "MME_Benchmark_release_version"
# What the two files add to the bare question.
_ADDED = ("Answer the question using a single word or phrase.", "Please answer yes or no.")
# How far into an answer "yes" or "no" is looked for.
_PREFIX = 4


@dataclass(frozen=True)
class _Asked:
    task: str
    file: str
    question: str
    label: str


class Mme(Benchmark):
    """Reads ``llava_mme.jsonl`` and ``MME_Benchmark_release_version/``, whose text files have the labels."""

    name: ClassVar[str] = "mme"

    def read(self) -> Sequence[Question]:
        """The questions, each with the label that the text file beside its picture has."""
        path = find(self.folder, "llava_mme.jsonl")
        release = find(self.folder, _RELEASE)
        questions = [plain_question(record, release) for record in json_lines(path)]
        labels: dict[Path, dict[str, tuple[str, str]]] = {}
        self._asked: list[_Asked] = []
        pairs: dict[tuple[str, str], list[Question]] = {}
        for question in questions:
            name = PurePosixPath(str(question.id))
            task, file = name.parts[0], name.name.split(".")[0] + ".txt"
            if (
                len(name.parts) < 2
                or ".." in name.parts
                or task not in TASKS["perception"] + TASKS["cognition"]
            ):
                raise BenchmarkError(f"{question.where}: {question.id!r} is no picture of one of MME's tasks")
            place = release / task / "questions_answers_YN" / file
            place = place if place.parent.is_dir() else release / task / file
            if place not in labels:
                labels[place] = _labels(place)
            found = labels[place].get(_bare(question.text))
            if found is None:
                raise BenchmarkError(f"{question.where}: {place} does not have this question")
            self._asked.append(_Asked(task, file, *found))
            pairs.setdefault((task, file), []).append(question)
        for both in pairs.values():
            if len(both) != 2:
                raise BenchmarkError(
                    f"{both[0].where}: {len(both)} questions are about {both[0].id}, and MME scores pairs"
                )
        return questions

    def predictions(self, replies: Replies) -> dict[str, str]:
        """For MME's ``calculation.py --results_dir``: a file for each task, in the folder ``mme``."""
        files: dict[str, str] = {}
        for index, reply in sorted(replies.items()):
            asked = self._asked[index]
            row = (asked.file, asked.question, asked.label, " ".join(reply.split()))
            name = f"mme/{asked.task}.txt"
            files[name] = files.get(name, "") + "\t".join(row) + "\n"
        return files

    def score(self, replies: Replies) -> Scores:
        """Accuracy, acc+ and their sum for each task, and the two sums over tasks.

        acc+ is the share of pictures with both questions right. A picture whose second question was not asked
        is left out of acc+.
        """
        good: dict[str, dict[str, list[bool]]] = {}
        others = 0
        for index, reply in replies.items():
            asked, said = self._asked[index], yes_or_no(reply)
            others += said == "other"
            right = said == asked.label.lower()
            good.setdefault(asked.task, {}).setdefault(asked.file, []).append(right)
        scores: Scores = {}
        for group, tasks in TASKS.items():
            each = {task: _task(good[task]) for task in tasks if task in good}
            scores[group] = {"score": sum(task["score"] for task in each.values()), **each}
        return {**scores, "neither_yes_nor_no": others}


def yes_or_no(reply: str) -> str:
    """What the first four letters hold: "yes", else "no", else "other"."""
    start = reply.lower()[:_PREFIX]
    return "yes" if "yes" in start else "no" if "no" in start else "other"


def _task(pictures: dict[str, list[bool]]) -> dict[str, float]:
    single = [right for answers in pictures.values() for right in answers]
    both = [all(answers) for answers in pictures.values() if len(answers) == 2]
    accuracy, plus = percent(sum(single), len(single)), percent(sum(both), len(both))
    return {"n": len(single), "acc": accuracy, "acc_plus": plus, "score": accuracy + plus}


def _labels(path: Path) -> dict[str, tuple[str, str]]:
    labels = {}
    for line in text_lines(path):
        question, tab, label = line.strip().partition("\t")
        if not tab or label.strip().lower() not in ("yes", "no"):
            raise BenchmarkError(f"{path}: {line!r} should be a question, a tab, and Yes or No")
        labels[_bare(question)] = (question, label.strip())
    return labels


def _bare(question: str) -> str:
    for added in _ADDED:
        question = question.replace(added, " ")
    return " ".join(question.split())
