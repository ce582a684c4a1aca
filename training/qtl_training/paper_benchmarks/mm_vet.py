"""MM-Vet: free answers that a judge compares with the right ones (arXiv 2308.02490). Scored elsewhere."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import ClassVar

from .benchmark import LONG, Benchmark, Question, Replies, plain_question
from .layout import find, json_lines


class MmVet(Benchmark):
    """Reads ``llava-mm-vet.jsonl`` and ``images/``."""

    name: ClassVar[str] = "mm-vet"
    max_tokens: ClassVar[int] = LONG
    scored_at: ClassVar[str] = (
        "MM-Vet's online evaluator (a language model judges): https://huggingface.co/spaces/whyu/MM-Vet_Evaluator"
    )

    def read(self) -> Sequence[Question]:
        """The questions."""
        path = find(self.folder, "llava-mm-vet.jsonl")
        pictures = find(self.folder, "images")
        return [plain_question(record, pictures) for record in json_lines(path)]

    def predictions(self, replies: Replies) -> dict[str, str]:
        """The file to hand in: an answer for each question's name."""
        rows = {f"v1_{self.questions[index].id}": reply for index, reply in sorted(replies.items())}
        return {"mm-vet_results.json": json.dumps(rows, indent=2)}

    def score(self, replies: Replies) -> None:
        """None: a judge is needed."""
        return None
