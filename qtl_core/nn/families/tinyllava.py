"""TinyLLaVA Factory's checkpoints, as its trainers save them.

    config.json                           model_type tinyllava; text_config and vision_config in it
    tokenizer.json, tokenizer_config.json
    model.safetensors, or shards          a finished folder: everything in one place
    language_model/, vision_tower/,       a staged folder: a pytorch_model.bin (or safetensors) each
    connector/

The image processor stays with the tower that the configuration names; where that is no folder beside the
checkpoint, the one such towers are published with is taken. All of that project's conversation templates put
the same words around picture and question and differ in the token that ends an answer.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import nn
from transformers import PreTrainedConfig, PreTrainedTokenizerFast

from qtl_core.bundle import Picture, Template
from qtl_core.errors import CheckpointError
from qtl_core.nn.decoder import PictureDecoder
from qtl_core.nn.families import parts
from qtl_core.nn.families import tinyllava_connectors as connectors
from qtl_core.nn.families.base import CONFIG_FILE, Checkpoint, Family
from qtl_core.nn.model import SplitModel, TowerSettings, VisionEncoder
from qtl_core.nn.pictures import picture_of, read_processor, usual_processor
from qtl_core.nn.prompt_tokens import PromptStyle
from qtl_core.nn.prompts import read_tokenizer, start_tokens
from qtl_core.nn.reading import read_json
from qtl_core.nn.weights import Places, Weights, fill

NAME = "tinyllava"
DECODER, TOWER, CONNECTOR = "language_model", "vision_tower", "connector"
# The model was trained on exactly these words, so they are part of it.
_TEMPLATE = Template(
    before_image="A chat between a curious user and an artificial intelligence assistant. The assistant "
    "gives helpful, detailed, and polite answers to the user's questions. USER: ",
    between="\n",
    after_question=" ASSISTANT:",
)
_STOPS = ("<|endoftext|>", "<|im_end|>", "</s>", "<eos>")
# That project's name -> ours.
_STRATEGIES = {"patch": "default", "cls_patch": "full"}
_RATIOS = ("square", "pad")


def claims(folder: Path, config: Mapping[str, Any]) -> bool:
    """Whether a folder is one of this project's."""
    return config.get("model_type") == "tinyllava"


def read(folder: Path, config: dict[str, Any], quantizer: str, load: bool, family: str = NAME) -> Checkpoint:
    """Reads a finished or staged folder, without quantizers.

    Raises:
        CheckpointError: something is missing, damaged or not supported.
    """
    if quantizer:
        raise CheckpointError(f"checkpoint {folder} has no further quantizers, and no {quantizer!r}")
    parts.refuse_quantized(folder, config)
    staged = is_staged(folder)
    vision = parts.config_of(folder, _part(folder, config, "vision_config", TOWER), parts.TOWERS, "tower")
    text = parts.config_of(folder, _part(folder, config, "text_config", DECODER), parts.DECODERS, "decoder")
    tower_settings = _tower_settings(folder, config)
    tokenizer = read_tokenizer(folder)
    processor = _processor(folder, config, vision)
    picture, mean, std = _picture(folder, config, processor)
    parts.check_picture(folder, picture, vision)
    weights, places = _staged(folder, config) if staged else ({"all": Weights(folder)}, {"all": place})
    found = {places[key](name): (files, name) for key, files in weights.items() for name in files}
    text.tie_word_embeddings = parts.tied(
        bool(text.tie_word_embeddings),
        found.get("decoder.lm_head.weight"),
        found.get("decoder.model.embed_tokens.weight"),
    )

    def shape_of(name: str) -> tuple[int, ...] | None:
        source = found.get(f"connector.{name}")
        return None if source is None else source[0].shape(source[1])

    decoder, tower = parts.build_decoder(folder, text), parts.build_tower(folder, vision)
    connector = _connector(folder, config, vision, text, shape_of)
    fill(
        {"tower": tower, "connector": connector, "decoder": decoder},
        weights,
        places,
        unused=lambda name: name.startswith("tower.head."),
        load=load,
    )
    encoder = VisionEncoder(tower, connector, TowerSettings(mean=mean, std=std, **tower_settings))
    model = SplitModel(encoder, None, PictureDecoder(decoder, "causal"), None)
    tokens = connectors.tokens_after(
        connector, parts.picture_tokens(vision, tower_settings["feature_select"])
    )
    return Checkpoint(
        path=folder,
        family=family,
        model=model.eval(),
        tokenizer=tokenizer,
        processor=processor,
        settings=parts.settings_for(folder, picture, text, tokens),
        picture=picture,
        template=_TEMPLATE,
        prompt=PromptStyle(joint="chunks", start=start_tokens(tokenizer, _TEMPLATE.before_image)),
        end_tokens=_end_tokens(folder, text, tokenizer),
    )


FAMILY = Family(NAME, "tinyllava", claims, read)
"""TinyLLaVA Factory."""


def place(name: str) -> str | None:
    """Where a tensor of a finished folder belongs."""
    part, _, rest = name.partition(".")
    if part == DECODER:
        return f"decoder.{rest}"
    if part == TOWER:
        return f"tower.{rest.removeprefix('_vision_tower.').removeprefix('vision_model.')}"
    return f"connector.{rest.removeprefix('_connector.')}" if part == CONNECTOR else None


def is_staged(folder: Path) -> bool:
    """Whether a folder is a staged one: a folder for each part."""
    return (folder / DECODER).is_dir() and not any(folder.glob("*.safetensors"))


def _staged(folder: Path, config: Mapping[str, Any]) -> tuple[dict[str, Weights], dict[str, Places]]:
    def placing(part: str) -> Places:
        # As in a finished folder, but each file begins where its part does.
        return lambda name: place(f"{part}.{name}")

    stages = [DECODER, TOWER, CONNECTOR]
    if config.get("connector_type") == "identity" and not (folder / CONNECTOR).exists():
        stages.remove(CONNECTOR)
    for part in stages:
        if not (folder / part).is_dir():
            raise CheckpointError(f"checkpoint {folder} has no {part}/; is the download complete?")
    return {part: Weights(folder / part) for part in stages}, {part: placing(part) for part in stages}


def _part(folder: Path, config: Mapping[str, Any], key: str, stage: str) -> Any:
    """A part's configuration: in the checkpoint's own, or beside its weights in a staged folder."""
    if config.get(key) or not (folder / stage / CONFIG_FILE).is_file():
        return config.get(key)
    return read_json(folder / stage / CONFIG_FILE)


def _tower_settings(folder: Path, config: Mapping[str, Any]) -> dict[str, Any]:
    layer = config.get("vision_feature_layer", -2)
    select = config.get("vision_feature_select_strategy", "patch")
    if not isinstance(layer, int):
        raise CheckpointError(f"checkpoint {folder}: vision_feature_layer {layer!r} is no number")
    if select not in _STRATEGIES:
        raise CheckpointError(
            f"checkpoint {folder}: vision_feature_select_strategy {select!r} is not one of "
            f"{', '.join(_STRATEGIES)}"
        )
    return {"feature_layer": layer, "feature_select": _STRATEGIES[select]}


def _processor(folder: Path, config: Mapping[str, Any], vision: PreTrainedConfig) -> dict[str, Any]:
    named = Path(str(config.get("vision_model_name_or_path") or "").rpartition(":")[2])
    # Only the last part of the name: a checkpoint does not send us through the file system.
    for place_ in (folder, folder / TOWER, folder.resolve().parent / named.name):
        found = read_processor(place_)
        if found is not None:
            return found
    return usual_processor(vision.to_dict())


def _picture(
    folder: Path, config: Mapping[str, Any], processor: dict[str, Any]
) -> tuple[Picture, tuple[float, float, float], tuple[float, float, float]]:
    ratio = config.get("image_aspect_ratio", "square")
    if ratio not in _RATIOS:
        raise CheckpointError(
            f"checkpoint {folder}: image_aspect_ratio {ratio!r} is not one of {', '.join(_RATIOS)}"
        )
    return picture_of(processor, "pad" if ratio == "pad" else None, floor_pad=True)


def _connector(
    folder: Path,
    config: Mapping[str, Any],
    vision: PreTrainedConfig,
    text: PreTrainedConfig,
    shape_of: connectors.ShapeOf,
) -> nn.Module:
    try:
        return connectors.build(config, int(vision.hidden_size), int(text.hidden_size), shape_of)
    except ValueError as error:
        raise CheckpointError(f"checkpoint {folder}: {error}") from error


def _end_tokens(folder: Path, text: PreTrainedConfig, tokenizer: PreTrainedTokenizerFast) -> tuple[int, ...]:
    vocabulary = tokenizer.get_vocab()
    stops = [vocabulary[stop] for stop in _STOPS if stop in vocabulary]
    return tuple(dict.fromkeys([*parts.end_tokens_of(folder, text, tokenizer), *stops]))
