"""An image processor's configuration as our own preparation of a picture: size, filter, fit, normalisation.

Resizing, padding and cropping happen with Pillow before the graph, normalisation inside it. A processor that
does something else is refused by name instead of being imitated nearly. What a file leaves out is what
transformers takes for that kind of processor (``transformers.models.*.image_processing_pil_*``).
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, TypeAlias

from qtl_core.bundle import Picture, Resample
from qtl_core.errors import CheckpointError
from qtl_core.nn.reading import read_json

PROCESSOR_FILE = "preprocessor_config.json"
Fit: TypeAlias = Literal["square", "pad", "crop"]
Channels: TypeAlias = tuple[float, float, float]
_Side: TypeAlias = tuple[int, int]
_WHOLE_FILE = "processor_config.json"  # newer ones hold the image processor and the rest in one file
_RESAMPLE: dict[int, Resample] = {
    0: "nearest",
    1: "lanczos",
    2: "bilinear",
    3: "bicubic",
    4: "box",
    5: "hamming",
}
_RESCALE = 1 / 255
_CLIP_MEAN, _CLIP_STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
_CLIP: dict[str, Any] = {
    "size": {"shortest_edge": 224},
    "do_center_crop": True,
    "crop_size": {"height": 224, "width": 224},
    "resample": 3,
    "image_mean": list(_CLIP_MEAN),
    "image_std": list(_CLIP_STD),
}
_SIGLIP: dict[str, Any] = {
    "size": {"height": 224, "width": 224},
    "resample": 3,
    "image_mean": [0.5, 0.5, 0.5],
    "image_std": [0.5, 0.5, 0.5],
}
_KINDS = {"CLIPImageProcessor": _CLIP, "LlavaImageProcessor": _CLIP, "SiglipImageProcessor": _SIGLIP}
# Of these ``do_pad`` means: to a square, before everything else. Of others it fills up a batch.
_PADDING_FIRST = (None, "LlavaImageProcessor")


def read_processor(folder: Path) -> dict[str, Any] | None:
    """The image processor's configuration in a folder; None if there is none.

    Raises:
        CheckpointError: a file that is broken.
    """
    if (folder / PROCESSOR_FILE).is_file():
        return read_json(folder / PROCESSOR_FILE)
    if (folder / _WHOLE_FILE).is_file():
        found = read_json(folder / _WHOLE_FILE).get("image_processor")
        return found if isinstance(found, dict) else None
    return None


def usual_processor(vision: dict[str, Any]) -> dict[str, Any]:
    """The image processor that a kind of tower is published with, for checkpoints that bring none.

    Args:
        vision: the tower's configuration; its ``image_size`` sizes the pictures.

    Raises:
        CheckpointError: a kind of tower whose processor is not known.
    """
    kind, side = vision.get("model_type"), vision.get("image_size", 224)
    square = {"height": side, "width": side}
    if kind == "siglip_vision_model":
        return {**_SIGLIP, "size": square}
    if kind == "clip_vision_model":
        return {**_CLIP, "size": {"shortest_edge": side}, "crop_size": square}
    raise CheckpointError(f"no {PROCESSOR_FILE}, and what a tower {kind!r} takes is not known; add that file")


def picture_of(
    processor: dict[str, Any], fit: Fit | None = None, *, floor_pad: bool = False
) -> tuple[Picture, Channels, Channels]:
    """How a picture is prepared, and mean and deviation of its values in 0..1.

    Pictures are always made RGB, also where a processor says ``do_convert_rgb: false``: that leaves grey and
    transparent ones with channels that no tower takes.

    Args:
        processor: the image processor's configuration.
        fit: where another setting decides how a picture becomes square, for any kind of processor; None for
            what the processor does.
        floor_pad: whether the colour of that padding is the mean cut off to whole numbers, not rounded; where
            the processor itself pads, it always is.

    Raises:
        CheckpointError: something is missing, or the processor does what is not supported here.
    """
    told = _with_defaults(processor, known_only=fit is None)
    try:
        own, resized, final = _sizes(told, fit)
        mean = _channels(told, "image_mean")
        resample = _RESAMPLE[int(told.get("resample", 2))]
        factor = float(told.get("rescale_factor", _RESCALE)) if told.get("do_rescale", True) else 1.0
        normalised = told.get("do_normalize", True)
        shift, scale = (mean, _channels(told, "image_std")) if normalised else ((0.0,) * 3, (1.0,) * 3)
    except (KeyError, TypeError, ValueError) as error:
        raise CheckpointError(f"{PROCESSOR_FILE}: {error} is missing or unknown") from error
    if not factor > 0:
        raise CheckpointError(f"{PROCESSOR_FILE}: rescale_factor {factor:g} is no factor above 0")
    floored = floor_pad or fit is None
    pad = [int(255 * value) if floored else round(255 * value) for value in mean]
    if own != "pad":
        pad = [min(max(value, 0), 255) for value in pad]
    elif not all(0 <= value <= 255 for value in pad):
        raise CheckpointError(f"{PROCESSOR_FILE}: image_mean {list(mean)} gives no colour to pad with")
    picture = Picture(
        height=final[0],
        width=final[1],
        resample=resample,
        fit=own,
        pad_colour=(pad[0], pad[1], pad[2]),
        resized=None if resized == final else resized,
    )
    # (v * factor - shift) / scale, of values v * factor that were divided by 255 instead.
    times = 1.0 if abs(factor - _RESCALE) < 1e-9 else _RESCALE / factor
    return picture, _scaled(shift, times), _scaled(scale, times)


def _with_defaults(processor: Mapping[str, Any], *, known_only: bool) -> dict[str, Any]:
    """The configuration with what its kind takes for granted; None stands for not being told."""
    name = processor.get("image_processor_type") or processor.get("feature_extractor_type")
    kind = str(name).removesuffix("Fast").removesuffix("Pil").replace("FeatureExtractor", "ImageProcessor")
    if name and known_only and kind not in _KINDS:
        raise CheckpointError(
            f"{PROCESSOR_FILE}: image processor {name!r} is not supported; known here: {', '.join(_KINDS)}"
        )
    told = {key: value for key, value in processor.items() if value is not None}
    told["image_processor_type"] = kind if name else None
    return {**_KINDS.get(kind, {}), **told}


def _sizes(told: Mapping[str, Any], fit: Fit | None) -> tuple[Fit, _Side, _Side]:
    """Fit, height and width that a picture is resized to, and those of what is taken of it."""
    if not told.get("do_resize", True):
        raise CheckpointError(
            f"{PROCESSOR_FILE}: do_resize is off, and pictures come in any size; it must be on here"
        )
    size = told["size"]
    if isinstance(size, int):  # older files: the shorter side
        size = {"shortest_edge": size}
    size = _named(size)
    crop = _named(told["crop_size"]) if told.get("do_center_crop", False) else None
    taken = None if crop is None else (int(crop["height"]), int(crop["width"]))
    kind = told["image_processor_type"]
    padded = bool(told.get("do_pad", False))
    if padded and kind not in _PADDING_FIRST and told.get("pad_size"):
        raise CheckpointError(f"{PROCESSOR_FILE}: do_pad of a {kind} is not supported")
    if fit is None and padded and kind in _PADDING_FIRST:
        fit = "pad"
    if set(size) == {"shortest_edge"}:
        edge = int(size["shortest_edge"])
        if taken is None and fit is None:
            raise CheckpointError(
                f"{PROCESSOR_FILE}: a shorter side of {edge} pixels is only supported with a centre crop "
                "behind it; towers take pictures of one size"
            )
        return fit or "crop", (edge, edge), taken or (edge, edge)
    if "longest_edge" in size:
        raise CheckpointError(
            f"{PROCESSOR_FILE}: a size by longest_edge is not supported; only by height "
            "and width, or by shortest_edge"
        )
    resized = (int(size["height"]), int(size["width"]))
    return fit or "square", resized, taken or resized


def _named(size: Any) -> Mapping[str, Any]:
    if isinstance(size, int):
        return {"height": size, "width": size}
    if isinstance(size, list | tuple):
        height, width = size
        return {"height": height, "width": width}
    return {key: value for key, value in size.items() if value is not None}


def _channels(told: Mapping[str, Any], name: str) -> Channels:
    value: Any = told.get(name)
    if value is None and not told.get("do_normalize", True):
        return (0.0, 0.0, 0.0)
    if value is None:
        raise KeyError(name)
    if isinstance(value, int | float):
        value = [value] * 3
    red, green, blue = (float(one) for one in value)
    return red, green, blue


def _scaled(values: tuple[float, ...], times: float) -> Channels:
    red, green, blue = (value * times for value in values)
    return red, green, blue
