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


class Lora(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Low-rank adapters in place of the decoder's own weights; merged into them at the stage's end.

    Attributes:
        rank: of what is added to a layer's weights.
        alpha: it is multiplied by alpha / rank.
        dropout: share of a layer's inputs that the adapter does not see in training.
        targets: names of the layers, such as "q_proj"; empty: all linear ones but the scores'.
    """

    rank: int = 8
    alpha: float = 16.0
    dropout: float = 0.0
    targets: tuple[str, ...] = ()


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
        lora: train adapters of the decoder instead of the decoder.
        precision: in which the decoder multiplies matrices: "fp32", "bf16" or "fp16". Weights, the quantizer
            and the client stay float32.
        checkpointing: compute the decoder's layers a second time for the gradients instead of keeping what
            was inside them: less memory, the same gradients.
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
    lora: Lora | None = None
    precision: Literal["fp32", "bf16", "fp16"] = "fp32"
    checkpointing: bool = False


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
    if stage.micro_batches * stage.pictures > stage.scenes:
        raise RecipeError(
            f"{where}: a step takes {stage.micro_batches * stage.pictures} pictures, and there are "
            f"{stage.scenes} scenes; raise `scenes`"
        )
    if stage.lora is not None:
        _check_lora(stage.lora, stage.train, where)


def _check_lora(lora: Lora, train: Sequence[str], where: str) -> None:
    if "decoder" not in train:
        raise RecipeError(f'{where}: lora adapts the decoder; add "decoder" to `train`')
    if lora.rank < 1 or lora.alpha <= 0 or not 0 <= lora.dropout < 1:
        raise RecipeError(
            f"{where}: lora has rank {lora.rank}, alpha {lora.alpha:g} and dropout {lora.dropout:g}; "
            "they must be at least 1, above 0, and from 0 to below 1"
        )


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
