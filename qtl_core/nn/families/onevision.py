"""Hugging Face's ``LlavaOnevisionForConditionalGeneration``: a LLaVA whose pictures are cut into tiles.

    config.json                           image_grid_pinpoints, vision_aspect_ratio "anyres_max_N"
    model.safetensors, or shards          those of a LLaVA, and ``image_newline``
    tokenizer.json, preprocessor_config.json, chat_template.*

It has no quantizer. One picture a question: several of them, and videos, are prepared otherwise and not
supported.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgspec

from qtl_core.bundle import Picture
from qtl_core.errors import CheckpointError
from qtl_core.nn.decoder import PictureDecoder
from qtl_core.nn.families import llava, parts
from qtl_core.nn.families.base import Checkpoint, Family
from qtl_core.nn.model import SplitModel, TowerSettings, VisionEncoder
from qtl_core.nn.pictures import picture_of, read_processor, usual_processor
from qtl_core.nn.prompt_tokens import PromptStyle
from qtl_core.nn.prompts import read_tokenizer, start_tokens
from qtl_core.nn.tile_assembly import Newlines, NewlineStyle, most_tokens
from qtl_core.nn.weights import Weights, fill
from qtl_core.tiling import Anyres

NAME = "llava-onevision"
MODEL_TYPE = "llava_onevision"
_RATIO = "anyres_max_"
# What transformers' configuration fills in where the file leaves it out.
_DEFAULTS = (
    "image_grid_pinpoints",
    "vision_aspect_ratio",
    "vision_feature_layer",
    "vision_feature_select_strategy",
    "projector_hidden_act",
    "multimodal_projector_bias",
    "image_token_index",
)


def _claims(folder: Path, config: Mapping[str, Any]) -> bool:
    return config.get("model_type") == MODEL_TYPE


def _read(folder: Path, config: dict[str, Any], quantizer: str, load: bool) -> Checkpoint:
    if quantizer:
        raise CheckpointError(f"checkpoint {folder} has no quantizer {quantizer!r}; it has none at all")
    parts.refuse_quantized(folder, config)
    vision = parts.config_of(folder, config.get("vision_config"), parts.TOWERS, "tower")
    text = parts.config_of(folder, config.get("text_config"), parts.DECODERS, "decoder")
    whole = parts.config_of(folder, config, (MODEL_TYPE,), "model")
    config = config | {name: getattr(whole, name) for name in _DEFAULTS}
    settings = llava.tower_settings(folder, config)
    tokenizer = read_tokenizer(folder)
    processor = read_processor(folder) or usual_processor(vision.to_dict())
    picture, mean, std = picture_of(processor, "square")
    parts.check_picture(folder, picture, vision)
    picture = _cut(folder, config, processor, picture)
    weights = Weights(folder)
    found = {place(name): (weights, name) for name in weights}
    text.tie_word_embeddings = parts.tied(
        bool(text.tie_word_embeddings or config.get("tie_word_embeddings", False)),
        found.get("decoder.lm_head.weight"),
        found.get("decoder.model.embed_tokens.weight"),
    )
    decoder, tower = parts.build_decoder(folder, text), parts.build_tower(folder, vision)
    layers = settings["feature_layer"]
    connector = llava.connector_of(folder, config, vision.hidden_size, text.hidden_size, layers)
    tokens = parts.picture_tokens(vision, settings["feature_select"])
    if math.isqrt(tokens) ** 2 != tokens:
        raise CheckpointError(
            f"checkpoint {folder}: a tile has {tokens} tokens, which are no square: "
            f"vision_feature_select_strategy {settings['feature_select']!r} does not go with this tower"
        )
    assembly = Newlines(NewlineStyle(width=int(text.hidden_size), most=_most(folder, config)), picture)
    fill(
        {"tower": tower, "connector": connector, "decoder": decoder, "assembly": assembly},
        {"all": weights},
        {"all": place},
        unused=lambda name: name.startswith("tower.head."),
        load=load,
    )
    encoder = VisionEncoder(tower, connector, TowerSettings(mean=mean, std=std, **settings))
    model = SplitModel(encoder, None, PictureDecoder(decoder, "causal"), None)
    template = llava.template_of(tokenizer, config)
    return Checkpoint(
        path=folder,
        family=NAME,
        model=model.eval(),
        tokenizer=tokenizer,
        processor=processor,
        settings=parts.settings_for(folder, picture, text, most_tokens(assembly.style, picture, tokens, 0)),
        picture=picture,
        template=template,
        prompt=PromptStyle(joint="whole", start=start_tokens(tokenizer, template.before_image)),
        end_tokens=parts.end_tokens_of(folder, text, tokenizer),
        assembly=assembly.eval(),
    )


FAMILY = Family(NAME, MODEL_TYPE, _claims, _read)
"""LLaVA-OneVision."""


def place(name: str) -> str | None:
    """Where a tensor belongs: as in a LLaVA, and the newline vector."""
    if name.removeprefix("model.") == "image_newline":
        return "assembly.newline"
    return llava.place(name)


def _cut(folder: Path, config: Mapping[str, Any], processor: Mapping[str, Any], picture: Picture) -> Picture:
    """The picture with its grids.

    Raises:
        CheckpointError: grids that are no whole tiles, or that model and processor disagree about.
    """
    pinpoints = config["image_grid_pinpoints"]
    told = processor.get("image_grid_pinpoints", pinpoints)
    try:
        grids = [(int(height), int(width)) for height, width in pinpoints]
        same = [(int(height), int(width)) for height, width in told] == grids
    except (TypeError, ValueError) as error:
        raise CheckpointError(
            f"checkpoint {folder}: image_grid_pinpoints must be pairs of a height and a width"
        ) from error
    if not same:
        raise CheckpointError(
            f"checkpoint {folder}: image_grid_pinpoints of config.json and of the image processor differ; "
            "make them the same"
        )
    side = picture.width
    for height, width in grids:
        if height < side or width < side or height % side or width % side:
            raise CheckpointError(
                f"checkpoint {folder}: image_grid_pinpoints has {height} x {width}, which is no grid of "
                f"whole tiles of {side} x {side}"
            )
    try:
        tiling = Anyres(grids=tuple((height // side, width // side) for height, width in grids))
        return msgspec.structs.replace(picture, tiling=tiling, pad_colour=(0, 0, 0))
    except ValueError as error:
        raise CheckpointError(f"checkpoint {folder}: image_grid_pinpoints: {error}") from error


def _most(folder: Path, config: Mapping[str, Any]) -> int:
    ratio = str(config["vision_aspect_ratio"])
    number = ratio.removeprefix(_RATIO)
    if not ratio.startswith(_RATIO) or not number.isdecimal() or int(number) < 1:
        raise CheckpointError(
            f"checkpoint {folder}: vision_aspect_ratio {ratio!r} is not {_RATIO}N with a number N of tiles"
        )
    return int(number)
