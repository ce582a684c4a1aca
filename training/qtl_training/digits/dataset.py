"""Fixed sets of questions on digit scenes, and what a model that sees only the question reaches."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from qtl_training.digits import questions as q
from qtl_training.digits.scenes import Scenes, render, sample

SPLITS = ("validation", "test")
_SCENES = 1500
_EACH_TYPE = 480
_EVALUATION_SEED = 20_251


@dataclass(frozen=True)
class QuestionSet:
    """Scenes and questions about them, in a fixed order.

    Attributes:
        scenes: the scenes.
        questions: sorted by scene; every type equally often.
    """

    scenes: Scenes
    questions: tuple[q.Question, ...]

    def picture(self, scene: int) -> NDArray[np.uint8]:
        """The picture of one scene, uint8 [96, 96, 3]."""
        return render(self.scenes, slice(scene, scene + 1))[0]


def question_set(split: str, *, each_type: int = _EACH_TYPE) -> QuestionSet:
    """The project's validation or test questions: ``each_type`` of each of the 13 types.

    The same split and size always give the same scenes, pictures, questions and order.

    Raises:
        ValueError: if ``split`` is neither "validation" nor "test", or ``each_type`` is too large.
    """
    if split not in SPLITS:
        raise ValueError(f"unknown split {split!r}; questions exist for {', '.join(SPLITS)}")
    scenes = sample(split, _SCENES, _EVALUATION_SEED)
    rng = np.random.default_rng([_EVALUATION_SEED, SPLITS.index(split)])
    chosen: list[q.Question] = []
    for kind in q.TYPES:
        chosen += _ask_evenly(scenes, kind, each_type, rng)
    chosen.sort(key=lambda question: (question.scene, q.TYPES.index(question.kind)))
    for question in chosen:
        again = q.answer(question.text, scenes.digits[question.scene], scenes.colours[question.scene])
        if again != question.answer:
            raise ValueError(
                f"{question.text!r} on scene {question.scene}: {question.answer!r}, recomputed {again!r}"
            )
    return QuestionSet(scenes, tuple(chosen))


def _ask_evenly(scenes: Scenes, kind: str, n: int, rng: np.random.Generator) -> list[q.Question]:
    asker = q.Asker(rng)
    seen: set[tuple[int, str]] = set()
    found: list[q.Question] = []
    for _ in range(40):
        for scene in rng.permutation(len(scenes)):
            question = asker.ask(int(scene), kind, scenes.digits[scene], scenes.colours[scene])
            if question is not None and (question.scene, question.text) not in seen:
                seen.add((question.scene, question.text))
                found.append(question)
                if len(found) == n:
                    return found
    raise ValueError(f"only {len(found)} questions of type {kind} in {len(scenes)} scenes, {n} wanted")


def question_only(
    test: tuple[q.Question, ...], *, scenes: int = 6000
) -> tuple[dict[str, float], dict[str, float]]:
    """What the best guess from the wording alone reaches, in percent.

    The guess for each wording is its most frequent answer among questions about training scenes,
    asked the same balanced way; a wording not seen there gets the most frequent answer of its type.

    Returns:
        Accuracy by family, with "macro", and by type.
    """
    train = sample("train", scenes, _EVALUATION_SEED + 1)
    rng = np.random.default_rng(_EVALUATION_SEED + 2)
    by_text: dict[str, Counter[str]] = defaultdict(Counter)
    by_kind: dict[str, Counter[str]] = defaultdict(Counter)
    for kind in q.TYPES:
        asker = q.Asker(rng)
        for scene in range(len(train)):
            for _ in range(2):
                question = asker.ask(scene, kind, train.digits[scene], train.colours[scene])
                if question is not None:
                    by_text[question.text][question.answer] += 1
                    by_kind[kind][question.answer] += 1
    guesses = [(by_text[question.text] or by_kind[question.kind]).most_common(1)[0][0] for question in test]
    return accuracy(test, guesses)


def accuracy(
    questions: tuple[q.Question, ...], answers: list[str]
) -> tuple[dict[str, float], dict[str, float]]:
    """Share of exact answers in percent: by family (the mean of its types) with "macro", and by type."""
    return share_right(
        questions,
        [reply.strip() == question.answer for question, reply in zip(questions, answers, strict=True)],
    )


def share_right(
    questions: tuple[q.Question, ...], right: Sequence[bool]
) -> tuple[dict[str, float], dict[str, float]]:
    """As ``accuracy``, from whether each question was answered right."""
    of_kind: dict[str, list[bool]] = defaultdict(list)
    for question, one in zip(questions, right, strict=True):
        of_kind[question.kind].append(one)
    by_type = {kind: 100.0 * float(np.mean(of_kind[kind])) for kind in q.TYPES if of_kind[kind]}
    by_family = {
        family: float(np.mean([by_type[kind] for kind in kinds if kind in by_type]))
        for family, kinds in q.FAMILIES.items()
        if any(kind in by_type for kind in kinds)
    }
    by_family["macro"] = float(np.mean(list(by_family.values())))
    return by_family, by_type
