"""What one fit and fine-tune of a quantizer is told: one frozen value, checked when it is built."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from qtl_core.codes import bits_of
from qtl_core.errors import InputError

STEPS: Final = 200
BATCH: Final = 32
MAX_PICTURES: Final = 2048
ANSWER_TOKENS: Final = 16


@dataclass(frozen=True, kw_only=True)
class DistillSettings:
    """Settings of ``qtl-train quantizer``.

    Attributes:
        checkpoint: of any family: a folder, or a name that ``load_checkpoint`` knows.
        pictures: folder of pictures to fit and fine-tune on; every fifth is kept aside to measure on.
        output: where the quantizer goes.
        levels: L.
        code_dim: codes a token; None for the width of the features.
        steps: of fine-tuning; 0 leaves the quantizer as it was fitted.
        batch: pictures a step, each with one prompt.
        lr: highest learning rate, relative to the size of what it moves.
        feature_weight: of the features' distance in the loss.
        logit_weight: of the divergence of the next tokens in the loss; 0 leaves the decoder alone.
        answer_tokens: of the model's own answers, at most, that the divergence is taken over.
        prompts: a file with a prompt on each line; None for the general ones.
        questions: a file of questions with known answers, to measure on; never trained on.
        max_pictures: pictures of the folder that are used, at most.
        cache: folder for the tower's features, to be shared by several runs; None for one that goes with
            the run.
        seed: of the order of pictures and prompts.
        device: PyTorch's name of where to compute.
        save_every: seconds between snapshots.

    Raises:
        InputError: a number out of range.
        CodeError: ``levels`` is not from 2 to 256.
    """

    checkpoint: str | Path
    pictures: Path
    output: Path
    levels: int = 4
    code_dim: int | None = None
    steps: int = STEPS
    batch: int = BATCH
    lr: float = 5e-3
    feature_weight: float = 1.0
    logit_weight: float = 1.0
    answer_tokens: int = ANSWER_TOKENS
    prompts: Path | None = None
    questions: Path | None = None
    max_pictures: int = MAX_PICTURES
    cache: Path | None = None
    seed: int = 1
    device: str = "cpu"
    save_every: float = 60.0

    def __post_init__(self) -> None:
        bits_of(self.levels)
        counts = {"batch": self.batch, "answer_tokens": self.answer_tokens, "max_pictures": self.max_pictures}
        for name, value in counts.items():
            if value < 1:
                raise InputError(f"{name} is {value}; give 1 or more")
        positive = {"steps": self.steps, "feature_weight": self.feature_weight, "lr": self.lr}
        for name, number in (positive | {"logit_weight": self.logit_weight}).items():
            if number < 0:
                raise InputError(f"{name} is {number}; it cannot be negative")
        if self.steps and not self.feature_weight and not self.logit_weight:
            raise InputError("feature_weight and logit_weight are both 0; nothing would be learnt")

    def as_json(self) -> dict[str, Any]:
        """What the result depends on, as a JSON object holds it: the files' contents come to it apart."""
        return {
            "levels": self.levels,
            "code_dim": self.code_dim,
            "steps": self.steps,
            "batch": self.batch,
            "lr": self.lr,
            "feature_weight": self.feature_weight,
            "logit_weight": self.logit_weight,
            "answer_tokens": self.answer_tokens,
            "max_pictures": self.max_pictures,
            "seed": self.seed,
        }
