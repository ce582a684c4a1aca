"""What every family of checkpoints is read into, whatever its layout: the one interface downstream knows."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import msgspec
from transformers import LlavaForConditionalGeneration, PreTrainedTokenizerFast
from transformers.utils import logging as transformers_logging

from qtl_core.bundle import Picture, Template
from qtl_core.errors import CheckpointError
from qtl_core.nn.model import SplitModel
from qtl_core.nn.prompt_tokens import PromptStyle
from qtl_core.nn.quantizer import Centre, Quantizer, Scaling
from qtl_core.nn.tile_assembly import Markers, Newlines

CONFIG_FILE = "config.json"


class QuantizerSettings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How a ``Quantizer`` is built.

    Attributes:
        code_dim: width of the codes.
        levels: L where nobody names another.
        scaling: "image" or "frozen".
        merge: side of the square of tokens that share a code vector.
        centre: of a channel under "frozen" scaling: "mean", "median" or "rare".
        k: half the range in standard deviations to begin with; what was learnt is among the weights.
        k_levels: level counts that have a k of their own; empty for one k at all of them.
        k_channels: whether each channel has its own k (at each of ``k_levels``).
    """

    code_dim: int
    levels: int = 4
    scaling: Scaling = "image"
    merge: int = 1
    centre: Centre = "mean"
    k: float = 3.0
    k_levels: tuple[int, ...] = ()
    k_channels: bool = False

    def build(self, width: int, *, learn_k: bool = False) -> Quantizer:
        """A quantizer of this shape for features of ``width``."""
        k: Any = [self.k] * self.code_dim if self.k_channels else self.k
        if self.k_levels:
            k = dict.fromkeys(self.k_levels, k)
        return Quantizer(
            width,
            self.code_dim,
            self.levels,
            self.scaling,
            k,
            merge=self.merge,
            centre=self.centre,
            learn_k=learn_k,
        )


class Settings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How a model is run; what ``qtl.json`` holds in our own layout.

    Attributes:
        name: the model's name in manifests and logs.
        vision, language: the quantizers. Where the checkpoint has none, of what shape one would be.
        picture_attention: "causal", "bidirectional" among the picture's tokens, or "prefix" where all of the
            prompt sees all of it.
        picture_places: whether the server adds learnt place vectors to picture tokens.
        image_aspect_ratio: "square" stretches a picture to the tower's size, "pad" pads it first, "crop"
            cuts a square out of its middle.
        max_question_tokens: the longest question the model takes.
        max_answer_tokens: where an answer is cut off unless the client asks for less.
    """

    name: str
    vision: QuantizerSettings
    language: QuantizerSettings
    picture_attention: Literal["causal", "bidirectional", "prefix"] = "causal"
    picture_places: bool = False
    image_aspect_ratio: Literal["square", "pad", "crop"] = "square"
    max_question_tokens: int = 48
    max_answer_tokens: int = 16


@dataclass(frozen=True)
class FurtherQuantizer:
    """A vision quantizer beside the checkpoint's own: another number of bytes for the same weights."""

    settings: QuantizerSettings
    module: Quantizer


@dataclass(frozen=True, kw_only=True)
class Checkpoint:
    """A loaded checkpoint.

    Attributes:
        path: the folder.
        family: the family's name in the registry.
        model: both sides of the cut, in float32 and evaluation mode; ``model.quantized`` tells whether it
            has quantizers.
        tokenizer: the model's.
        processor: the image processor's configuration.
        settings: how the model is run; ``settings.vision`` is the chosen quantizer's.
        picture: how a picture is prepared for the tower.
        template: what stands around picture and question.
        end_tokens: ids that end an answer.
        prompt: how prompts become tokens.
        further: the further vision quantizers, by name.
        quantizer: the one of them that is the model's; "" for the checkpoint's own.
        fitted: folder of the model's quantizer where it lies elsewhere, with the entropy coder's tables for
            its codes; None for quantizers of the checkpoint.
        assembly: what the server makes of a picture's tiles; None where pictures are not cut.
        whole: transformers' model where the family can be trained; shares its weights with ``model``.
    """

    path: Path
    family: str
    model: SplitModel
    tokenizer: PreTrainedTokenizerFast
    processor: dict[str, Any]
    settings: Settings
    picture: Picture
    template: Template
    end_tokens: tuple[int, ...]
    prompt: PromptStyle = field(default_factory=PromptStyle)
    further: Mapping[str, FurtherQuantizer] = field(default_factory=dict)
    quantizer: str = ""
    fitted: Path | None = None
    assembly: Newlines | Markers | None = None
    whole: LlavaForConditionalGeneration | None = None

    @property
    def quantizers(self) -> tuple[str, ...]:
        """Names of the further vision quantizers, sorted."""
        return tuple(sorted(self.further))

    @property
    def llava(self) -> LlavaForConditionalGeneration:
        """Transformers' model, for training.

        Raises:
            CheckpointError: the family can be exported, but not trained yet.
        """
        if self.whole is None:
            raise CheckpointError(
                f"checkpoint {self.path} is of the family {self.family!r}, which can be exported but not "
                "trained or audited here; start from a checkpoint in the layout of the shipped one"
            )
        return self.whole


@dataclass(frozen=True)
class Family:
    """A layout of checkpoints.

    Attributes:
        name: for messages and ``Checkpoint.family``.
        model_type: what ``config.json`` calls it.
        claims: whether a folder with this configuration is one of the family's.
        read: reads such a folder; takes the folder, its configuration, the name of a further quantizer
            ("" for the checkpoint's own) and whether to load weights; raises ``CheckpointError``.
    """

    name: str
    model_type: str
    claims: Callable[[Path, Mapping[str, Any]], bool]
    read: Callable[[Path, dict[str, Any], str, bool], Checkpoint]


@contextmanager
def quiet() -> Iterator[None]:
    """Keeps transformers' own progress bars off: ours say what the user waits for."""
    shown = transformers_logging.is_progress_bar_enabled()
    transformers_logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            transformers_logging.enable_progress_bar()
