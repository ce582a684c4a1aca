"""A stage of split training, as both sides know it: its settings, its rates, its level counts."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Final, Literal

import msgspec
import numpy as np

from qtl_core.errors import RecipeError
from qtl_core.gradients import GRAD_BITS

MAX_PICTURES: Final = 1 << 16
"""Pictures of a micro-batch."""


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


class ConversationData(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Conversations in LLaVA's JSON as a stage's data, in place of digit scenes.

    Where they are, what is kept in memory and what becomes of bad ones is the client's own affair; the rest
    the server must have too.

    Attributes:
        file: a JSON list, or JSON lines.
        pictures: the folder that they name pictures in.
        rows: conversations in one micro-batch.
        max_tokens: of a conversation, those of its pictures and all texts included.
        max_pictures: that a conversation may show.
        cache_mib: memory for the tower's features, in MiB; those of further pictures are computed anew
            whenever they are needed.
        on_bad_sample: "stop" at a sample that cannot be trained on, or "skip" it.
    """

    file: str = ""
    pictures: str = ""
    rows: int = 8
    max_tokens: int = 2048
    max_pictures: int = 1
    cache_mib: int = 1024
    on_bad_sample: Literal["stop", "skip"] = "stop"


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
        scenes: how many digit scenes there are, their tower features cached.
        micro_batches: in one optimizer step.
        pictures: digit scenes in one micro-batch.
        questions: questions about each of them.
        data: other data than digit scenes.
        loose: share of questions that begin with a capital letter, or lack the question mark.
        levels: level counts to draw from, one a step; 0 sends half-precision features.
        weights: how often each is drawn; empty: equally often.
        fit_quantizer: before the first step the quantizer is fitted to features in closed form, which begins
            it anew; the server gets its half of it.
        rotation: how the fit rotates the principal directions: "random" spreads what they say evenly over the
            codes; "independent" finds directions whose codes rarely change and cost few bits.
        picture_cache: bytes that each side keeps of pictures' last codes, so that they are named by number
            and only what changed of them crosses; 0: every picture crosses in full.
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
        lora: train adapters of the decoder instead of the decoder.
        precision: in which the decoder multiplies matrices: "fp32", "bf16" or "fp16". Weights, the quantizer
            and the client stay float32.
        checkpointing: compute the decoder's layers a second time for the gradients instead of keeping what
            was inside them: less memory, the same gradients.
    """

    steps: int
    stop: int = 0
    scenes: int = 0
    micro_batches: int = 2
    pictures: int = 16
    questions: int = 10
    data: ConversationData | None = None
    loose: float = 0.0
    levels: tuple[int, ...] = (4,)
    weights: tuple[float, ...] = ()
    fit_quantizer: bool = False
    rotation: Literal["random", "independent"] = "random"
    picture_cache: int = 1 << 26
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

    @property
    def outputs(self) -> int:
        """Questions of one micro-batch, where labels are private."""
        return self.pictures * self.questions if self.data is None else self.data.rows

    @property
    def most_pictures(self) -> int:
        """Pictures of one micro-batch at most."""
        return self.pictures if self.data is None else self.data.rows * self.data.max_pictures

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
    if stage.picture_cache < 0:
        raise RecipeError(f"{where}: picture_cache is {stage.picture_cache}, it must be 0 or more bytes")
    if not stage.levels:
        raise RecipeError(f"{where}: levels is empty; name level counts, or 0 for features")
    if stage.fit_quantizer and "vision_quantizer" not in stage.train:
        raise RecipeError(f"{where}: fit_quantizer begins the vision quantizer anew; it must be in `train`")
    if stage.micro_batches < 1 or stage.pictures < 1 or stage.questions < 1:
        raise RecipeError(f"{where}: micro_batches, pictures and questions must each be at least 1")
    _check_labels(stage, where)
    if stage.data is not None:
        _check_data(stage.data, where)
    elif stage.micro_batches * stage.pictures > stage.scenes:
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


def _check_data(data: ConversationData, where: str) -> None:
    if data.rows < 1 or data.max_tokens < 3 or data.max_pictures < 0 or data.cache_mib < 0:
        raise RecipeError(
            f"{where}: data needs rows of at least 1, max_tokens of at least 3, and max_pictures and "
            "cache_mib that are not negative"
        )
    if data.rows * data.max_pictures > MAX_PICTURES:
        raise RecipeError(
            f"{where}: {data.rows} rows of {data.max_pictures} pictures are more than the {MAX_PICTURES} "
            "that a micro-batch may have; lower `rows`"
        )


def agreed(stage: SplitStage) -> SplitStage:
    """The stage without what is the client's own affair: what both sides and a resumed run must agree on."""
    if stage.data is None:
        return stage
    data = msgspec.structs.replace(stage.data, file="", pictures="", cache_mib=0, on_bad_sample="stop")
    return msgspec.structs.replace(stage, data=data)


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
