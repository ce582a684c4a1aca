"""What training asks about digit scenes, and at which level counts."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from qtl_training.digits import questions as q
from qtl_training.digits.scenes import Scenes


def ask(
    scenes: Scenes,
    chosen: Sequence[int],
    each: int,
    weights: np.ndarray[tuple[int], np.dtype[np.float64]],
    rng: np.random.Generator,
) -> list[list[q.Question]]:
    """Asks ``each`` questions about every chosen scene, types drawn by weight, answers balanced."""
    asker = q.Asker(rng)
    asked: list[list[q.Question]] = []
    for scene in chosen:
        about: list[q.Question] = []
        kinds = iter(rng.choice(len(q.TYPES), 6 * each, p=weights).tolist())
        while len(about) < each:
            kind = q.TYPES[next(kinds, 0)]  # the first type can be asked about every scene
            question = asker.ask(int(scene), kind, scenes.digits[scene], scenes.colours[scene])
            if question is not None:
                about.append(question)
        asked.append(about)
    return asked


def typed(text: str, loose: float, rng: np.random.Generator) -> str:
    """The question as people type it: with this chance a capital letter first, or no question mark."""
    if rng.random() < loose:
        change = int(rng.integers(3))
        text = text.capitalize() if change else text
        text = text.removesuffix("?") if change != 1 else text
    return text
