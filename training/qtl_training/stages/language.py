"""Training connector, decoder and quantizers on the frozen tower's features, from questions and answers."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from qtl_core.errors import RecipeError
from qtl_core.nn.checkpoint import Checkpoint
from qtl_core.nn.quantizer import Quantizer
from qtl_core.split_stage import level_count
from qtl_training.digits import questions as q
from qtl_training.digits.scenes import sample
from qtl_training.features import Features, tower_features
from qtl_training.packing import Turn, Vocabulary, embed, pack, turns_right
from qtl_training.recipe import LanguageStage
from qtl_training.stages.alignment import Alignment
from qtl_training.stages.asking import ask, typed
from qtl_training.stages.fitting import PICTURES, fit
from qtl_training.stages.optimizing import ScheduledAdamW
from qtl_training.stages.parts import groups

_MEMORY = 0.97  # of the running accuracy of each question type, per step
_FLOOR = 0.12  # weight of a question type that is always answered right


class LanguageTraining:
    """The stage as a sequence of steps.

    Args:
        checkpoint: its model is trained in place; the tower stays as it is.
        stage: the recipe's settings.
        seed: of scenes, questions and sampled levels.
        resumed: whether the model has been trained in this stage before.
        progress: whether to show a bar while features are computed.
        features: the tower's features of the stage's scenes, where they are kept or come from elsewhere;
            computed here otherwise.

    Raises:
        RecipeError: if the checkpoint lacks a quantizer that the stage names.
    """

    def __init__(
        self,
        checkpoint: Checkpoint,
        stage: LanguageStage,
        seed: int,
        *,
        resumed: bool = False,
        progress: bool = True,
        features: Features | None = None,
    ) -> None:
        self.steps = stage.stop or stage.steps
        self._stage, self._seed = stage, seed
        self._model = model = checkpoint.model
        model.vision_quantizer.rate_weight = stage.rate_weight
        self._beside = [_further(checkpoint, name) for name in stage.beside]
        self._vocabulary = Vocabulary(checkpoint)
        self._alignment = Alignment(self._vocabulary)
        self._scenes = sample("train", stage.scenes, seed)
        if features is None:
            features = tower_features(model.vision, self._scenes, progress=progress)
        self._features: Features = features
        if not resumed:
            self._prepare()
        self._accuracy = torch.zeros(len(q.TYPES))
        self._passed = torch.zeros(len(q.TYPES), dtype=torch.bool)
        self._optimizer = ScheduledAdamW(stage.optimizer, stage.steps, groups(model, stage))

    def run_step(self, step: int) -> dict[str, float]:
        """Trains on ``scenes_a_step`` scenes with ``questions`` questions each."""
        stage, model = self._stage, self._model
        model.vision.tower.eval()
        rng = np.random.default_rng([self._seed, step, 11])
        levels = self._sample_levels(rng)
        chosen = rng.choice(len(self._scenes), stage.scenes_a_step, replace=False).tolist()
        asked = ask(self._scenes, chosen, stage.questions, self._weights(), rng)
        rows = [[self._turn(question, rng) for question in questions] for questions in asked]
        text_levels = (levels or 256) if rng.random() < stage.text_codes else None
        features = model.vision.connector(self._features[chosen].float())
        if self._beside and rng.random() < stage.beside_share:
            quantizer = self._beside[int(rng.integers(len(self._beside)))]
            levels, restored, loss = quantizer.levels, quantizer(features)[0], features.new_zeros(())
        else:
            restored, loss = model.cross(features, levels)
        packed = pack(rows, self._vocabulary, model.decoder, restored.shape[1])
        embeddings, text_loss = embed(
            packed,
            restored,
            model.decoder,
            model.language_quantizer if text_levels is not None else None,
            text_levels,
        )
        hidden, _ = model.decoder(embeddings, packed.allowed, packed.positions)
        row, place, target = packed.targets.T
        scores = model.decoder.logits(hidden[row, place])
        answer_loss = functional.cross_entropy(scores, target)
        if stage.align:
            digits, colours = self._scenes.digits[chosen], self._scenes.colours[chosen]
            loss = loss + stage.align * self._alignment.loss(features, digits, colours, model.decoder)
        self._optimizer.step(answer_loss + loss + text_loss, step)
        right = turns_right(packed, scores, target)
        self._remember([question for questions in asked for question in questions], right)
        return {
            "loss": answer_loss.item(),
            "right": 100 * float(right.float().mean()),
            "types": 100 * float(self._accuracy.mean()),
            "least": 100 * float(self._accuracy.min()),
            "levels": float(levels or 0),
        }

    def finish(self) -> None:
        """Nothing is left to do after the last step."""

    def state(self) -> dict[str, Tensor]:
        """Everything beyond the model's own weights that the next step depends on."""
        optimizer = {f"optimizer.{name}": value for name, value in self._optimizer.state().items()}
        return {"accuracy": self._accuracy, "passed": self._passed, **optimizer}

    def load(self, state: dict[str, Tensor]) -> None:
        """Takes up a saved state."""
        self._accuracy, self._passed = state["accuracy"].clone(), state["passed"].clone()
        self._optimizer.load(
            {k.removeprefix("optimizer."): v for k, v in state.items() if k.startswith("optimizer.")}
        )

    @torch.no_grad()
    def _prepare(self) -> None:
        """What the stage changes once, before its first step."""
        model, stage = self._model, self._stage
        if not stage.picture_scale and not stage.fit_quantizers:
            return
        pictures = model.vision.connector(self._features[:PICTURES].float())
        if stage.picture_scale:
            last: Any = model.vision.connector.linear_2
            factor = stage.picture_scale / float(pictures.std())
            last.weight.mul_(factor)
            last.bias.mul_(factor)
            pictures *= factor
        if stage.fit_quantizers:
            self._fit(pictures)

    @torch.no_grad()
    def _fit(self, pictures: Tensor) -> None:
        model, train = self._model, self._stage.train
        if "vision_quantizer" in train:
            fit(model.vision_quantizer, pictures, self._stage.rotation, self._seed)
        if "language_quantizer" not in train:
            return
        ids = sorted({token for text in q.every_wording() for token in self._vocabulary.ids(text)})
        model.language_quantizer.fit(model.decoder.embed(torch.tensor(ids))[None], seed=self._seed)

    def _sample_levels(self, rng: np.random.Generator) -> int | None:
        stage = self._stage
        if not stage.levels:
            return None
        levels = level_count(stage.levels, stage.weights, rng)
        if levels == 256 and stage.dense:
            levels = round(math.exp(rng.uniform(math.log(2), math.log(256))))
        return levels or None

    def _turn(self, question: q.Question, rng: np.random.Generator) -> Turn:
        text = typed(question.text, self._stage.loose, rng)
        return Turn(
            self._vocabulary.ids(text), (*self._vocabulary.ids(question.answer), self._vocabulary.end)
        )

    def _weights(self) -> np.ndarray[tuple[int], np.dtype[np.float64]]:
        weights = _FLOOR + 1 - self._accuracy.double().numpy()
        weights /= weights.sum()
        focus = [q.TYPES.index(kind) for kind in self._stage.focus]
        first = next((kind for kind in focus if not self._passed[kind]), None)
        if first is not None:
            weights *= 1 - self._stage.focus_share
            weights[first] += self._stage.focus_share
        return weights

    def _remember(self, asked: Sequence[q.Question], right: Tensor) -> None:
        kinds = torch.tensor([q.TYPES.index(question.kind) for question in asked])
        for kind in range(len(q.TYPES)):
            here = right[kinds == kind]
            if len(here):
                self._accuracy[kind] = self._accuracy[kind] * _MEMORY + here.float().mean() * (1 - _MEMORY)
        self._passed |= 100 * self._accuracy >= self._stage.focus_until


def _further(checkpoint: Checkpoint, name: str) -> Quantizer:
    """A further quantizer of the checkpoint, held as it is."""
    if name not in checkpoint.further:
        known = ", ".join(checkpoint.quantizers) or "none"
        raise RecipeError(
            f"`beside` names the quantizer {name!r}, and {checkpoint.path} has {known}; see qtl-train publish"
        )
    return checkpoint.further[name].module.eval().requires_grad_(False)
