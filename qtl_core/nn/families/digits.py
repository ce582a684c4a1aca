"""The layout of the shipped digits checkpoint, our own: a LLaVA of Hugging Face, and quantizers beside it.

    config.json, model.safetensors        LlavaForConditionalGeneration
    tokenizer.json, tokenizer_config.json, chat_template.jinja
    preprocessor_config.json              the tower's image processor
    qtl.json, qtl.safetensors             quantizers, place vectors and how to run them
    quantizers/NAME/                      further vision quantizers for the same weights: qtl.json (their
                                          settings) and qtl.safetensors

transformers reads everything but the last two by itself. It is the layout that is trained and written here.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from contextlib import nullcontext
from pathlib import Path
from typing import Any, TypeVar

import msgspec
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor
from transformers import (
    AutoModelForCausalLM,
    LlavaConfig,
    LlavaForConditionalGeneration,
    PreTrainedTokenizerFast,
)

from qtl_core.bundle import Picture
from qtl_core.errors import CheckpointError
from qtl_core.nn import stem
from qtl_core.nn.decoder import PictureDecoder
from qtl_core.nn.families.base import (
    Checkpoint,
    Family,
    FurtherQuantizer,
    QuantizerSettings,
    Settings,
    quiet,
)
from qtl_core.nn.families.llava import place
from qtl_core.nn.model import SplitModel, TowerSettings, VisionEncoder
from qtl_core.nn.pictures import PROCESSOR_FILE, picture_of
from qtl_core.nn.prompts import split_template
from qtl_core.nn.reading import first_line, read_json
from qtl_core.nn.weights import Weights, fill, without_weights

NAME = "qtl"
SETTINGS_FILE = "qtl.json"
WEIGHTS_FILE = "qtl.safetensors"
QUANTIZERS_FOLDER = "quantizers"
_Read = TypeVar("_Read")


def _claims(folder: Path, config: Mapping[str, Any]) -> bool:
    tower = config.get("vision_config")
    kind = tower.get("model_type") if isinstance(tower, dict) else None
    beside = any((folder / name).is_file() for name in (SETTINGS_FILE, WEIGHTS_FILE))
    # Also without its quantizers' files: then one of them is missing, and that is to be said.
    return config.get("model_type") == "llava" and (beside or kind == stem.SiglipStemVisionConfig.model_type)


def _read(folder: Path, config: dict[str, Any], quantizer: str, load: bool) -> Checkpoint:
    for name in ("model.safetensors", "tokenizer.json", PROCESSOR_FILE, SETTINGS_FILE, WEIGHTS_FILE):
        if not (folder / name).is_file():
            raise CheckpointError(f"checkpoint {folder} has no {name}; is the download complete?")
    settings = _read_settings(folder / SETTINGS_FILE, Settings)
    stem.register()
    try:
        with quiet():
            llava = _whole(folder) if load else _without_weights(folder)
        weights = load_file(folder / WEIGHTS_FILE)
    except (OSError, ValueError, RuntimeError, SafetensorError) as error:
        raise CheckpointError(f"checkpoint {folder} cannot be read: {first_line(error)}") from error
    tokenizer = PreTrainedTokenizerFast.from_pretrained(folder)
    processor = read_json(folder / PROCESSOR_FILE)
    picture, tower = _picture_settings(processor, settings, llava.config)
    model = assemble(llava, settings, tower)
    if not load:
        _note_weights(folder, model)
    _take(dict(_ours(model)), weights, folder)
    further = _read_further(folder, model.vision_quantizer.width)
    if quantizer:
        if quantizer not in further:
            known = ", ".join(sorted(further)) or "none beside its own"
            raise CheckpointError(f"checkpoint {folder} has no quantizer {quantizer!r}; it has {known}")
        model.vision_quantizer = further[quantizer].module
        settings = msgspec.structs.replace(settings, vision=further[quantizer].settings)
    end = model.decoder.language_model.config.eos_token_id
    return Checkpoint(
        path=folder,
        family=NAME,
        model=model.eval(),
        tokenizer=tokenizer,
        processor=processor,
        settings=settings,
        picture=picture,
        template=split_template(tokenizer),
        end_tokens=tuple(end) if isinstance(end, list | tuple) else (int(end),),
        further=further,
        quantizer=quantizer,
        whole=llava,
    )


FAMILY = Family(NAME, "llava", _claims, _read)
"""Our own layout."""


def _whole(folder: Path) -> LlavaForConditionalGeneration:
    llava: LlavaForConditionalGeneration = LlavaForConditionalGeneration.from_pretrained(
        folder, dtype=torch.float32
    )
    return llava


def _without_weights(folder: Path) -> LlavaForConditionalGeneration:
    with without_weights():
        return LlavaForConditionalGeneration(LlavaConfig.from_pretrained(folder))


def _note_weights(folder: Path, model: SplitModel) -> None:
    fill(
        {
            "tower": model.vision.tower,
            "connector": model.vision.connector,
            "decoder": model.decoder.language_model,
        },
        {"all": Weights(folder)},
        {"all": place},
        unused=lambda name: name.startswith("tower.head."),
        load=False,
    )


def assemble(llava: LlavaForConditionalGeneration, settings: Settings, tower: TowerSettings) -> SplitModel:
    """Cuts a LLaVA of transformers after its connector; the quantizers are new."""
    config = llava.config
    # Only what is around its two parts is new; of a model without weights it has none either.
    with without_weights() if next(llava.parameters()).is_meta else nullcontext():
        language_model = AutoModelForCausalLM.from_config(config.text_config)
    language_model.model = llava.model.language_model
    language_model.lm_head = llava.lm_head
    width = llava.model.language_model.config.hidden_size
    return SplitModel(
        VisionEncoder(llava.model.vision_tower, llava.model.multi_modal_projector, tower),
        settings.vision.build(width),
        PictureDecoder(
            language_model,
            settings.picture_attention,
            config.image_seq_length if settings.picture_places else 0,
        ),
        settings.language.build(width),
    )


def save_checkpoint(
    folder: str | Path,
    llava: LlavaForConditionalGeneration,
    model: SplitModel,
    settings: Settings,
    tokenizer: PreTrainedTokenizerFast,
    processor: dict[str, Any],
    further: Mapping[str, FurtherQuantizer] | None = None,
) -> None:
    """Writes a model as ``load_checkpoint`` reads it.

    Args:
        folder: created if it is not there.
        llava: transformers' model.
        model: what was assembled from it; shares its weights.
        settings: of quantizers and decoder.
        tokenizer: with its chat template.
        processor: the image processor's configuration.
        further: further vision quantizers, by name.
    """
    path = Path(folder)
    path.mkdir(parents=True, exist_ok=True)
    with quiet():
        llava.save_pretrained(path)
    (path / "generation_config.json").unlink(missing_ok=True)
    (path / "model.safetensors").chmod(0o644)
    tokenizer.save_pretrained(path)
    (path / PROCESSOR_FILE).write_text(json.dumps(processor, indent=2) + "\n", "utf-8")
    (path / SETTINGS_FILE).write_bytes(msgspec.json.format(msgspec.json.encode(settings), indent=2) + b"\n")
    (path / WEIGHTS_FILE).write_bytes(save({name: t.detach().contiguous() for name, t in _ours(model)}))
    for name, quantizer in (further or {}).items():
        save_quantizer(path, name, quantizer)


def save_quantizer(folder: str | Path, name: str, quantizer: FurtherQuantizer) -> None:
    """Writes a further vision quantizer into a checkpoint, where ``load_checkpoint`` finds it by name."""
    path = Path(folder) / QUANTIZERS_FOLDER / name
    path.mkdir(parents=True, exist_ok=True)
    state = {key: value.detach().contiguous() for key, value in quantizer.module.state_dict().items()}
    (path / SETTINGS_FILE).write_bytes(
        msgspec.json.format(msgspec.json.encode(quantizer.settings), indent=2) + b"\n"
    )
    (path / WEIGHTS_FILE).write_bytes(save(state))


def _read_further(folder: Path, width: int) -> dict[str, FurtherQuantizer]:
    found: dict[str, FurtherQuantizer] = {}
    for file in sorted(folder.glob(f"{QUANTIZERS_FOLDER}/*/{SETTINGS_FILE}")):
        settings = _read_settings(file, QuantizerSettings)
        module = settings.build(width)
        try:
            weights = load_file(file.parent / WEIGHTS_FILE)
        except (OSError, SafetensorError) as error:
            raise CheckpointError(
                f"{file.parent / WEIGHTS_FILE} cannot be read: {first_line(error)}"
            ) from error
        _take(module.state_dict(keep_vars=True), weights, file.parent)
        found[file.parent.name] = FurtherQuantizer(settings, module.eval())
    return found


def _take(ours: Mapping[str, Tensor], weights: Mapping[str, Tensor], folder: Path) -> None:
    """Copies weights read from a folder; names and shapes must be those its settings ask for."""
    missing = ours.keys() ^ weights.keys()
    if missing:
        raise CheckpointError(
            f"{folder / WEIGHTS_FILE} does not fit {SETTINGS_FILE}: {', '.join(sorted(missing))}"
        )
    for name, tensor in ours.items():
        if tensor.shape != weights[name].shape:
            raise CheckpointError(
                f"{folder / WEIGHTS_FILE}: {name} is {list(weights[name].shape)}, "
                f"{SETTINGS_FILE} asks for {list(tensor.shape)}"
            )
        tensor.data.copy_(weights[name])


def _read_settings(path: Path, kind: type[_Read]) -> _Read:
    try:
        return msgspec.json.decode(path.read_bytes(), type=kind)
    except (OSError, msgspec.DecodeError) as error:
        raise CheckpointError(f"{path} cannot be read: {error}") from error


def _ours(model: SplitModel) -> list[tuple[str, Tensor]]:
    named = [
        (f"{prefix}.{name}", tensor)
        for prefix, module in (
            ("vision_quantizer", model.vision_quantizer),
            ("language_quantizer", model.language_quantizer),
        )
        for name, tensor in module.state_dict(keep_vars=True).items()
    ]
    if model.decoder.picture_places is not None:
        named.append(("picture_places", model.decoder.picture_places))
    return named


def _picture_settings(
    processor: dict[str, Any], settings: Settings, config: LlavaConfig
) -> tuple[Picture, TowerSettings]:
    picture, mean, std = picture_of(processor, settings.image_aspect_ratio)
    layer = config.vision_feature_layer
    return picture, TowerSettings(
        mean=mean,
        std=std,
        feature_layer=layer if isinstance(layer, int) else tuple(layer),
        feature_select=config.vision_feature_select_strategy,
    )
