"""What a server sees of private labels, recorded while a client trains with it in one process."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import msgspec
import numpy as np
import torch
from numpy.typing import NDArray
from tqdm import tqdm

from edge_runtime.training.labels import cross_entropy
from qtl_core.crossing import questions_of
from qtl_core.nn.checkpoint import Checkpoint
from qtl_core.split_stage import Optimizer, SplitStage, levels_of
from qtl_training.digits.questions import TYPES
from qtl_training.digits.scenes import CELL_NAMES, COLOURS
from qtl_training.features import Features
from qtl_training.split.client_side import ClientSide
from qtl_training.split.outputs import crossed_outputs
from qtl_training.split.private import HeldLabels, PrivateServerSide, class_of, head_of, scored_tokens
from qtl_training.split.samples import DigitSamples

Floats = NDArray[np.float32]
Ints = NDArray[np.int64]

ANSWERS: Final = ("yes", "no", "none", *COLOURS, *map(str, range(19)))
ASKED: Final = tuple(kind for kind in TYPES if kind != "locate")

STAGE: Final = SplitStage(
    steps=1,
    scenes=1,
    micro_batches=2,
    pictures=16,
    questions=10,
    levels=(4,),
    grad_bits=16,
    train=("connector", "vision_quantizer"),
    quantizer_lr=5e-4,
    k_lr=2e-3,
    optimizer=Optimizer(lr=2e-4),
    types=ASKED,
    labels="private",
    candidates=ANSWERS,
    head_lr=5e-3,
)
"""As the first stage of training/recipes/digits-private.toml."""


@dataclass(frozen=True)
class Observed:
    """Everything that crossed for some questions, and what was never sent.

    Attributes:
        outputs: float32 [n, columns], as they crossed.
        gradient: float32 [n, columns], of the summed loss with respect to them, before it is rounded.
        micro: int64 [n], which micro-batch each belongs to; one is rounded as a whole.
        head: float32 [answers, columns], the head that the server has: its own; the identity where outputs
            are scores.
        kinds: int64 [n], the question by its wording without digits, colours and places: the server reads it.
        labels: int64 [n], the truth.
        right: share of the questions that the model answers right, in percent.
    """

    outputs: Floats
    gradient: Floats
    micro: Ints
    head: Floats
    kinds: Ints
    labels: Ints
    right: float


def forget_pictures(checkpoint: Checkpoint, seed: int) -> None:
    """Draws a new connector: the beginning of the paper's first stage, where pictures say nothing yet."""
    torch.manual_seed(seed)
    for module in checkpoint.model.vision.connector.modules():
        if isinstance(module, torch.nn.Linear | torch.nn.LayerNorm):
            module.reset_parameters()


def observe(
    checkpoint: Checkpoint,
    features: Features,
    head: str,
    *,
    scenes: int,
    steps: int,
    recorded: int,
    seed: int,
    head_seed: int | None = None,
    progress: bool = True,
) -> Observed:
    """Trains and records the last steps.

    Args:
        checkpoint: trained in place.
        features: the tower's of the scenes of ``seed``.
        head: "server" or "client".
        scenes: how many there are.
        steps: to train.
        recorded: of those, the last so many are recorded.
        seed: of scenes, questions and rounding.
        head_seed: of a secret head; None for the model's own.
        progress: whether to show a bar.
    """
    stage = msgspec.structs.replace(STAGE, scenes=scenes, steps=steps, head=head)
    samples = DigitSamples(stage, seed)
    checkpoint.model.train()
    checkpoint.model.vision.tower.eval()
    held = HeldLabels(checkpoint, [stage], 0, seed, head_seed)
    tokens, index = scored_tokens(stage, checkpoint), class_of(stage, checkpoint)
    # Before anything is learnt: what the server keeps.
    known = head_of(checkpoint, tokens) if head == "client" else np.eye(len(tokens), dtype=np.float32)
    client, server = ClientSide(checkpoint.model, stage), PrivateServerSide(checkpoint, stage)
    kinds: dict[str, int] = {}
    seen: list[tuple[Floats, Floats, Ints, Ints, Ints]] = []
    right = questions = 0
    for step in tqdm(range(steps), desc="labels", leave=False, disable=not progress or None):
        turns = 0
        for number, micro in enumerate(samples.micro_batches(step)):
            crossed = client.forward(number, features[list(micro.pictures)], levels_of(stage, seed, step))
            sent = server.forward(number, crossed, 4, questions_of(micro.rows))
            outputs = crossed_outputs(sent, stage)[1]
            own = held.labels.head
            judged = held.labels.judge(step, number, outputs, micro.rows)
            client.backward(number, server.backward(number, judged.gradient))
            turns += judged.turns
            if step >= steps - recorded:
                asked = [turn for row in micro.rows for turn in row.turns]
                labels = np.array([index(answer) for _, answer in asked], np.int64)
                scores = outputs if own is None else outputs @ own.T
                exact = cross_entropy(scores, labels)[1]
                exact = exact if own is None else exact @ own
                kind = np.array([kinds.setdefault(kind_of(text), len(kinds)) for text, _ in asked], np.int64)
                where = np.full(len(asked), step * stage.micro_batches + number, np.int64)
                seen.append((outputs, exact, where, kind, labels))
                right, questions = right + judged.right, questions + judged.turns
        squared = client.squared_norm(turns) + held.labels.squared_norm(turns)
        client.apply(step, squared)
        held.labels.apply(step, squared)
        server.squared_norm(turns)
        server.apply(step, squared)
    columns = [np.concatenate(one) for one in zip(*seen, strict=True)]
    outputs, gradient, micro_of, kind, labels = columns
    return Observed(outputs, gradient, micro_of, known, kind, labels, 100 * right / questions)


def kind_of(text: str) -> str:
    """A question without what distinguishes those of a kind: colours, numbers and places."""
    words = text.rstrip("?").split()
    return " ".join("_" if word.rstrip("s").isdigit() or word in _VARY else word for word in words)


_VARY: Final = frozenset((*COLOURS, *(word for name in CELL_NAMES for word in name.split())))
