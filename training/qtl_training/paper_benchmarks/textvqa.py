"""TextVQA: questions about what is written in a picture, each answered by ten people (arXiv 1904.08920)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

from qtl_core.errors import BenchmarkError

from .benchmark import Benchmark, Question, Replies, Scores, percent, plain_question
from .layout import find, json_entries, json_lines
from .vqa_answers import PEOPLE, vqa_accuracy

_ANNOTATIONS = "TextVQA_0.5.1_val.json"
_SEEN = "Reference OCR token:"
_BEFORE, _AFTER = "Question: ", " Short answer:"


class TextVqa(Benchmark):
    """Reads ``llava_textvqa_val_v051_ocr.jsonl``, ``TextVQA_0.5.1_val.json`` and ``train_images/``."""

    name: ClassVar[str] = "textvqa"

    def read(self) -> Sequence[Question]:
        """The questions, each with the ten answers of its picture and wording."""
        path = find(self.folder, "llava_textvqa_val_v051_ocr.jsonl")
        pictures = find(self.folder, "train_images")
        annotations = find(self.folder, _ANNOTATIONS)
        people: dict[tuple[str, str], list[str]] = {}
        for record in json_entries(annotations, "data"):
            answers = record.texts("answers")
            if len(answers) != PEOPLE:
                raise record.wrong("answers", f"a list of {PEOPLE} texts")
            people[str(record.identity("image_id")), record.text("question").lower()] = answers
        questions = [plain_question(record, pictures) for record in json_lines(path)]
        self._people: list[list[str]] = []
        for question in questions:
            wording = bare_question(question.text)
            answers_of = people.get((str(question.id), wording.lower()))
            if answers_of is None:
                raise BenchmarkError(
                    f"{question.where}: {annotations} has no question {wording!r} about the picture "
                    f"{question.id}"
                )
            self._people.append(answers_of)
        return questions

    def predictions(self, replies: Replies) -> dict[str, str]:
        """Nothing: its scorer takes the answer file."""
        return {}

    def score(self, replies: Replies) -> Scores:
        """The mean VQA accuracy."""
        total = sum(vqa_accuracy(reply, self._people[index]) for index, reply in replies.items())
        return {"accuracy": percent(total, len(replies))}


def bare_question(prompt: str) -> str:
    """The question within a prompt: without the words that a text reader saw, and the instruction."""
    if prompt.startswith("OCR tokens: ") and _BEFORE in prompt:
        return prompt.partition(_BEFORE)[2].partition(_AFTER)[0]
    lines = prompt.split("\n")
    return lines[1] if lines[0].startswith(_SEEN) and len(lines) > 1 else lines[0]
