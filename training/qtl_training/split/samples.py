"""What a step of split training is about: pictures, questions and answers, drawn anew from its number."""

from __future__ import annotations

import numpy as np

from qtl_core.crossing import MicroBatch, Row
from qtl_core.split_stage import SplitStage
from qtl_training.digits import questions as q
from qtl_training.digits.scenes import Scenes, sample
from qtl_training.stages.asking import ask, typed


class DigitSamples:
    """Questions on digit scenes.

    A step's content depends on the seed and its number only, so that a replayed step is the same step.

    Args:
        stage: the recipe's settings.
        seed: of scenes and questions.
    """

    def __init__(self, stage: SplitStage, seed: int) -> None:
        self._stage, self._seed = stage, seed
        self.scenes: Scenes = sample("train", stage.scenes, seed)

    def micro_batches(self, step: int) -> list[MicroBatch]:
        """The step's micro-batches, no picture twice."""
        stage = self._stage
        rng = np.random.default_rng([self._seed, step, 13])
        drawn = rng.choice(len(self.scenes), stage.micro_batches * stage.pictures, replace=False)
        asked_about = [kind in (stage.types or q.TYPES) for kind in q.TYPES]
        weights = np.array(asked_about, np.float64) / sum(asked_about)
        found = []
        for chosen in np.split(drawn, stage.micro_batches):
            pictures = tuple(chosen.tolist())
            asked = ask(self.scenes, pictures, stage.questions, weights, rng)
            rows = tuple(
                Row((place,), tuple((typed(one.text, stage.loose, rng), one.answer) for one in about))
                for place, about in enumerate(asked)
            )
            found.append(MicroBatch(pictures, rows))
        return found
