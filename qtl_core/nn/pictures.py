"""An image processor's configuration as our own preparation of a picture: size, filter, fit, normalisation.

Resizing, padding and cropping happen with Pillow before the graph, normalisation inside it. A processor that
does something else is refused by name instead of being imitated nearly.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal, TypeAlias

from qtl_core.bundle import Picture
from qtl_core.errors import CheckpointError
from qtl_core.nn.families.base import read_json

PROCESSOR_FILE = "preprocessor_config.json"
Fit: TypeAlias = Literal["square", "pad", "crop"]
Channels: TypeAlias = tuple[float, float, float]
_WHOLE_FILE = "processor_config.json"  # newer ones hold the image processor and the rest in one file
_RESAMPLE: dict[int, Literal["lanczos", "bilinear", "bicubic"]] = {1: "lanczos", 2: "bilinear", 3: "bicubic"}
_RESCALE = 1 / 255
_CLIP_MEAN, _CLIP_STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)


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
    if kind == "siglip_vision_model":
        half = [0.5, 0.5, 0.5]
        size = {"height": side, "width": side}
        return {"size": size, "resample": 3, "image_mean": half, "image_std": half}
    if kind == "clip_vision_model":
        return {
            "size": {"shortest_edge": side},
            "do_center_crop": True,
            "crop_size": {"height": side, "width": side},
            "resample": 3,
            "image_mean": list(_CLIP_MEAN),
            "image_std": list(_CLIP_STD),
        }
    raise CheckpointError(f"no {PROCESSOR_FILE}, and what a tower {kind!r} takes is not known; add that file")


def picture_of(
    processor: dict[str, Any], fit: Fit | None = None, *, floor_pad: bool = False
) -> tuple[Picture, Channels, Channels]:
    """How a picture is prepared, and mean and deviation of its values in 0..1.

    Args:
        processor: the image processor's configuration.
        fit: where another setting decides how a picture becomes square; None for what the processor does.
        floor_pad: whether the colour of the padding is the mean cut off to whole numbers, not rounded.

    Raises:
        CheckpointError: something is missing, or the processor does what is not supported here.
    """
    try:
        height, width, own = _size(processor)
        mean, std = _channels(processor, "image_mean", 0.0), _channels(processor, "image_std", 1.0)
        resample = _RESAMPLE[int(processor.get("resample", 2))]
        rescale = float(processor.get("rescale_factor", _RESCALE))
    except (KeyError, TypeError, ValueError) as error:
        raise CheckpointError(f"{PROCESSOR_FILE}: {error} is missing or unknown") from error
    if not processor.get("do_rescale", True) or abs(rescale - _RESCALE) > 1e-6:
        raise CheckpointError(f"{PROCESSOR_FILE}: only values divided by 255 are supported, not {rescale:g}")
    pad = [int(255 * value) if floor_pad else round(255 * value) for value in mean]
    picture = Picture(
        height=height,
        width=width,
        resample=resample,
        fit=own if fit is None else fit,
        pad_colour=(pad[0], pad[1], pad[2]),
    )
    return picture, mean, std


def _size(processor: dict[str, Any]) -> tuple[int, int, Fit]:
    size: Any = processor["size"]
    crop: Any = processor.get("crop_size")
    if isinstance(size, int):  # older files: the shorter side
        size = {"shortest_edge": size}
    if isinstance(crop, int):
        crop = {"height": crop, "width": crop}
    crops = bool(processor.get("do_center_crop", False)) and crop is not None
    if "shortest_edge" not in size:
        height, width = int(size["height"]), int(size["width"])
        if crops and (int(crop["height"]), int(crop["width"])) != (height, width):
            raise CheckpointError(f"{PROCESSOR_FILE}: a crop of the resized picture is not supported")
        return height, width, "pad" if processor.get("do_pad", False) else "square"
    edge = int(size["shortest_edge"])
    if not crops or (int(crop["height"]), int(crop["width"])) != (edge, edge):
        raise CheckpointError(
            f"{PROCESSOR_FILE}: a shorter side of {edge} pixels is only supported with a centre crop of "
            f"{edge} x {edge}, not {crop if crops else 'without one'}"
        )
    return edge, edge, "pad" if processor.get("do_pad", False) else "crop"


def _channels(processor: dict[str, Any], name: str, without: float) -> Channels:
    if not processor.get("do_normalize", True):
        return (without, without, without)
    red, green, blue = (float(value) for value in processor[name])
    return red, green, blue
