"""What all benchmarks have in common: questions, where their answers go, and what they score."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Final, TypeAlias

from .layout import Record, check_pictures, need_folder

Replies: TypeAlias = Mapping[int, str]
"""The answer to each question that was asked, by the question's place in ``Benchmark.questions``."""
Scores: TypeAlias = dict[str, Any]
"""Percentages, counts and groups of them by name."""

SHORT: Final = 128
"""Tokens of an answer at most where one word or phrase is asked for: TinyLLaVA Factory's limit."""
LONG: Final = 1000
"""The same where the answer is free: the most that ``qtl-server`` takes."""
ONE_LETTER: Final = "Answer with the option's letter from the given choices directly."


@dataclass(frozen=True, kw_only=True)
class Question:
    """One question as it is asked.

    Attributes:
        where: file and line, for messages.
        id: the file's own name for it. Several questions about one picture may share one.
        text: what is sent to the server, which puts it into the model's template.
        prompt: what the answer file repeats; the published scorers look questions up by it.
        picture: None where the question has none: then a white one is sent.
    """

    where: str
    id: str | int
    text: str
    prompt: str
    picture: Path | None


class Benchmark(ABC):
    """One benchmark, read from its folder.

    Args:
        folder: with the published files in the layout of ``docs/benchmarks.md``.

    Attributes:
        name: as on the command line.
        max_tokens: of an answer, unless the server allows fewer.
        scored_at: who scores the written file where that cannot be done here; "" where it is scored here.
        folder: as given.
        questions: in the order of the file.

    Raises:
        BenchmarkError: a file or picture is missing, or a line or entry does not fit.
    """

    name: ClassVar[str]
    max_tokens: ClassVar[int] = SHORT
    scored_at: ClassVar[str] = ""

    def __init__(self, folder: Path) -> None:
        self.folder = need_folder(folder, self.name)
        self.questions: Sequence[Question] = self.read()
        check_pictures([(q.where, q.picture) for q in self.questions if q.picture is not None])

    @abstractmethod
    def read(self) -> Sequence[Question]:
        """The questions, in the order of the file; keeps what scoring needs."""

    @abstractmethod
    def predictions(self, replies: Replies) -> dict[str, str]:
        """What the benchmark's own scorer takes beside the answer file: file names and their contents."""

    @abstractmethod
    def score(self, replies: Replies) -> Scores | None:
        """The scores of what was asked, in percent, or None where they are made elsewhere."""

    def complete(self, replies: Replies) -> bool:
        """Whether every question was asked."""
        return len(replies) == len(self.questions)


def plain_question(record: Record, pictures: Path) -> Question:
    """A line of LLaVA's question files: ``question_id``, ``image`` and ``text``, asked as it stands.

    Raises:
        BenchmarkError: one of them is missing or does not fit.
    """
    text = record.text("text")
    return Question(
        where=record.where,
        id=record.identity("question_id"),
        text=text,
        prompt=text,
        picture=record.picture(pictures),
    )


def percent(part: float, whole: float) -> float:
    """``part`` of ``whole`` in percent; 0 of nothing."""
    return 100.0 * part / whole if whole else 0.0
