"""A stage of split training, as both sides know it: its settings, its rates, its level counts."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal

import msgspec
import numpy as np

from qtl_core.errors import RecipeError
from qtl_core.gradients import GRAD_BITS


class Optimizer(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """AdamW with a cosine schedule after a linear warm-up.

    Attributes:
        lr: highest learning rate.
        warmup: share of the steps in which it rises.
        weight_decay: for matrices only.
        clip: largest global norm of the gradient.
        end: share of ``lr`` that is left at the last step.
    """

    lr: float
    warmup: float = 0.05
    weight_decay: float = 0.01
    clip: float = 1.0
    end: float = 0.01


class SplitStage(
    msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, tag_field="kind", tag="split"
):
    """Both partitions across the cut: what crosses is codes one way and gradients the other.

    The same in one process (``qtl-train local``) and in two: a step is ``micro_batches`` micro-batches, whose
    gradients are summed over all answer tokens of the step, one clipping over both partitions, and one
    optimizer step on each side.

    Attributes:
        steps: optimizer steps.
        stop: ends the stage after so many steps, before the rate has come down; 0: all of them.
        scenes: how many pictures have their tower features cached.
        micro_batches: in one optimizer step.
        pictures: in one micro-batch.
        questions: questions about each of them.
        loose: share of questions that begin with a capital letter, or lack the question mark.
        levels: level counts to draw from, one a step; 0 sends half-precision features.
        weights: how often each is drawn; empty: equally often.
        grad_bits: bits of a value of the gradients that come back: 32 (exact), 16, 8, 4 or 2.
        train: which parts learn: "connector", "decoder", "vision_quantizer".
        optimizer: for connector and decoder.
        quantizer_lr: highest learning rate of the quantizer.
        in_proj_lr: highest learning rate of its ``in_proj``; none given: ``quantizer_lr``.
        k_lr: highest learning rate of k.
        types: which types of questions are asked about digit scenes, "exists_digit" among them, which every
            scene has; empty: all.
        labels: "shared": the answers go to the server, which computes the loss. "private": only questions do,
            the server returns what its model puts at the last question position, and the client computes the
            loss; for answers of one token, and for ``candidates``.
        head: with private labels, where scores are made: "server" returns scores, "client" hidden states, and
            the scores are made by a head that only the client has.
        candidates: with private labels, the answers there are, told apart by their first token; scores of
            these alone cross. Empty: the whole vocabulary, and answers of one token.
        head_lr: highest learning rate of the client's head.
        return_head: the client's head goes to the server with the finished client partition.
    """

    steps: int
    stop: int = 0
    scenes: int
    micro_batches: int = 2
    pictures: int = 16
    questions: int = 10
    loose: float = 0.0
    levels: tuple[int, ...] = (4,)
    weights: tuple[float, ...] = ()
    grad_bits: int = 32
    train: tuple[str, ...] = ("connector", "vision_quantizer")
    optimizer: Optimizer
    quantizer_lr: float = 1e-3
    in_proj_lr: float | None = None
    k_lr: float = 1e-2
    types: tuple[str, ...] = ()
    labels: Literal["shared", "private"] = "shared"
    head: Literal["server", "client"] = "server"
    candidates: tuple[str, ...] = ()
    head_lr: float = 1e-3
    return_head: bool = False

    @property
    def private(self) -> bool:
        """Whether labels stay with the client."""
        return self.labels == "private"

    @property
    def output_bits(self) -> int:
        """Bits of a value of the outputs that the server returns: exact floats only where gradients are."""
        return 32 if self.grad_bits == 32 else 16


def check(stage: SplitStage, where: str) -> None:
    """Refuses settings that cannot be trained with.

    Args:
        stage: as a recipe has it.
        where: names it in the message.

    Raises:
        RecipeError: in one line, what is wrong.
    """
    if stage.grad_bits not in GRAD_BITS:
        known = ", ".join(map(str, GRAD_BITS))
        raise RecipeError(f"{where}: grad_bits is {stage.grad_bits}, it must be one of {known}")
    if not stage.levels:
        raise RecipeError(f"{where}: levels is empty; name level counts, or 0 for features")
    if stage.micro_batches < 1 or stage.pictures < 1 or stage.questions < 1:
        raise RecipeError(f"{where}: micro_batches, pictures and questions must each be at least 1")
    _check_labels(stage, where)
    if stage.micro_batches * stage.pictures > stage.scenes:
        raise RecipeError(
            f"{where}: a step takes {stage.micro_batches * stage.pictures} pictures, and there are "
            f"{stage.scenes} scenes; raise `scenes`"
        )


def _check_labels(stage: SplitStage, where: str) -> None:
    if not stage.private and (stage.head != "server" or stage.candidates):
        raise RecipeError(f'{where}: head and candidates need labels = "private"; add that, or remove them')
    if stage.return_head and stage.head != "client":
        raise RecipeError(f'{where}: return_head is for head = "client"; the server has its own already')
    if len(stage.candidates) == 1 or len(set(stage.candidates)) != len(stage.candidates):
        raise RecipeError(f"{where}: candidates needs two or more answers, each once; or leave it out")


def schedule(settings: Optimizer, step: int, steps: int) -> float:
    """Share of the highest learning rate at ``step``: linear warm-up, then cosine to ``end``."""
    warmup = max(1, round(settings.warmup * steps))
    if step < warmup:
        return (step + 1) / warmup
    progress = (step - warmup) / max(1, steps - warmup)
    return settings.end + (1 - settings.end) * 0.5 * (1 + math.cos(math.pi * min(1.0, progress)))


def level_count(levels: Sequence[int], weights: Sequence[float], rng: np.random.Generator) -> int:
    """One of the level counts, drawn by weight; without weights each is as likely."""
    shares = np.array(weights or [1.0] * len(levels))
    return int(rng.choice(levels, p=shares / shares.sum()))


def levels_of(stage: SplitStage, seed: int, step: int) -> int:
    """The level count of a step; 0 for features."""
    return level_count(stage.levels, stage.weights, np.random.default_rng([seed, step, 12]))
