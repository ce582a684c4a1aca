"""The device's way from a picture file to codes beside transformers' own image processors, for every kind.

The same weights and quantizer follow both, so that what differs is what preparing the picture differs by.
"""

from __future__ import annotations

import copy
import io
import json
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import CLIPImageProcessorPil, LlavaImageProcessorPil, SiglipImageProcessorPil

from edge_runtime.picture import prepare
from qtl_core.nn.checkpoint import Checkpoint, load_checkpoint
from qtl_core.nn.client_partition import ClientPartition
from qtl_core.nn.pictures import PROCESSOR_FILE
from qtl_core.nn.quantizer import Quantizer
from tests.nn import foreign
from tests.nn.test_family_tinyllava import finish

LEVELS = (4, 16, 256)
ONE_IN = 1000
HALF = {"image_mean": [0.5] * 3, "image_std": [0.5] * 3}


@dataclass(frozen=True)
class Kind:
    """An image processor, in the checkpoint it comes with."""

    theirs: Any
    settings: dict[str, Any]
    tower: str = "clip_vision_model"
    tinyllava: str = ""  # its image_aspect_ratio
    side: int = field(default=foreign.SIDE)

    @property
    def drops(self) -> bool:
        """Whether what goes in was read by ``Image.convert("RGB")``, which forgets transparency."""
        # Where a file has null for do_convert_rgb, transformers' processor fails on all that is not RGB.
        return self.tinyllava == "pad" or not self.settings.get("do_convert_rgb", True)


def crop(side: Any, edge: Any, **more: Any) -> dict[str, Any]:
    return {"size": edge, "crop_size": side, "do_center_crop": True, **more}


SIGLIP = "siglip_vision_model"
SQUARE = {"size": {"height": 28, "width": 28}}
KINDS = {
    "clip": Kind(CLIPImageProcessorPil, crop({"height": 28, "width": 28}, {"shortest_edge": 28})),
    "clip-numbers-bilinear": Kind(CLIPImageProcessorPil, crop(28, 28, resample=2)),
    "clip-shorter-side-below-the-crop": Kind(CLIPImageProcessorPil, crop(28, {"shortest_edge": 19})),
    "clip-shorter-side-above-the-crop": Kind(CLIPImageProcessorPil, crop(28, {"shortest_edge": 37})),
    "clip-crop-of-a-fixed-size": Kind(CLIPImageProcessorPil, crop(28, {"height": 33, "width": 25})),
    "clip-without-crop": Kind(CLIPImageProcessorPil, {**SQUARE, "do_center_crop": False}),
    "llava-crop": Kind(LlavaImageProcessorPil, crop(28, {"shortest_edge": 28})),
    "llava-pad": Kind(LlavaImageProcessorPil, crop(28, {"shortest_edge": 28}, do_pad=True)),
    "llava-pad-fixed-lanczos": Kind(
        LlavaImageProcessorPil, {**SQUARE, "do_pad": True, "do_center_crop": False, "resample": 1}
    ),
    "siglip": Kind(SiglipImageProcessorPil, SQUARE, SIGLIP),
    "siglip2": Kind(SiglipImageProcessorPil, {**SQUARE, "resample": 2}, SIGLIP),
    "paligemma": Kind(SiglipImageProcessorPil, {**SQUARE, **HALF, "do_convert_rgb": None}, SIGLIP),
    "siglip-box": Kind(SiglipImageProcessorPil, {**SQUARE, "resample": 4}, SIGLIP),
    "siglip-hamming": Kind(SiglipImageProcessorPil, {**SQUARE, "resample": 5}, SIGLIP),
    "siglip-nearest": Kind(SiglipImageProcessorPil, {**SQUARE, "resample": 0}, SIGLIP),
    "siglip-other-factor": Kind(
        SiglipImageProcessorPil,
        {**SQUARE, "rescale_factor": 1 / 127.5, "image_mean": [1.0] * 3, "image_std": [1.0] * 3},
        SIGLIP,
    ),
    "siglip-no-rescale": Kind(
        SiglipImageProcessorPil,
        {**SQUARE, "do_rescale": False, "image_mean": [123.0, 116.0, 103.0], "image_std": [58.0] * 3},
        SIGLIP,
    ),
    "siglip-no-normalize": Kind(SiglipImageProcessorPil, {**SQUARE, "do_normalize": False}, SIGLIP),
    "tinyllava-square": Kind(
        SiglipImageProcessorPil, {"size": {"height": 56, "width": 56}, **HALF}, tinyllava="square", side=56
    ),
    "tinyllava-square-clip": Kind(CLIPImageProcessorPil, crop(56, 56), tinyllava="square", side=56),
    "tinyllava-pad": Kind(
        SiglipImageProcessorPil, {"size": {"height": 56, "width": 56}, **HALF}, tinyllava="pad", side=56
    ),
    "tinyllava-pad-clip": Kind(CLIPImageProcessorPil, crop(56, 56), tinyllava="pad", side=56),
}
FIRST = (
    "clip",
    "clip-shorter-side-below-the-crop",
    "llava-pad",
    "siglip2",
    "siglip-no-rescale",
    "tinyllava-pad-clip",
)
FEW = [(61, 43), (1, 90), (400, 3), (28, 28)]
MANY = [
    *FEW,
    (29, 28),
    (27, 640),
    (640, 481),
    (1, 1),
    (2, 3),
    (3, 2),
    (97, 97),
    (1023, 5),
    (5, 1023),
    (333, 334),
]


def scene(width: int, height: int) -> Image.Image:
    """Something smooth with noise on it."""
    rng = np.random.default_rng(1000 * width + height)
    small = Image.fromarray(rng.integers(0, 256, (5, 6, 3), dtype=np.uint8))
    smooth = np.asarray(small.resize((width, height), Image.Resampling.BICUBIC), dtype=np.int64)
    noise = rng.integers(-20, 21, (height, width, 3))
    return Image.fromarray(np.clip(smooth + noise, 0, 255).astype(np.uint8))


def alpha(image: Image.Image) -> Image.Image:
    """From left to right ever less transparent."""
    ramp = np.linspace(0, 255, image.width).astype(np.uint8)
    return Image.fromarray(np.broadcast_to(ramp, (image.height, image.width)).copy())


def rgba(image: Image.Image) -> Image.Image:
    image.putalpha(alpha(image))
    return image


def grey_alpha(image: Image.Image) -> Image.Image:
    return Image.merge("LA", (image.convert("L"), alpha(image)))


SORTS: dict[str, tuple[str, Callable[[Image.Image], Image.Image], dict[str, Any]]] = {
    "png": ("PNG", lambda image: image, {}),
    "jpeg": ("JPEG", lambda image: image, {"quality": 80}),
    "webp": ("WEBP", lambda image: image, {"quality": 80}),
    "grey": ("PNG", lambda image: image.convert("L"), {}),
    "grey-jpeg": ("JPEG", lambda image: image.convert("L"), {}),
    "grey-alpha": ("PNG", grey_alpha, {}),
    "bilevel": ("PNG", lambda image: image.convert("1"), {}),
    "palette": ("PNG", lambda image: image.quantize(20), {}),
    "palette-transparent": ("PNG", lambda image: image.quantize(20), {"transparency": 3}),
    "colour-key": ("PNG", lambda image: image.quantize(20).convert("RGB"), {"transparency": (9, 9, 9)}),
    "alpha": ("PNG", rgba, {}),
    "alpha-webp": ("WEBP", rgba, {"lossless": True}),
    "cmyk": ("JPEG", lambda image: image.convert("CMYK"), {}),
    **{f"turned-{turn}": ("JPEG", lambda image: image, {"exif": turn}) for turn in range(1, 9)},
}
DROPPED = ("grey-alpha", "palette-transparent", "colour-key", "alpha", "alpha-webp")
USUAL = ("png", "grey", "palette-transparent", "alpha", "turned-6")


def file_of(sort: str, image: Image.Image) -> bytes:
    form, change, options = SORTS[sort]
    options = dict(options)
    if "exif" in options:
        exif = Image.Exif()
        exif[0x0112] = options["exif"]
        options["exif"] = exif.tobytes()
    buffer = io.BytesIO()
    change(image).save(buffer, form, **options)
    return buffer.getvalue()


def expand2square(image: Image.Image, colour: tuple[int, ...]) -> Image.Image:
    """TinyLLaVA Factory's padding, ``ImagePreprocess.expand2square``."""
    width, height = image.size
    side = max(width, height)
    square = Image.new(image.mode, (side, side), colour)
    square.paste(image, ((side - width) // 2, (side - height) // 2))
    return square


def checkpoint_of(kind: Kind, folder: Path) -> Checkpoint:
    if kind.tinyllava:
        finish(folder, lambda config: config.update(image_aspect_ratio=kind.tinyllava))
    else:
        foreign.make_llava(folder, kind.tower)
    written = kind.theirs(**kind.settings).to_dict()
    assert set(kind.settings) <= set(written) | {"do_convert_rgb"}
    (folder / PROCESSOR_FILE).write_text(json.dumps({**written, **kind.settings}))
    return load_checkpoint(folder)


class Both:
    """Codes of a picture file by our way and by theirs."""

    def __init__(self, kind: Kind, folder: Path) -> None:
        self.kind, self.checkpoint = kind, checkpoint_of(kind, folder)
        vision = self.checkpoint.model.vision
        width = self.checkpoint.model.decoder.width
        torch.manual_seed(1)
        quantizer = Quantizer(width, width, 4)
        self.ours = {level: ClientPartition(vision, quantizer, level) for level in LEVELS}
        # Theirs are normalised already.
        bare = copy.deepcopy(vision)
        bare.pixel_mean.zero_()
        bare.pixel_std.fill_(1)
        self.theirs = {level: ClientPartition(bare, quantizer, level) for level in LEVELS}
        self.processor = kind.theirs(**kind.settings)

    def expected(self, data: bytes, file: Path | None) -> torch.Tensor:
        source: Any = Image.open(io.BytesIO(data))
        if file is not None:  # read by transformers itself, which then turns it upright
            file.write_bytes(data)
            source = str(file)
        if self.kind.drops:
            source = self.processor.fetch_images(source).convert("RGB")
        if self.kind.tinyllava == "pad":
            colour = tuple(int(255 * value) for value in self.processor.image_mean)
            source = expand2square(source, colour)
        found = self.processor(source, return_tensors="np")["pixel_values"][0]
        return torch.from_numpy(found.astype(np.float32)).permute(1, 2, 0)[None]

    @torch.inference_mode()
    def differences(self, data: bytes, expected: torch.Tensor) -> Iterator[torch.Tensor]:
        prepared = prepare(data, self.checkpoint.picture)
        assert prepared.shape == (self.kind.side, self.kind.side, 3)
        batch = torch.from_numpy(prepared.copy())[None]
        for level in LEVELS:
            ours, theirs = self.ours[level].codes(batch), self.theirs[level].codes(expected)
            yield (ours.int() - theirs.int()).abs()


def compare(
    name: str, both: Both, sizes: list[tuple[int, int]], sorts: tuple[str, ...], folder: Path
) -> None:
    n = differ = largest = 0
    for size in sizes:
        for sort in sorts:
            if both.kind.drops and sort in DROPPED:
                continue
            data = file_of(sort, scene(*size))
            turned = folder / "turned.jpg" if sort.startswith("turned") else None
            for difference in both.differences(data, both.expected(data, turned)):
                n += difference.numel()
                differ += int((difference > 0).sum())
                largest = max(largest, int(difference.max()))
    print(f"{name}: {differ:,} of {n:,} codes differ, the largest difference is {largest}")
    assert n >= 1000
    assert differ * ONE_IN <= n and largest <= 1


@pytest.mark.parametrize("name", FIRST)
def test_codes_are_those_behind_transformers_processor(name: str, tmp_path: Path) -> None:
    compare(name, Both(KINDS[name], tmp_path / "mine"), FEW, USUAL, tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("name", KINDS)
def test_codes_of_every_size_and_sort(name: str, tmp_path: Path) -> None:
    compare(name, Both(KINDS[name], tmp_path / "mine"), MANY, tuple(SORTS), tmp_path)


@pytest.mark.parametrize("name", ["siglip", "tinyllava-pad"])
def test_sixteen_bits_are_those_of_the_same_picture_in_eight(name: str, tmp_path: Path) -> None:
    # transformers itself cuts such values off at 255: nearly all of the picture is white.
    both = Both(KINDS[name], tmp_path / "mine")
    deep = np.random.default_rng(5).integers(0, 65536, (40, 60), dtype=np.uint16)
    buffer, shallow = io.BytesIO(), io.BytesIO()
    Image.fromarray(deep).save(buffer, "PNG")
    Image.fromarray((deep >> 8).astype(np.uint8)).save(shallow, "PNG")
    for difference in both.differences(buffer.getvalue(), both.expected(shallow.getvalue(), None)):
        assert difference.float().gt(0).float().mean() <= 1 / ONE_IN and difference.max() <= 1
    theirs = CLIPImageProcessorPil(do_normalize=False)(Image.open(io.BytesIO(buffer.getvalue())))
    assert (np.asarray(theirs["pixel_values"][0]) > 0.99).mean() > 0.9


@pytest.mark.slow
def test_the_exported_graph_too(tmp_path: Path) -> None:
    from edge_runtime.encoder import Encoder
    from qtl_core import codes as packing
    from qtl_core.bundle import open_half
    from qtl_export.cli import main

    kind = KINDS["clip-shorter-side-below-the-crop"]
    both = Both(kind, tmp_path / "mine")
    pictures = tmp_path / "pictures"
    pictures.mkdir()
    for number in range(40):
        scene(30 + number, 50).save(pictures / f"{number}.png")
    options = ["--calibrate", str(pictures), "--bits", "4", "--validate", "8"]
    assert main([*options, str(tmp_path / "mine"), "-o", str(tmp_path / "bundle")]) == 0
    half = open_half(tmp_path / "bundle" / "client", "client")
    assert half.manifest.picture == both.checkpoint.picture
    assert half.manifest.picture.resized == (19, 19)
    shutil.rmtree(tmp_path / "mine")
    encoder, cut = Encoder(half), half.manifest.cut
    n = 0
    for path in pictures.iterdir():
        data = path.read_bytes()
        pixels = both.processor(Image.open(path), return_tensors="np")["pixel_values"][0]
        mean, std = (np.array(both.checkpoint.processor[key]) for key in ("image_mean", "image_std"))
        theirs = np.rint((pixels.transpose(1, 2, 0) * std + mean) * 255).astype(np.uint8)
        ours = prepare(data, half.manifest.picture)
        assert np.array_equal(theirs, ours)
        (one,), (other,) = encoder.run(ours[None]), encoder.run(theirs[None])
        assert one == other
        n += packing.unpack(one, cut.levels, (cut.tokens, cut.code_dim)).size
    assert n == 40 * cut.tokens * cut.code_dim
