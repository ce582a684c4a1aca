"""Pictures as files: what is encoded can be decoded, headers are constant, and the tower learns from it."""

from __future__ import annotations

import io

import numpy as np
import pytest
import torch
from PIL import Image, features

from qtl_core.errors import MissingExtra, PictureError
from qtl_core.nn.checkpoint import Checkpoint
from qtl_training.digits.scenes import render, sample
from qtl_training.rivals.methods import Setting
from qtl_training.rivals.pictures import CodedScenes, Format, PictureCodec, features_of

CODECS: tuple[Format, ...] = ("jpeg", "webp", "avif") if features.check("avif") else ("jpeg", "webp")
SETTINGS = (Setting(side=96, quality=40), Setting(side=48, quality=40))


@pytest.mark.parametrize("name", CODECS)
def test_files_decode_to_the_pictures_size(name: Format) -> None:
    codec = PictureCodec(name)
    picture = render(sample("validation", 1, 1), slice(None))[0]
    for setting in SETTINGS:
        data = codec.encode(picture, setting, fast=True)
        with Image.open(io.BytesIO(data)) as image:
            assert image.format == name.upper() and image.size == (setting.side, setting.side)
            assert not image.info.get("exif") and not image.info.get("icc_profile")
        again = codec.decode(data)
        assert again.shape == (96, 96, 3) and again.dtype == np.uint8
        assert np.abs(again.astype(int) - picture).mean() < 20
    coarse = codec.encode(picture, Setting(side=96, quality=5), fast=True)
    fine = codec.encode(picture, Setting(side=96, quality=80), fast=True)
    assert len(coarse) < len(fine)


@pytest.mark.parametrize("name", CODECS)
def test_the_header_is_less_than_any_picture_and_more_than_a_magic_number(name: Format) -> None:
    codec = PictureCodec(name)
    pictures = render(sample("validation", 4, 1), slice(None))
    for setting in SETTINGS:
        header = codec.header(setting, fast=True)
        assert 30 < header < min(len(codec.encode(picture, setting, fast=True)) for picture in pictures)
        assert codec.header(setting, fast=True) == header


def test_jpeg_is_the_smaller_of_baseline_and_progressive() -> None:
    picture = render(sample("validation", 1, 1), slice(None))[0]
    setting = Setting(side=96, quality=40)
    size = len(PictureCodec("jpeg").encode(picture, setting))
    sizes = []
    for progressive in (False, True):
        file = io.BytesIO()
        Image.fromarray(picture).save(
            file, "JPEG", quality=40, optimize=True, subsampling="4:2:0", progressive=progressive
        )
        sizes.append(len(file.getvalue()))
    assert size == min(sizes)


@pytest.mark.parametrize("name", CODECS)
def test_bytes_that_are_no_file_are_refused(name: Format) -> None:
    codec = PictureCodec(name)
    whole = codec.encode(np.zeros((96, 96, 3), np.uint8), SETTINGS[0], fast=True)
    for wrong in (b"", b"no picture", whole[: len(whole) // 2]):
        with pytest.raises(PictureError, match=f"no {name} file"):
            codec.decode(wrong)


def test_a_codec_that_pillow_lacks_is_a_missing_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(features, "check", lambda name: False)
    with pytest.raises(MissingExtra, match=r"AVIF.*\[bench\]"):
        PictureCodec("avif")


def test_settings_are_named_by_what_differs() -> None:
    assert Setting(side=96, quality=40).label == "40"
    assert Setting(side=48, quality=7, chroma="4:4:4").label == "7@48-444"


def test_gradients_reach_the_tower_and_settings_are_drawn(tiny: Checkpoint) -> None:
    vision, scenes = tiny.model.vision, sample("train", 6, 1)
    source = CodedScenes(vision, scenes, PictureCodec("jpeg"), SETTINGS, seed=1)
    seen = source[[4, 0, 4]]
    assert seen.shape == (3, 36, 16)
    (gradient,) = torch.autograd.grad(seen.square().sum(), [next(vision.tower.parameters())])
    assert gradient.abs().sum() > 0
    again = CodedScenes(vision, scenes, PictureCodec("jpeg"), SETTINGS, seed=1)
    with torch.no_grad():
        drawn = [again[[4, 0, 4]] for _ in range(4)]
        assert torch.equal(drawn[0], seen.detach())
        assert any(not torch.equal(other, drawn[0]) for other in drawn[1:])


def test_the_server_sees_what_the_files_hold(tiny: Checkpoint) -> None:
    codec, vision = PictureCodec("jpeg"), tiny.model.vision
    pictures = render(sample("validation", 3, 1), slice(None))
    files = [codec.encode(picture, SETTINGS[1]) for picture in pictures]
    seen = features_of(vision, codec, [files[0], b"", files[2]])
    with torch.no_grad():
        alone = vision.tower_features(torch.from_numpy(codec.decode(files[2])[None].copy()))
    assert torch.allclose(seen[2], alone[0], atol=1e-5)
    assert not seen[1].any()
