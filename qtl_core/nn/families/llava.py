"""Hugging Face's ``LlavaForConditionalGeneration`` (LLaVA 1.5 and its kin), as transformers saves it.

    config.json                           towers CLIP and SigLIP; decoders of ``parts.DECODERS``
    model.safetensors, or shards          in float32, float16 or bfloat16, decoder's head tied or not
    tokenizer.json, preprocessor_config.json, chat_template.*

It has no quantizer.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers.activations import ACT2FN

from qtl_core.bundle import Template
from qtl_core.errors import CheckpointError
from qtl_core.nn.decoder import PictureDecoder
from qtl_core.nn.families import parts
from qtl_core.nn.families.base import Checkpoint, Family
from qtl_core.nn.model import SplitModel, TowerSettings, VisionEncoder
from qtl_core.nn.pictures import picture_of, read_processor, usual_processor
from qtl_core.nn.prompt_tokens import PromptStyle
from qtl_core.nn.prompts import read_tokenizer, split_template, start_tokens
from qtl_core.nn.reading import first_line
from qtl_core.nn.weights import Weights, fill

NAME = "llava"
_STRATEGIES = ("default", "full")
# What LLaVA 1.5 was trained with; for folders that bring no template.
_VICUNA = Template(before_image="USER: ", between="\n", after_question=" ASSISTANT:")


class Connector(nn.Module):
    """Two linear layers between tower and decoder: [..., tower width] -> [..., decoder width].

    Args:
        width_in: of the tower, times how many of its layers are read.
        width: of the decoder.
        activation: transformers' name of what lies between.
        bias: whether the layers have one.
    """

    def __init__(self, width_in: int, width: int, activation: str, bias: bool) -> None:
        super().__init__()
        self.linear_1 = nn.Linear(width_in, width, bias=bias)
        self.act = ACT2FN[activation]
        self.linear_2 = nn.Linear(width, width, bias=bias)

    def forward(self, features: Any) -> Any:
        return self.linear_2(self.act(self.linear_1(features)))


def _claims(folder: Path, config: Mapping[str, Any]) -> bool:
    return config.get("model_type") == "llava"


def _read(folder: Path, config: dict[str, Any], quantizer: str, load: bool) -> Checkpoint:
    if quantizer:
        raise CheckpointError(f"checkpoint {folder} has no quantizer {quantizer!r}; it has none at all")
    parts.refuse_quantized(folder, config)
    vision = parts.config_of(folder, config.get("vision_config"), parts.TOWERS, "tower")
    text = parts.config_of(folder, config.get("text_config"), parts.DECODERS, "decoder")
    settings = tower_settings(folder, config)
    tokenizer = read_tokenizer(folder)
    processor = read_processor(folder) or usual_processor(vision.to_dict())
    picture, mean, std = picture_of(processor)
    parts.check_picture(folder, picture, vision)
    weights = Weights(folder)
    found = {place(name): (weights, name) for name in weights}
    text.tie_word_embeddings = parts.tied(
        bool(text.tie_word_embeddings or config.get("tie_word_embeddings", False)),
        found.get("decoder.lm_head.weight"),
        found.get("decoder.model.embed_tokens.weight"),
    )
    decoder = parts.build_decoder(folder, text)
    layers = settings["feature_layer"]
    connector = connector_of(folder, config, vision.hidden_size, text.hidden_size, layers)
    tower = parts.build_tower(folder, vision)
    # LLaVA's head has no bias, also where the decoder's own would have one (Phi).
    head: Any = decoder.get_output_embeddings()
    biased = head.bias is not None
    head.bias = None
    fill(
        {"tower": tower, "connector": connector, "decoder": decoder},
        {"all": weights},
        {"all": place},
        unused=lambda name: name.startswith("tower.head."),
        load=load,
    )
    if biased:
        head.bias = nn.Parameter(torch.zeros(head.out_features))
    encoder = VisionEncoder(tower, connector, TowerSettings(mean=mean, std=std, **settings))
    model = SplitModel(encoder, None, PictureDecoder(decoder, "causal"), None)
    template = template_of(tokenizer, config)
    tokens = parts.picture_tokens(vision, settings["feature_select"])
    return Checkpoint(
        path=folder,
        family=NAME,
        model=model.eval(),
        tokenizer=tokenizer,
        processor=processor,
        settings=parts.settings_for(folder, picture, text, tokens),
        picture=picture,
        template=template,
        prompt=PromptStyle(joint="whole", start=start_tokens(tokenizer, template.before_image)),
        end_tokens=parts.end_tokens_of(folder, text, tokenizer),
    )


FAMILY = Family(NAME, "llava", _claims, _read)
"""Hugging Face's LLaVA."""


def place(name: str) -> str | None:
    """Where a tensor of a LLaVA belongs: "tower.", "connector." or "decoder." and its name there.

    The names of transformers changed twice: with and without ``model.`` in front, and with and without
    ``vision_model.`` inside the tower.
    """
    new = name.startswith(("model.vision_tower.", "model.multi_modal_projector.", "model.language_model."))
    part, _, rest = (name.removeprefix("model.") if new else name).partition(".")
    if part == "vision_tower":
        return f"tower.{rest.removeprefix('vision_model.')}"
    if part == "multi_modal_projector":
        return f"connector.{rest}"
    if part == "language_model":
        return f"decoder.model.{rest}" if new else f"decoder.{rest}"
    return f"decoder.{name}" if name == "lm_head.weight" else None


def tower_settings(folder: Path, config: Mapping[str, Any]) -> dict[str, Any]:
    """``feature_layer`` and ``feature_select`` of ``TowerSettings``.

    Raises:
        CheckpointError: settings that are not known.
    """
    layer, select = (
        config.get("vision_feature_layer", -2),
        config.get("vision_feature_select_strategy", "default"),
    )
    layers = tuple(layer) if isinstance(layer, list) else layer
    if not isinstance(layers, int) and not (
        isinstance(layers, tuple) and layers and all(isinstance(one, int) for one in layers)
    ):
        raise CheckpointError(
            f"checkpoint {folder}: vision_feature_layer {layer!r} is no number, nor a list of some"
        )
    if select not in _STRATEGIES:
        raise CheckpointError(
            f"checkpoint {folder}: vision_feature_select_strategy {select!r} is not one of "
            f"{', '.join(_STRATEGIES)}"
        )
    return {"feature_layer": layers, "feature_select": select}


def connector_of(
    folder: Path, config: Mapping[str, Any], width_in: int, width: int, layers: int | tuple[int, ...]
) -> Connector:
    """A connector without its weights, for ``layers`` of the tower side by side.

    Raises:
        CheckpointError: an activation that is not known.
    """
    several = 1 if isinstance(layers, int) else len(layers)
    try:
        return Connector(
            width_in * several,
            width,
            str(config.get("projector_hidden_act", "gelu")),
            bool(config.get("multimodal_projector_bias", True)),
        )
    except KeyError as error:
        raise CheckpointError(
            f"checkpoint {folder}: projector_hidden_act: {first_line(error)} is no activation of transformers"
        ) from error


def template_of(tokenizer: Any, config: Mapping[str, Any]) -> Template:
    """The text around picture and question, of LLaVA 1.5 where the tokenizer has no chat template."""
    if not tokenizer.chat_template:
        return _VICUNA
    index = config.get("image_token_index", config.get("image_token_id"))
    name = (
        tokenizer.convert_ids_to_tokens(index) if isinstance(index, int) and index < len(tokenizer) else None
    )
    return split_template(tokenizer, name or "<image>")
