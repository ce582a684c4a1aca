"""Tower and decoder of a checkpoint of another project: built from its configuration, without weights yet."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForCausalLM,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerFast,
)

from qtl_core.bundle import Picture
from qtl_core.errors import CheckpointError
from qtl_core.nn.families.base import QuantizerSettings, Settings
from qtl_core.nn.hub import model_name
from qtl_core.nn.reading import first_line, read_json
from qtl_core.nn.weights import Weights, without_weights

TOWERS = ("clip_vision_model", "siglip_vision_model")
DECODERS = (
    "gemma",
    "gemma2",
    "gemma3_text",
    "llama",
    "mistral",
    "phi",
    "phi3",
    "qwen2",
    "qwen3",
    "stablelm",
)
_LONGEST_QUESTION, _LONGEST_ANSWER = 1024, 512
_TEMPLATE_ROOM = 64


def config_of(folder: Path, settings: Any, known: tuple[str, ...], what: str) -> PreTrainedConfig:
    """Transformers' configuration of a part.

    Args:
        folder: the checkpoint, for messages.
        settings: the part's in ``config.json``.
        known: kinds that are supported.
        what: the part's name in messages.

    Raises:
        CheckpointError: a kind that is not known, or settings transformers does not take.
    """
    kind = settings.get("model_type") if isinstance(settings, Mapping) else None
    if kind not in known:
        raise CheckpointError(
            f"checkpoint {folder} has a {what} of the kind {kind!r}; known here: {', '.join(known)}"
        )
    rest = {
        name: value for name, value in settings.items() if name not in ("model_type", "dtype", "torch_dtype")
    }
    try:
        config: PreTrainedConfig = AutoConfig.for_model(kind, **rest)
    except (
        Exception
    ) as error:  # the settings are a stranger's, and transformers raises many things about them
        raise CheckpointError(f"checkpoint {folder}: config.json, {what}: {first_line(error)}") from error
    return config


def build_tower(folder: Path, config: PreTrainedConfig) -> PreTrainedModel:
    """A vision tower without weights, and without the pooling head that no connector reads.

    Raises:
        CheckpointError: settings that do not fit together.
    """
    config.vision_use_head = False
    return _built(folder, AutoModel, config)


def build_decoder(folder: Path, config: PreTrainedConfig) -> PreTrainedModel:
    """A causal language model without weights.

    Raises:
        CheckpointError: settings that do not fit together.
    """
    return _built(folder, AutoModelForCausalLM, config)


def picture_tokens(tower: PreTrainedConfig, select: str) -> int:
    """Tokens a picture has after the tower."""
    patches = (int(tower.image_size) // int(tower.patch_size)) ** 2
    return patches + (tower.model_type == "clip_vision_model") - (select == "default")


def check_picture(folder: Path, picture: Picture, tower: PreTrainedConfig) -> None:
    """Compares what the image processor makes with what the tower takes.

    Raises:
        CheckpointError: other sizes.
    """
    side = int(tower.image_size)
    if (picture.height, picture.width) != (side, side):
        raise CheckpointError(
            f"checkpoint {folder}: the image processor makes pictures of {picture.width} x {picture.height}, "
            f"the tower takes {side} x {side}"
        )


def settings_for(folder: Path, picture: Picture, decoder: PreTrainedConfig, tokens: int) -> Settings:
    """How a model without a ``qtl.json`` is run; its quantizers are of the paper's shape until it has some.

    Args:
        folder: the checkpoint; its name becomes the model's.
        picture: how pictures are prepared.
        decoder: the decoder's configuration.
        tokens: of a picture, in front of the decoder.

    Raises:
        CheckpointError: no room for a question and an answer beside the picture.
    """
    room = int(decoder.max_position_embeddings) - tokens - _TEMPLATE_ROOM
    answer = min(_LONGEST_ANSWER, room // 2)
    question = min(_LONGEST_QUESTION, room - answer)
    if answer < 1:
        raise CheckpointError(
            f"checkpoint {folder}: the decoder takes {decoder.max_position_embeddings} tokens, the picture "
            f"alone has {tokens}"
        )
    usual = QuantizerSettings(code_dim=int(decoder.hidden_size))
    return Settings(
        name=model_name(folder),
        vision=usual,
        language=usual,
        image_aspect_ratio=picture.fit,
        max_question_tokens=question,
        max_answer_tokens=answer,
    )


def end_tokens_of(
    folder: Path, decoder: PreTrainedConfig, tokenizer: PreTrainedTokenizerFast
) -> tuple[int, ...]:
    """Ids that end an answer: as generation is configured, else the decoder's, else the tokenizer's."""
    file = folder / "generation_config.json"
    told = read_json(file).get("eos_token_id") if file.is_file() else None
    for end in (told, decoder.eos_token_id, tokenizer.eos_token_id):
        if isinstance(end, int):
            return (end,)
        if isinstance(end, list | tuple) and end:
            return tuple(int(one) for one in end)
    return ()


def tied(said: bool, head: tuple[Weights, str] | None, table: tuple[Weights, str] | None) -> bool:
    """Whether a decoder's head and embeddings are one: as the files have it, where they have both.

    Args:
        said: what the configuration says.
        head: where the head's weight is stored; None if it is not.
        table: where the embeddings are; None if they are not.
    """
    if not said or head is None or table is None:
        return said
    if head[0].shape(head[1]) != table[0].shape(table[1]):
        return False
    pieces = zip(head[0].pieces(head[1]), table[0].pieces(table[1]), strict=False)
    return all(torch.equal(a.to(b.dtype), b) for a, b in pieces)


def refuse_quantized(folder: Path, config: Mapping[str, Any]) -> None:
    """Refuses weights that somebody has quantized.

    Raises:
        CheckpointError: ``config.json`` says they are.
    """
    if config.get("quantization_config"):
        raise CheckpointError(
            f"checkpoint {folder} holds quantized weights (quantization_config); give it in float32, "
            "float16 or bfloat16"
        )


def _built(folder: Path, auto: Any, config: PreTrainedConfig) -> PreTrainedModel:
    try:
        with without_weights():
            model: PreTrainedModel = auto.from_config(config)
    except (ValueError, TypeError, KeyError, AttributeError, RuntimeError, ImportError) as error:
        raise CheckpointError(f"checkpoint {folder}: config.json: {first_line(error)}") from error
    return model
