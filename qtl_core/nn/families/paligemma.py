"""Hugging Face's ``PaliGemmaForConditionalGeneration`` (PaliGemma 1 and 2), as transformers saves it.

    config.json                           a SigLIP tower; Gemma or Gemma 2
    model.safetensors, or shards          in float32, float16 or bfloat16
    tokenizer.json, preprocessor_config.json

The connector is one linear layer behind the tower's last norm. There is no chat template: a prompt is the
picture, the start token, the question and a newline, and all of it is seen from all of it; only the answer is
causal. It has no quantizer.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgspec
from torch import Tensor, nn

from qtl_core.bundle import Template
from qtl_core.errors import CheckpointError
from qtl_core.nn.decoder import PictureDecoder
from qtl_core.nn.families import parts
from qtl_core.nn.families.base import Checkpoint, Family
from qtl_core.nn.families.llava import place
from qtl_core.nn.model import SplitModel, TowerSettings, VisionEncoder
from qtl_core.nn.pictures import picture_of, read_processor, usual_processor
from qtl_core.nn.prompt_tokens import PromptStyle
from qtl_core.nn.prompts import read_tokenizer
from qtl_core.nn.weights import Weights, fill

NAME = "paligemma"
_TOWER, _DECODERS = "siglip_vision_model", ("gemma", "gemma2")
_ATTENTION = "prefix"


class Connector(nn.Module):
    """One linear layer between tower and decoder: [..., tower width] -> [..., decoder width].

    Args:
        width_in: of the tower.
        width: of the decoder.
    """

    def __init__(self, width_in: int, width: int) -> None:
        super().__init__()
        self.linear = nn.Linear(width_in, width)

    def forward(self, features: Tensor) -> Tensor:
        out: Tensor = self.linear(features)
        return out


def _claims(folder: Path, config: Mapping[str, Any]) -> bool:
    return config.get("model_type") == "paligemma"


def _read(folder: Path, config: dict[str, Any], quantizer: str, load: bool) -> Checkpoint:
    if quantizer:
        raise CheckpointError(f"checkpoint {folder} has no quantizer {quantizer!r}; it has none at all")
    parts.refuse_quantized(folder, config)
    vision = parts.config_of(folder, _told(config, "vision_config", _TOWER), (_TOWER,), "tower")
    text = parts.config_of(folder, _told(config, "text_config", _DECODERS[0]), _DECODERS, "decoder")
    tokenizer = read_tokenizer(folder)
    if not tokenizer.bos_token:
        raise CheckpointError(
            f"checkpoint {folder}: the tokenizer has no bos_token, which prompts begin with"
        )
    processor = read_processor(folder) or usual_processor(vision.to_dict())
    picture, mean, std = picture_of(processor)
    parts.check_picture(folder, picture, vision)
    weights = Weights(folder)
    found = {place(name): (weights, name) for name in weights}
    text.tie_word_embeddings = parts.tied(
        bool(config.get("tie_word_embeddings", True)),
        found.get("decoder.lm_head.weight"),
        found.get("decoder.model.embed_tokens.weight"),
    )
    decoder, tower = parts.build_decoder(folder, text), parts.build_tower(folder, vision)
    connector = Connector(vision.hidden_size, text.hidden_size)
    fill(
        {"tower": tower, "connector": connector, "decoder": decoder},
        {"all": weights},
        {"all": place},
        unused=lambda name: name.startswith("tower.head."),
        load=load,
    )
    settings = TowerSettings(mean=mean, std=std, feature_layer=-1, feature_select="full", final_norm=True)
    language = PictureDecoder(decoder, _ATTENTION, logit_cap=getattr(text, "final_logit_softcapping", None))
    model = SplitModel(VisionEncoder(tower, connector, settings), None, language, None)
    tokens = parts.picture_tokens(vision, settings.feature_select)
    return Checkpoint(
        path=folder,
        family=NAME,
        model=model.eval(),
        tokenizer=tokenizer,
        processor=processor,
        settings=msgspec.structs.replace(
            parts.settings_for(folder, picture, text, tokens), picture_attention=_ATTENTION
        ),
        picture=picture,
        template=Template(before_image="", between=str(tokenizer.bos_token), after_question="\n"),
        prompt=PromptStyle(joint="whole"),
        end_tokens=parts.end_tokens_of(folder, text, tokenizer),
    )


FAMILY = Family(NAME, NAME, _claims, _read)
"""PaliGemma."""


def _told(config: Mapping[str, Any], part: str, usual: str) -> dict[str, Any]:
    """A part's configuration; published ones leave out its kind where it is the usual one."""
    return {"model_type": usual, **(config.get(part) or {})}
