"""MMMU, validation: college questions in 30 subjects, with choices or a free answer (arXiv 2311.16502)."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Final

from qtl_core.errors import BenchmarkError

from .benchmark import LONG, Benchmark, Question, Replies, Scores, percent
from .layout import Record, find, json_entries, json_object
from .mmmu_answers import agrees, drawn_choice, named_choice

DOMAINS: Final = {
    "Art and Design": ("Art", "Art_Theory", "Design", "Music"),
    "Business": ("Accounting", "Economics", "Finance", "Manage", "Marketing"),
    "Science": ("Biology", "Chemistry", "Geography", "Math", "Physics"),
    "Health and Medicine": (
        "Basic_Medical_Science",
        "Clinical_Medicine",
        "Diagnostics_and_Laboratory_Medicine",
        "Pharmacy",
        "Public_Health",
    ),
    "Humanities and Social Science": ("History", "Literature", "Sociology", "Psychology"),
    "Tech and Engineering": (
        "Agriculture",
        "Architecture_and_Engineering",
        "Computer_Science",
        "Electronics",
        "Energy_and_Power",
        "Materials",
        "Mechanical_Engineering",
    ),
}
"""The subjects of each domain."""

# What TinyLLaVA Factory writes for a free question that has several pictures.
_NOT_ASKED = "INVALID GENERATION FOR MULTIPLE IMAGE INPUTS"


@dataclass(frozen=True)
class _Problem:
    name: str
    choices: dict[str, str]
    gold: list[str]

    @property
    def subject(self) -> str:
        return "_".join(self.name.split("_")[1:-1])


class Mmmu(Benchmark):
    """Reads ``anns_for_eval.json``, ``eval/answer_dict_val.json`` and ``all_images/``.

    Entries without a picture of their own (several pictures stand in their choices) are not asked, as in
    TinyLLaVA Factory: a choice is drawn for them, and a free question counts as wrong.
    """

    name: ClassVar[str] = "mmmu"
    max_tokens: ClassVar[int] = LONG

    def read(self) -> Sequence[Question]:
        """The questions with one picture."""
        path = find(self.folder, "anns_for_eval.json")
        pictures = find(self.folder, "all_images")
        gold = json_object(find(self.folder, "eval/answer_dict_val.json"))
        questions: list[Question] = []
        self._problems: list[_Problem] = []
        self._not_asked: list[_Problem] = []
        for record in json_entries(path):
            problem = _problem(record, gold)
            if "image" not in record.fields:
                self._not_asked.append(problem)
                continue
            text = record.text("prompt")
            self._problems.append(problem)
            questions.append(
                Question(
                    where=record.where,
                    id=problem.name,
                    text=text,
                    prompt=text,
                    picture=record.picture(pictures),
                )
            )
        if not questions:
            raise BenchmarkError(f"{path} has no question with a picture; download it again")
        return questions

    def predictions(self, replies: Replies) -> dict[str, str]:
        """For MMMU's ``main_eval_only.py``: a letter for each question with choices, else the answer."""
        rows = {problem.name: answer for problem, answer, _ in self._answered(replies)}
        return {"mmmu_output.json": json.dumps(rows, indent=2)}

    def score(self, replies: Replies) -> Scores:
        """Accuracy over all, by domain and by subject; how many choices were drawn."""
        right: dict[str, list[bool]] = {}
        drawn = 0
        for problem, answer, by_chance in self._answered(replies):
            good = answer in problem.gold if problem.choices else agrees(answer, problem.gold)
            right.setdefault(problem.subject, []).append(good)
            drawn += by_chance
        domains = {
            domain: [good for subject in subjects for good in right.get(subject, [])]
            for domain, subjects in DOMAINS.items()
        }
        every = [good for goods in right.values() for good in goods]
        return {
            "n": len(every),
            "accuracy": percent(sum(every), len(every)),
            "drawn": drawn,
            "domains": {name: percent(sum(goods), len(goods)) for name, goods in domains.items() if goods},
            "subjects": {name: percent(sum(goods), len(goods)) for name, goods in sorted(right.items())},
        }

    def _answered(self, replies: Replies) -> list[tuple[_Problem, str, bool]]:
        rows = []
        for index, reply in sorted(replies.items()):
            problem = self._problems[index]
            answer = named_choice(reply, problem.choices) if problem.choices else reply
            rows.append((problem, self._without(problem) if answer is None else answer, answer is None))
        if self.complete(replies):
            rows += [(problem, self._without(problem), bool(problem.choices)) for problem in self._not_asked]
        return rows

    def _without(self, problem: _Problem) -> str:
        return drawn_choice(problem.name, list(problem.choices)) if problem.choices else _NOT_ASKED


def _problem(record: Record, gold: Record) -> _Problem:
    name = record.text("id")
    entry = gold.fields.get(name)
    if not isinstance(entry, dict):
        raise BenchmarkError(f"{record.where}: {gold.where} has no answer for {name}")
    right = entry.get("ground_truth")
    answers = [right] if isinstance(right, str) else right
    if not isinstance(answers, list) or not answers or not all(isinstance(item, str) for item in answers):
        raise Record(f"{gold.where} question {name}", entry).wrong("ground_truth", "a text or a list of them")
    problem = _Problem(name, _choices(record), answers)
    if problem.subject not in {subject for subjects in DOMAINS.values() for subject in subjects}:
        raise record.wrong("id", "like validation_SUBJECT_1, with one of MMMU's subjects")
    return problem


def _choices(record: Record) -> dict[str, str]:
    if record.text("question_type") != "multiple-choice":
        return {}
    letters, texts = record.texts("all_choices"), record.fields.get("index2ans")
    if not isinstance(texts, dict) or any(not isinstance(texts.get(letter), str) for letter in letters):
        raise record.wrong("index2ans", "a text for each letter of 'all_choices'")
    return {letter: texts[letter] for letter in letters}
