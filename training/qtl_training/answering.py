"""Answers of both sides of the cut in one process: quick enough to choose between models by."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from qtl_core.nn.checkpoint import Checkpoint
from qtl_core.nn.model import SplitModel
from qtl_training.digits.questions import Question
from qtl_training.packing import Packed, Turn, Vocabulary, embed, pack

_ROWS = 64


@torch.no_grad()
def answers(
    checkpoint: Checkpoint,
    features: Tensor,
    questions: tuple[Question, ...],
    levels: int | None,
    *,
    text_levels: int | None = None,
    max_tokens: int = 6,
) -> list[str]:
    """Greedy answers, in the order of the questions.

    Args:
        checkpoint: the model.
        features: the tower's features of every scene, as ``tower_features`` returns them.
        questions: what to ask.
        levels: L of the vision quantizer; None for the unquantized model.
        text_levels: L of the language quantizer; None where questions travel as text.
        max_tokens: where an answer is cut off.
    """
    model = checkpoint.model.eval()
    vocabulary = Vocabulary(checkpoint)
    out = [""] * len(questions)
    for batch in _batches(questions):
        restored, _ = model.cross(model.vision.connector(features[batch.scenes].float()), levels)
        replies: list[tuple[int, ...]] = [()] * len(batch.order)
        for _ in range(max_tokens):
            packed = batch.pack(questions, replies, checkpoint, vocabulary, restored.shape[1])
            hidden = _run(model, packed, restored, text_levels)
            last = hidden[packed.ends[:, 0], packed.ends[:, 1]]
            chosen = model.decoder.logits(last).argmax(-1).tolist()
            replies = [
                reply if reply[-1:] == (vocabulary.end,) else (*reply, token)
                for reply, token in zip(replies, chosen, strict=True)
            ]
            if all(reply[-1] == vocabulary.end for reply in replies):
                break
        for index, reply in zip(batch.order, replies, strict=True):
            out[index] = vocabulary.text(reply)
    return out


@torch.no_grad()
def answered_right(
    checkpoint: Checkpoint,
    features: Tensor,
    questions: tuple[Question, ...],
    levels: int | None,
    *,
    text_levels: int | None = None,
) -> list[bool]:
    """Whether the greedy answer to each question is the right one, to the last token.

    The greedy answer is right exactly where every token of the right answer, and the end after it, is
    the likeliest after those before it; so one pass over the right answers tells, and no decoding is
    needed. Arguments as for ``answers``.
    """
    model = checkpoint.model.eval()

    def cross(scenes: list[int]) -> Tensor:
        return model.cross(model.vision.connector(features[scenes].float()), levels)[0]

    return right_given(checkpoint, cross, questions, text_levels=text_levels)


@torch.no_grad()
def right_given(
    checkpoint: Checkpoint,
    restored_of: Callable[[list[int]], Tensor],
    questions: tuple[Question, ...],
    *,
    text_levels: int | None = None,
) -> list[bool]:
    """As ``answered_right``, from what crossed.

    Args:
        checkpoint: the model.
        restored_of: picture features [scenes, tokens, width] of some scenes, as the server has them.
        questions: what to ask.
        text_levels: L of the language quantizer; None where questions travel as text.
    """
    model = checkpoint.model.eval()
    vocabulary = Vocabulary(checkpoint)
    out = [True] * len(questions)
    for batch in _batches(questions):
        restored = restored_of(batch.scenes)
        known = [(*vocabulary.ids(questions[index].answer), vocabulary.end) for index in batch.order]
        packed = batch.pack(questions, known, checkpoint, vocabulary, restored.shape[1])
        hidden = _run(model, packed, restored, text_levels)
        row, place, target = packed.targets.T
        wrong = model.decoder.logits(hidden[row, place]).argmax(-1) != target
        for turn in packed.turn_of_target[wrong].tolist():
            out[batch.order[turn]] = False
    return out


@dataclass(frozen=True)
class _Batch:
    """Some scenes and the questions about them, scene by scene."""

    scenes: list[int]
    about: list[list[int]]

    @property
    def order(self) -> list[int]:
        return [index for indices in self.about for index in indices]

    def pack(
        self,
        questions: tuple[Question, ...],
        replies: Sequence[tuple[int, ...]],
        checkpoint: Checkpoint,
        vocabulary: Vocabulary,
        picture: int,
    ) -> Packed:
        turns = iter(
            Turn(vocabulary.ids(questions[index].text), reply)
            for index, reply in zip(self.order, replies, strict=True)
        )
        rows = [[next(turns) for _ in indices] for indices in self.about]
        return pack(rows, vocabulary, checkpoint.model.decoder, picture)


def _batches(questions: tuple[Question, ...]) -> Iterator[_Batch]:
    by_scene: dict[int, list[int]] = defaultdict(list)
    for index, question in enumerate(questions):
        by_scene[question.scene].append(index)
    asked = sorted(by_scene)
    for start in range(0, len(asked), _ROWS):
        scenes = asked[start : start + _ROWS]
        yield _Batch(scenes, [by_scene[scene] for scene in scenes])


def _run(model: SplitModel, packed: Packed, restored: Tensor, text_levels: int | None) -> Tensor:
    quantizer = model.language_quantizer if text_levels is not None else None
    embeddings, _ = embed(packed, restored, model.decoder, quantizer, text_levels)
    hidden: Tensor = model.decoder(embeddings, packed.allowed, packed.positions)[0]
    return hidden
