"""Hugging Face's ``Idefics3ForConditionalGeneration`` and ``SmolVLMForConditionalGeneration``.

    config.json                           scale_factor of the pixel shuffle; a Llama (or its kin) as decoder
    model.safetensors, or shards          model.vision_model, model.connector, model.text_model, lm_head
    tokenizer.json, preprocessor_config.json, chat_template.*

Pictures are split into tiles, or are one where ``do_image_splitting`` is off. The tower differs from a SigLIP
in pictures that are smaller than it, and tiles never are. There is no quantizer. One picture a question:
several of them, and videos, are prepared otherwise and not supported.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgspec
import torch
from torch import Tensor, nn
from transformers import PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerFast, SiglipVisionConfig

from qtl_core.bundle import Picture
from qtl_core.errors import CheckpointError
from qtl_core.nn.decoder import PictureDecoder
from qtl_core.nn.families import parts
from qtl_core.nn.families.base import Checkpoint, Family
from qtl_core.nn.model import SplitModel, TowerSettings, VisionEncoder
from qtl_core.nn.pictures import PROCESSOR_FILE, Channels, picture_of, read_processor
from qtl_core.nn.prompt_tokens import PromptStyle
from qtl_core.nn.prompts import read_tokenizer, split_template, start_tokens
from qtl_core.nn.tile_assembly import Markers, MarkerStyle, most_tokens
from qtl_core.nn.weights import Weights, fill
from qtl_core.tiling import Split

# Of the vision configuration; what else a SigLIP's has stays at its defaults, which are the same.
_VISION = (
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
    "num_channels",
    "image_size",
    "patch_size",
    "hidden_act",
    "layer_norm_eps",
    "attention_dropout",
)
_TOWERS = ("idefics3", "idefics3_vision", "smolvlm", "smolvlm_vision")
_LONGEST = "longest_edge"


class Connector(nn.Module):
    """The tower's last norm, pixel shuffle and a linear layer: [..., tokens, tower width] -> [..., n, width].

    Args:
        width_in: of the tower.
        width: of the decoder.
        scale: side of the square of tokens that becomes one.
        eps: of the norm.
    """

    def __init__(self, width_in: int, width: int, scale: int, eps: float) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width_in, eps=eps)
        self.proj = nn.Linear(width_in * scale**2, width, bias=False)
        self.scale = scale

    def forward(self, features: Tensor) -> Tensor:
        n, width, scale = features.shape[1], features.shape[2], self.scale
        side = round(n**0.5)
        rows = self.norm(features).reshape(-1, side // scale, scale, side // scale, scale * width)
        squares = rows.transpose(2, 3).reshape(-1, n // scale**2, scale**2 * width)
        out: Tensor = self.proj(squares)
        return out


def _reader(model_type: str) -> Family:
    def claims(folder: Path, config: Mapping[str, Any]) -> bool:
        return config.get("model_type") == model_type

    def read(folder: Path, config: dict[str, Any], quantizer: str, load: bool) -> Checkpoint:
        return _read(folder, config, quantizer, load, model_type)

    return Family(model_type, model_type, claims, read)


IDEFICS3 = _reader("idefics3")
"""Idefics3, and SmolVLM of the first generation."""
SMOLVLM = _reader("smolvlm")
"""SmolVLM of the second generation."""


def _read(folder: Path, config: dict[str, Any], quantizer: str, load: bool, model_type: str) -> Checkpoint:
    if quantizer:
        raise CheckpointError(f"checkpoint {folder} has no quantizer {quantizer!r}; it has none at all")
    parts.refuse_quantized(folder, config)
    vision, scale = _vision(folder, config, model_type)
    text = parts.config_of(folder, config.get("text_config"), parts.DECODERS, "decoder")
    tokenizer = read_tokenizer(folder)
    processor = read_processor(folder)
    if processor is None:
        raise CheckpointError(f"checkpoint {folder} has no {PROCESSOR_FILE}; is the download complete?")
    picture, mean, std = _picture(processor)
    parts.check_picture(folder, picture, vision)
    weights = Weights(folder)
    found = {place(name): (weights, name) for name in weights}
    text.tie_word_embeddings = parts.tied(
        bool(text.tie_word_embeddings or config.get("tie_word_embeddings", False)),
        found.get("decoder.lm_head.weight"),
        found.get("decoder.model.embed_tokens.weight"),
    )
    decoder, tower = parts.build_decoder(folder, text), parts.build_tower(folder, vision)
    # It is the connector's: of a SigLIP, hidden states are read before it.
    tower.post_layernorm = nn.Identity()
    connector = Connector(int(vision.hidden_size), int(text.hidden_size), scale, float(vision.layer_norm_eps))
    fill(
        {"tower": tower, "connector": connector, "decoder": decoder},
        {"all": weights},
        {"all": place},
        load=load,
    )
    _settle_places(tower)
    settings = TowerSettings(mean=mean, std=std, feature_layer=-1, feature_select="full")
    encoder = VisionEncoder(tower, connector, settings)
    model = SplitModel(encoder, None, PictureDecoder(decoder, "causal"), None)
    style = _style(folder, tokenizer, config)
    assembly = Markers(style, picture)
    template = split_template(tokenizer, style.image)
    tokens = parts.picture_tokens(vision, "full") // scale**2
    longest = most_tokens(style, picture, tokens, _marker_tokens(tokenizer, style, picture))
    return Checkpoint(
        path=folder,
        family=model_type,
        model=model.eval(),
        tokenizer=tokenizer,
        processor=processor,
        settings=parts.settings_for(folder, picture, text, longest),
        picture=picture,
        template=template,
        prompt=PromptStyle(joint="whole", start=start_tokens(tokenizer, template.before_image)),
        end_tokens=parts.end_tokens_of(folder, text, tokenizer),
        assembly=assembly,
    )


def place(name: str) -> str | None:
    """Where a tensor belongs: "tower.", "connector." or "decoder." and its name there."""
    part, _, rest = name.removeprefix("model.").partition(".")
    if part == "vision_model":
        norm = rest.removeprefix("post_layernorm.")
        return f"connector.norm.{norm}" if norm != rest else f"tower.{rest}"
    if part == "connector":
        return f"connector.{rest.removeprefix('modality_projection.')}"
    if part == "text_model":
        return f"decoder.model.{rest}"
    return f"decoder.{name}" if name == "lm_head.weight" else None


def _vision(folder: Path, config: Mapping[str, Any], model_type: str) -> tuple[PreTrainedConfig, int]:
    """The tower's configuration as a SigLIP's, and the side of the pixel shuffle.

    Raises:
        CheckpointError: another tower, or tokens that do not shuffle.
    """
    given = config.get("vision_config")
    kind = given.get("model_type", model_type) if isinstance(given, Mapping) else None
    if kind not in _TOWERS:
        raise CheckpointError(
            f"checkpoint {folder} has a tower of the kind {kind!r}; known here: {', '.join(_TOWERS)}"
        )
    # The whole of it, so that what the file leaves out is as transformers has it.
    whole = parts.config_of(folder, config, (model_type,), "model")
    own = whole.vision_config
    vision = SiglipVisionConfig(**{name: getattr(own, name) for name in _VISION})
    side, patch, scale = vision.image_size, vision.patch_size, whole.scale_factor
    if not isinstance(side, int) or not isinstance(patch, int) or side % patch:
        raise CheckpointError(
            f"checkpoint {folder}: pictures of {side} in patches of {patch} are not supported; both must be "
            "one number, and the patches whole"
        )
    if not isinstance(scale, int) or scale < 1 or (side // patch) % scale:
        raise CheckpointError(
            f"checkpoint {folder}: scale_factor {scale!r} does not divide {side // patch} patches a row"
        )
    return vision, scale


def _picture(processor: Mapping[str, Any]) -> tuple[Picture, Channels, Channels]:
    """The picture, and mean and deviation of its values.

    Raises:
        CheckpointError: something is missing, or the processor does what is not supported here.
    """
    edges = []
    for name in ("max_image_size", "size"):
        edge = (processor.get(name) or {}).get(_LONGEST)
        if not isinstance(edge, int) or edge < 1:
            raise CheckpointError(f"{PROCESSOR_FILE}: {name} must have a {_LONGEST} in pixels, not {edge!r}")
        edges.append(edge)
    side, longest = edges
    if not processor.get("do_resize", True):
        raise CheckpointError(
            f"{PROCESSOR_FILE}: pictures that are not resized (do_resize) are not supported"
        )
    square = {**processor, "size": {"height": side, "width": side}, "do_pad": False}
    # What these processors take where the file does not say.
    picture, mean, std = picture_of({"resample": 1, **square}, "square")
    try:
        tiling = Split(longest=longest, split=bool(processor.get("do_image_splitting", True)))
        return msgspec.structs.replace(picture, tiling=tiling), mean, std
    except ValueError as error:
        raise CheckpointError(f"{PROCESSOR_FILE}: {error}") from error


def _style(folder: Path, tokenizer: PreTrainedTokenizerFast, config: Mapping[str, Any]) -> MarkerStyle:
    """The markers, if the tokenizer has those that must be tokens."""
    style, known = MarkerStyle(), tokenizer.get_vocab()
    for name in (style.image, style.around):
        if name not in known:
            raise CheckpointError(
                f"checkpoint {folder}: the tokenizer has no {name}; is the download complete?"
            )
    image = config.get("image_token_id", known[style.image])
    if image != known[style.image]:
        raise CheckpointError(
            f"checkpoint {folder}: image_token_id {image} is not the tokenizer's {style.image} "
            f"({known[style.image]})"
        )
    return style


def _marker_tokens(tokenizer: PreTrainedTokenizerFast, style: MarkerStyle, picture: Picture) -> int:
    """Tokens of the text around the tiles of the largest picture."""
    rows = round((picture.most_tiles - 1) ** 0.5)
    text = style.text(rows, rows)
    return len(tokenizer.backend_tokenizer.encode(text, add_special_tokens=False).ids)


@torch.no_grad()
def _settle_places(tower: PreTrainedModel) -> None:
    """Has each patch read the place vector that transformers gives it in a picture of the tower's whole size.

    It finds a patch's place by comparing fractions in float32, and for some numbers of patches a fraction
    falls on the wrong side. What the model was trained with stays so.
    """
    config: Any = tower.config
    across = config.image_size // config.patch_size
    boundaries = torch.arange(1 / across, 1.0, 1 / across)
    fractions = torch.arange(across, dtype=torch.float32) * (1.0 / torch.tensor(across))
    index = torch.bucketize(fractions.clamp(max=1.0 - 1e-6), boundaries, right=True)
    places = (index[:, None] * across + index).flatten()
    tower.get_submodule("embeddings").register_buffer("position_ids", places[None], persistent=False)
