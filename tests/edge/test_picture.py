"""Pictures of every kind become the same upright RGB pixels; everything else becomes one clear error."""

from __future__ import annotations

import io
import os
import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from edge_runtime import picture
from qtl_core import bundle
from qtl_core.errors import PictureError
from tests.edge import tiny

CAP = 1_000_000
SCENE = tiny.scene(1, height=24, width=40)


def pixels(source: Any) -> tiny.Pixels:
    return np.asarray(picture.decode(source, CAP))


def spec(fit: Any = "square", resample: Any = "bilinear", **fields: Any) -> bundle.Picture:
    return bundle.Picture(
        height=32, width=32, resample=resample, fit=fit, pad_colour=(10, 20, 30), max_pixels=CAP, **fields
    )


def chunk(name: bytes, data: bytes) -> bytes:
    """One chunk of a PNG."""
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))


def bomb(width: int, height: int) -> bytes:
    """A PNG that claims a size and holds nearly nothing."""
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    start = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header)
    return start + chunk(b"IDAT", zlib.compress(b"\0" * 1000)) + chunk(b"IEND", b"")


def test_lossless_files_come_through_exactly(tmp_path: Path) -> None:
    for data in (tiny.file_bytes(SCENE), tiny.file_bytes(SCENE, "WEBP", lossless=True)):
        path = tmp_path / "name does not matter.bin"
        path.write_bytes(data)
        for source in (data, bytearray(data), memoryview(data), path, str(path)):
            assert np.array_equal(pixels(source), SCENE)
    assert np.array_equal(pixels(SCENE), SCENE)
    assert np.array_equal(pixels(Image.fromarray(SCENE)), SCENE)


def test_jpeg_comes_through_nearly() -> None:
    for options in ({}, {"progressive": True}, {"subsampling": 0}):
        found = pixels(tiny.file_bytes(SCENE, "JPEG", quality=95, **options))
        assert np.abs(found.astype(int) - SCENE).mean() < 8


@pytest.mark.parametrize("form", ["JPEG", "PNG", "WEBP"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_orientation_is_undone(form: str, orientation: int) -> None:
    undo = {
        1: lambda a: a,
        2: lambda a: a[:, ::-1],
        3: lambda a: a[::-1, ::-1],
        4: lambda a: a[::-1],
        5: lambda a: a.transpose(1, 0, 2),
        6: lambda a: np.rot90(a, -1),
        7: lambda a: a[::-1, ::-1].transpose(1, 0, 2),
        8: lambda a: np.rot90(a),
    }[orientation]
    exif = Image.Exif()
    exif[0x0112] = orientation
    plain = np.asarray(Image.open(io.BytesIO(tiny.file_bytes(SCENE, form))).convert("RGB"))
    found = pixels(tiny.file_bytes(SCENE, form, exif=exif.tobytes()))
    assert np.array_equal(found, undo(plain))


def test_nonsense_in_the_metadata_does_not_matter() -> None:
    for exif in (b"Exif\0\0nonsense", b"Exif\0\0MM\0*\xff\xff\xff\xff", b"Exif\0\0II*\0\x08\0\0\0\xff\xff"):
        assert pixels(tiny.file_bytes(SCENE, "JPEG", exif=exif)).shape == SCENE.shape
    exif_object = Image.Exif()
    exif_object[0x0112] = 99
    assert np.array_equal(pixels(tiny.file_bytes(SCENE, exif=exif_object.tobytes())), SCENE)


def test_grey_palette_bilevel_and_cmyk() -> None:
    image = Image.fromarray(SCENE)
    grey = image.convert("L")
    assert np.array_equal(pixels(tiny.file_bytes(grey)), np.asarray(grey.convert("RGB")))
    palette = image.quantize(16)
    assert np.array_equal(pixels(tiny.file_bytes(palette)), np.asarray(palette.convert("RGB")))
    bilevel = image.convert("1")
    assert np.array_equal(pixels(tiny.file_bytes(bilevel)), np.asarray(bilevel.convert("RGB")))
    cmyk = tiny.file_bytes(image.convert("CMYK"), "JPEG", quality=95)
    assert np.abs(pixels(cmyk).astype(int) - SCENE).mean() < 12
    assert np.array_equal(pixels(SCENE[:, :, 0]), np.repeat(SCENE[:, :, :1], 3, axis=2))
    assert np.array_equal(pixels(SCENE[:, :, :1]), np.repeat(SCENE[:, :, :1], 3, axis=2))


def test_sixteen_bits_keep_the_upper_byte() -> None:
    deep = (np.arange(24 * 40, dtype=np.uint32).reshape(24, 40) * 68).astype(np.uint16)
    image = Image.fromarray(deep)
    expected = np.repeat((deep >> 8).astype(np.uint8)[:, :, None], 3, axis=2)
    assert np.array_equal(pixels(tiny.file_bytes(image)), expected)
    assert np.array_equal(pixels(image), expected)
    see_through = np.where(deep[:, :, None] == 680, np.uint8(255), expected)
    plain = tiny.file_bytes(image)
    keyed = plain[:33] + chunk(b"tRNS", struct.pack(">H", 680)) + plain[33:]  # after IHDR
    assert np.array_equal(pixels(keyed), see_through)


def test_transparency_lies_on_white() -> None:
    alpha = np.zeros((24, 40), np.uint8)
    alpha[:12] = 255
    rgba = np.dstack([SCENE, alpha])
    expected = np.where(alpha[:, :, None] == 255, SCENE, 255).astype(np.uint8)
    assert np.array_equal(pixels(rgba), expected)
    assert np.array_equal(pixels(tiny.file_bytes(rgba)), expected)
    assert np.array_equal(pixels(tiny.file_bytes(rgba, "WEBP", lossless=True)), expected)
    half = np.dstack([np.zeros((2, 2, 3), np.uint8), np.full((2, 2), 127, np.uint8)])
    assert np.all(np.abs(pixels(half).astype(int) - 128) <= 1)
    grey = Image.fromarray(rgba).convert("LA")
    assert np.all(pixels(tiny.file_bytes(grey))[12:] == 255)
    keyed = Image.new("P", (4, 4), 1)
    keyed.putpalette([9, 9, 9, 200, 0, 0])
    assert np.all(pixels(tiny.file_bytes(keyed, transparency=1)) == 255)
    colour_key = Image.new("RGB", (4, 4), (1, 2, 3))
    assert np.all(pixels(tiny.file_bytes(colour_key, transparency=(1, 2, 3))) == 255)


def test_callers_image_stays_as_it_was() -> None:
    image = Image.fromarray(SCENE)
    picture.decode(image, CAP).paste((0, 0, 0), (0, 0, 5, 5))
    assert np.array_equal(np.asarray(image), SCENE)


@pytest.mark.parametrize(
    ("source", "says"),
    [
        (b"", "no PNG, JPEG or WebP"),
        (b"hello, I am no picture", "no PNG, JPEG or WebP"),
        (tiny.file_bytes(SCENE, "GIF"), "no PNG, JPEG or WebP"),
        (tiny.file_bytes(SCENE, "BMP"), "no PNG, JPEG or WebP"),
        (bomb(60_000, 60_000), "more pixels|more than the"),
        (bomb(2000, 2000), "2000 x 2000 pixels, more than the 1000000"),
        (bomb(0, 100), "."),
        (bomb(100, 100), "broken or truncated"),
        (np.zeros((0, 5, 3), np.uint8), "not empty"),
        (np.zeros((4, 4, 3), np.float32), "float32 .* is no picture"),
        (np.zeros((4, 4, 2), np.uint8), "is no picture"),
        (np.zeros((4,), np.uint8), "is no picture"),
        (np.zeros((1100, 1000), np.uint8), "more than the 1000000"),
        (Image.new("F", (4, 4)), "floating-point"),
        (Image.new("RGB", (1100, 1000)), "more than the 1000000"),
        (Image.new("RGB", (0, 4)), "not empty"),
        (7, "a int is no picture"),
    ],
)
def test_what_is_no_picture(source: Any, says: str) -> None:
    with pytest.raises(PictureError, match=says):
        picture.decode(source, CAP)


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(PictureError, match="there is no picture at"):
        picture.decode(tmp_path / "absent.png", CAP)
    with pytest.raises(PictureError, match="is a directory"):
        picture.decode(tmp_path, CAP)
    with pytest.raises(PictureError, match="cannot read"):
        picture.decode("nul\0in.png", CAP)
    (tmp_path / "empty.png").touch()
    with pytest.raises(PictureError, match="is empty"):
        picture.decode(tmp_path / "empty.png", CAP)
    closed = tmp_path / "closed.png"
    closed.write_bytes(tiny.file_bytes(SCENE))
    closed.chmod(0)
    if not os.access(closed, os.R_OK):  # root reads everything
        with pytest.raises(PictureError, match="Permission denied"):
            picture.decode(closed, CAP)


def test_endless_file_is_not_read_to_its_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(picture, "MAX_FILE", 2**20)
    with pytest.raises(PictureError, match="larger than 1 MiB"):
        picture.decode("/dev/zero", CAP)


@pytest.mark.parametrize("form", ["PNG", "JPEG", "WEBP"])
def test_every_truncation_is_refused(form: str) -> None:
    data = tiny.file_bytes(SCENE, form)
    whole, refused = pixels(data), 0
    for length in range(1, len(data)):
        try:
            # Losing an end marker loses no pixel; that and nothing more is forgiven.
            assert np.array_equal(pixels(data[:length]), whole)
        except PictureError:
            refused += 1
    assert refused >= len(data) - 32


@given(
    st.sampled_from(["PNG", "JPEG", "WEBP"]),
    st.lists(st.tuples(st.integers(0, 10_000), st.integers(0, 255)), min_size=1, max_size=20),
)
def test_damaged_files_decode_or_are_refused(form: str, damage: list[tuple[int, int]]) -> None:
    data = bytearray(tiny.file_bytes(SCENE, form))
    for place, value in damage:
        data[place % len(data)] = value
    try:
        image = picture.decode(bytes(data), CAP)
    except PictureError:
        return
    assert image.mode == "RGB"


def test_fit_stretches() -> None:
    image = Image.fromarray(SCENE)
    for name, method in (("bilinear", 2), ("bicubic", 3), ("lanczos", 1)):
        expected = np.asarray(image.resize((32, 32), resample=Image.Resampling(method)))
        assert np.array_equal(picture.fit(image, spec(resample=name)), expected)
    exact = Image.fromarray(tiny.scene())
    assert np.array_equal(picture.fit(exact, spec()), tiny.scene())


@pytest.mark.parametrize(("height", "width"), [(24, 40), (40, 24), (23, 40), (1, 7)])
def test_fit_pads_centred(height: int, width: int) -> None:
    inner = tiny.scene(2, height, width)
    side = max(height, width)
    square = np.empty((side, side, 3), np.uint8)
    square[:] = (10, 20, 30)
    top, left = (side - height) // 2, (side - width) // 2
    square[top : top + height, left : left + width] = inner
    expected = np.asarray(Image.fromarray(square).resize((32, 32), resample=Image.Resampling.BILINEAR))
    assert np.array_equal(picture.fit(Image.fromarray(inner), spec("pad")), expected)


@pytest.mark.parametrize("fit", ["square", "pad"])
def test_long_and_narrow_bomb(fit: str) -> None:
    strip = np.zeros((CAP, 1, 3), np.uint8)  # within the cap, but not what resizing makes of it
    with pytest.raises(PictureError, match="too long and narrow"):
        picture.prepare(strip, spec(fit))


def test_any_size_gives_the_size_of_the_graph() -> None:
    for height, width in ((1, 1), (1, 500), (500, 1), (999, 1000)):
        for fit in ("square", "pad"):
            prepared = picture.prepare(np.zeros((height, width, 3), np.uint8), spec(fit))
            assert prepared.shape == (32, 32, 3) and prepared.dtype == np.uint8


def test_jpeg_size_is_that_of_a_file() -> None:
    assert picture.jpeg_size(SCENE) == len(tiny.file_bytes(SCENE, "JPEG", quality=90))
