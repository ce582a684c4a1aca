"""Checkpoints: a Hugging Face LLaVA-layout folder, and the quantizers beside it.

    config.json, model.safetensors        LlavaForConditionalGeneration
    tokenizer.json, tokenizer_config.json, chat_template.jinja
    preprocessor_config.json              the tower's image processor
    qtl.json, qtl.safetensors             quantizers, place vectors and how to run them
    quantizers/NAME/                      further vision quantizers for the same weights: qtl.json (their
                                          settings) and qtl.safetensors

transformers reads everything but the last two by itself.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, TypeVar

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
from transformers.utils import logging as transformers_logging

from qtl_core.bundle import Picture, Template
from qtl_core.errors import CheckpointError
from qtl_core.nn import stem
from qtl_core.nn.decoder import PictureDecoder
from qtl_core.nn.model import SplitModel, TowerSettings, VisionEncoder
from qtl_core.nn.quantizer import Centre, Quantizer, Scaling

SETTINGS_FILE = "qtl.json"
WEIGHTS_FILE = "qtl.safetensors"
QUANTIZERS_FOLDER = "quantizers"
PROCESSOR_FILE = "preprocessor_config.json"
IMAGE_TOKEN = "<image>"
_RESAMPLE: dict[int, Literal["lanczos", "bilinear", "bicubic"]] = {1: "lanczos", 2: "bilinear", 3: "bicubic"}
_MARK = "\x02question\x03"
_Read = TypeVar("_Read")


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
    """What ``qtl.json`` holds.

    Attributes:
        name: the model's name in manifests and logs.
        vision, language: the quantizers.
        picture_attention: "causal" or "bidirectional" among the picture's tokens.
        picture_places: whether the server adds learnt place vectors to picture tokens.
        image_aspect_ratio: "square" stretches a picture to the tower's size, "pad" pads it first.
        max_question_tokens: the longest question the model takes.
        max_answer_tokens: where an answer is cut off unless the client asks for less.
    """

    name: str
    vision: QuantizerSettings
    language: QuantizerSettings
    picture_attention: Literal["causal", "bidirectional"] = "causal"
    picture_places: bool = False
    image_aspect_ratio: Literal["square", "pad"] = "square"
    max_question_tokens: int = 48
    max_answer_tokens: int = 16


@dataclass(frozen=True)
class FurtherQuantizer:
    """A vision quantizer beside the checkpoint's own: another number of bytes for the same weights."""

    settings: QuantizerSettings
    module: Quantizer


@dataclass(frozen=True)
class Checkpoint:
    """A loaded checkpoint.

    Attributes:
        path: the folder.
        llava: transformers' model; shares its weights with ``model``.
        model: both sides of the cut, in float32 and evaluation mode.
        tokenizer: the model's.
        processor: the image processor's configuration.
        settings: what ``qtl.json`` says; ``settings.vision`` is the chosen quantizer's.
        further: the further vision quantizers, by name.
        quantizer: the one of them that is the model's; "" for the checkpoint's own.
        picture: how a picture is prepared for the tower.
        template: what stands around picture and question.
    """

    path: Path
    llava: LlavaForConditionalGeneration
    model: SplitModel
    tokenizer: PreTrainedTokenizerFast
    processor: dict[str, Any]
    settings: Settings
    picture: Picture
    template: Template
    further: Mapping[str, FurtherQuantizer] = field(default_factory=dict)
    quantizer: str = ""

    @property
    def quantizers(self) -> tuple[str, ...]:
        """Names of the further vision quantizers, sorted."""
        return tuple(sorted(self.further))


def load_checkpoint(path: str | Path, *, quantizer: str = "") -> Checkpoint:
    """Reads a checkpoint folder.

    Args:
        path: the folder.
        quantizer: name of one of its further vision quantizers, which then takes the place of the
            checkpoint's own.

    Raises:
        CheckpointError: if a file is missing or damaged, there is no quantizer of that name, or the
            model is of another family.
    """
    folder = Path(path)
    if not folder.is_dir():
        raise CheckpointError(f"no checkpoint at {folder}: it must be a folder with config.json in it")
    for name in ("config.json", "model.safetensors", "tokenizer.json", PROCESSOR_FILE,
                 SETTINGS_FILE, WEIGHTS_FILE):  # fmt: skip
        if not (folder / name).is_file():
            raise CheckpointError(f"checkpoint {folder} has no {name}; is the download complete?")
    settings = _read_settings(folder / SETTINGS_FILE, Settings)
    family = _read_json(folder / "config.json").get("model_type")
    if family != "llava":
        raise CheckpointError(f"checkpoint {folder} is of the family {family!r}; known here: 'llava'")
    stem.register()
    try:
        with quiet():
            llava = LlavaForConditionalGeneration.from_pretrained(folder, dtype=torch.float32)
        weights = load_file(folder / WEIGHTS_FILE)
    except (OSError, ValueError, RuntimeError, SafetensorError) as error:
        raise CheckpointError(f"checkpoint {folder} cannot be read: {_first_line(error)}") from error
    tokenizer = PreTrainedTokenizerFast.from_pretrained(folder)
    processor = _read_json(folder / PROCESSOR_FILE)
    picture, tower = _picture_settings(processor, settings, llava.config)
    model = assemble(llava, settings, tower)
    _take(dict(_ours(model)), weights, folder)
    further = _read_further(folder, model.vision_quantizer.width)
    if quantizer:
        if quantizer not in further:
            known = ", ".join(sorted(further)) or "none beside its own"
            raise CheckpointError(f"checkpoint {folder} has no quantizer {quantizer!r}; it has {known}")
        model.vision_quantizer = further[quantizer].module
        settings = msgspec.structs.replace(settings, vision=further[quantizer].settings)
    return Checkpoint(
        folder,
        llava,
        model.eval(),
        tokenizer,
        processor,
        settings,
        picture,
        split_template(tokenizer),
        further,
        quantizer,
    )


def assemble(llava: LlavaForConditionalGeneration, settings: Settings, tower: TowerSettings) -> SplitModel:
    """Cuts a LLaVA of transformers after its connector; the quantizers are new."""
    config = llava.config
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


def split_template(tokenizer: PreTrainedTokenizerFast) -> Template:
    """The text around picture and question in the tokenizer's chat template.

    Raises:
        CheckpointError: if the template has no place for a picture or a question.
    """
    content: Any = [{"type": "image"}, {"type": "text", "text": _MARK}]
    text = str(
        tokenizer.apply_chat_template(
            [{"role": "user", "content": content}], tokenize=False, add_generation_prompt=True
        )
    )
    before, image, rest = text.partition(IMAGE_TOKEN)
    between, question, after = rest.partition(_MARK)
    if not image or not question:
        raise CheckpointError(f"the chat template renders {text!r}: no {IMAGE_TOKEN} before the question")
    return Template(before_image=before, between=between, after_question=after)


def _read_further(folder: Path, width: int) -> dict[str, FurtherQuantizer]:
    found: dict[str, FurtherQuantizer] = {}
    for file in sorted(folder.glob(f"{QUANTIZERS_FOLDER}/*/{SETTINGS_FILE}")):
        settings = _read_settings(file, QuantizerSettings)
        module = settings.build(width)
        try:
            weights = load_file(file.parent / WEIGHTS_FILE)
        except (OSError, SafetensorError) as error:
            raise CheckpointError(
                f"{file.parent / WEIGHTS_FILE} cannot be read: {_first_line(error)}"
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
    size = processor.get("size", {})
    try:
        height, width = int(size["height"]), int(size["width"])
        mean, std = processor["image_mean"], processor["image_std"]
        resample = _RESAMPLE[int(processor.get("resample", 2))]
    except (KeyError, TypeError, ValueError) as error:
        raise CheckpointError(f"{PROCESSOR_FILE}: {error} is missing or unknown") from error
    pad = tuple(round(255 * value) for value in mean)
    picture = Picture(
        height=height,
        width=width,
        resample=resample,
        fit=settings.image_aspect_ratio,
        pad_colour=(pad[0], pad[1], pad[2]),
    )
    layer = config.vision_feature_layer
    if not isinstance(layer, int):
        raise CheckpointError(f"vision_feature_layer {layer}: several layers are not read yet, only one")
    return picture, TowerSettings(
        mean=(mean[0], mean[1], mean[2]),
        std=(std[0], std[1], std[2]),
        feature_layer=layer,
        feature_select=config.vision_feature_select_strategy,
    )


def _read_json(path: Path) -> dict[str, Any]:
    try:
        value = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path} cannot be read: {error}") from error
    if not isinstance(value, dict):
        raise CheckpointError(f"{path} must hold a JSON object")
    return value


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
