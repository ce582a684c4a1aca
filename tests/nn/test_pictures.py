"""Image processors as our own preparation: transformers' pixels, and what is not supported is said."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from PIL import Image
from transformers import CLIPImageProcessorPil, SiglipImageProcessorPil

from edge_runtime.picture import prepare
from qtl_core.errors import CheckpointError
from qtl_core.nn.pictures import picture_of, usual_processor

PROCESSORS: dict[str, Any] = {
    "clip_vision_model": CLIPImageProcessorPil,
    "siglip_vision_model": SiglipImageProcessorPil,
}


def scene(width: int, height: int) -> Image.Image:
    rng = np.random.default_rng(width * height)
    small = Image.fromarray(rng.integers(0, 256, (6, 7, 3), dtype=np.uint8))
    return small.resize((width, height), Image.Resampling.BICUBIC)


@pytest.mark.parametrize("size", [(56, 56), (200, 90), (91, 203), (57, 56), (33, 140), (640, 479)])
@pytest.mark.parametrize("tower", PROCESSORS)
def test_pixels_are_those_of_transformers(tower: str, size: tuple[int, int]) -> None:
    processor = usual_processor({"model_type": tower, "image_size": 56})
    picture, mean, std = picture_of(processor)
    pixels = PROCESSORS[tower](**processor)(scene(*size), return_tensors="np")["pixel_values"][0]
    theirs = np.rint((pixels.transpose(1, 2, 0) * std + mean) * 255)
    ours = prepare(scene(*size), picture)
    assert ours.shape == (56, 56, 3)
    assert (ours == theirs).all()


def test_a_crop_larger_than_the_picture_is_enlarged_first() -> None:
    picture, _, _ = picture_of(usual_processor({"model_type": "clip_vision_model", "image_size": 56}))
    assert picture.fit == "crop"
    # White margins left and right of a wide picture are cut off.
    wide = np.zeros((10, 30, 3), dtype=np.uint8)
    wide[:, :10] = wide[:, 20:] = 255
    assert prepare(wide, picture)[28, 8:48].max() < 20


def test_newer_and_older_spellings() -> None:
    older = {"size": 56, "crop_size": 56, "do_center_crop": True, "resample": 3}
    picture, mean, std = picture_of({**older, "do_normalize": False})
    assert (picture.width, picture.height, picture.fit) == (56, 56, "crop")
    assert (mean, std) == ((0.0, 0.0, 0.0), (1.0, 1.0, 1.0))
    half = {"image_mean": [0.4814, 0.4578, 0.4082], "image_std": [0.5, 0.5, 0.5]}
    padded, _, _ = picture_of({**older, **half, "do_pad": True})
    assert padded.fit == "pad" and padded.pad_colour == (122, 116, 104)
    assert picture_of({**older, **half}, "pad")[0].pad_colour == (123, 117, 104)
    assert picture_of({**older, **half}, "pad", floor_pad=True)[0].pad_colour == (122, 116, 104)


def test_what_a_file_leaves_out_is_what_its_kind_takes_for_granted() -> None:
    for name in ("CLIPImageProcessor", "CLIPImageProcessorFast", "LlavaImageProcessor"):
        picture, mean, _ = picture_of({"image_processor_type": name})
        assert (picture.width, picture.fit, picture.resample, mean[0]) == (224, "crop", "bicubic", 0.48145466)
    picture, mean, _ = picture_of({"image_processor_type": "SiglipImageProcessor", "do_convert_rgb": None})
    assert (picture.width, picture.fit, picture.resample, mean[0]) == (224, "square", "bicubic", 0.5)
    # Where a family says how a picture becomes square, any kind may fill in the rest.
    other = {"image_processor_type": "LlavaOnevisionImageProcessor", "size": {"height": 56, "width": 48}}
    picture, _, _ = picture_of({**other, "image_mean": 0.5, "image_std": [0.5] * 3, "do_pad": True}, "square")
    assert (picture.height, picture.width, picture.fit, picture.resized) == (56, 48, "square", None)
    old = {"feature_extractor_type": "CLIPFeatureExtractor", "size": 336, "crop_size": 336}
    assert picture_of(old)[0].height == 336


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"size": {}}, "'height' is missing"),
        ({"do_center_crop": False}, "shorter side of 56"),
        ({"size": {"shortest_edge": 56, "longest_edge": 90}}, "longest_edge"),
        ({"do_resize": False}, "do_resize is off"),
        ({"resample": 9}, "9 is missing or unknown"),
        ({"rescale_factor": 0}, "no factor above 0"),
        ({"image_mean": [0.5]}, "is missing or unknown"),
        ({"image_mean": [123.0, 116.0, 103.0], "do_pad": True}, "no colour to pad with"),
        (
            {"image_processor_type": "Siglip2ImageProcessor"},
            "'Siglip2ImageProcessor' is not supported; known",
        ),
        (
            {"image_processor_type": "CLIPImageProcessor", "do_pad": True, "pad_size": 64},
            "do_pad of a CLIPImageProcessor",
        ),
    ],
)
def test_what_is_not_supported_is_said(change: dict[str, Any], named: str) -> None:
    processor = {**usual_processor({"model_type": "clip_vision_model", "image_size": 56}), **change}
    with pytest.raises(CheckpointError, match=named):
        picture_of(processor)


def test_an_unknown_tower_without_a_processor_is_named() -> None:
    with pytest.raises(CheckpointError, match=r"no preprocessor_config\.json.*'resnet'"):
        usual_processor({"model_type": "resnet"})
