"""VQAv2, test-dev: everyday questions whose answers are kept by the challenge (arXiv 1612.00837)."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import ClassVar

from qtl_core.errors import BenchmarkError

from .benchmark import Benchmark, Question, Replies, plain_question
from .layout import find, json_lines
from .vqa_answers import normalise


class VqaV2(Benchmark):
    """Reads ``llava_vqav2_mscoco_test-dev2015.jsonl``, the list of the whole test set, and ``test2015/``."""

    name: ClassVar[str] = "vqav2"
    scored_at: ClassVar[str] = (
        "the VQA challenge (test-dev phase): https://eval.ai/web/challenges/challenge-page/830/my-submission"
    )

    def read(self) -> Sequence[Question]:
        """The questions of test-dev; a submission lists those of the whole test set."""
        path = find(self.folder, "llava_vqav2_mscoco_test-dev2015.jsonl")
        whole = find(self.folder, "llava_vqav2_mscoco_test2015.jsonl")
        pictures = find(self.folder, "test2015")
        self._listed = [record.identity("question_id") for record in json_lines(whole)]
        listed = set(self._listed)
        questions = [plain_question(record, pictures) for record in json_lines(path)]
        for question in questions:
            if question.id not in listed:
                raise BenchmarkError(f"{question.where}: {whole} has no question {question.id}")
        return questions

    def predictions(self, replies: Replies) -> dict[str, str]:
        """The submission: every question of the test set, with an empty answer where none was asked."""
        answers = {self.questions[index].id: normalise(reply) for index, reply in replies.items()}
        rows = [{"question_id": name, "answer": answers.get(name, "")} for name in self._listed]
        return {"vqav2_submission.json": json.dumps(rows)}

    def score(self, replies: Replies) -> None:
        """None: the answers are not public."""
        return None
