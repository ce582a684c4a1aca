"""A picture from anywhere as the graph's input: decode, orient, flatten, pad, resize. Pillow only.

Pictures are hostile bytes: the size is checked before anything is decoded, and whatever a decoder raises
becomes one ``PictureError``.
"""

from __future__ import annotations

import io
import os
import re
import warnings
from pathlib import Path
from typing import Any, BinaryIO, Final, TypeAlias

import numpy as np
import numpy.typing as npt
from PIL import Image, UnidentifiedImageError

from qtl_core import bundle
from qtl_core.errors import PictureError

Pixels: TypeAlias = npt.NDArray[np.uint8]
Source: TypeAlias = "str | os.PathLike[str] | bytes | Image.Image | npt.NDArray[Any]"

FORMATS: Final = ("PNG", "JPEG", "WEBP")
"""What is decoded; every other decoder of Pillow stays closed to strangers' bytes."""
MAX_FILE: Final = 256 * 1024 * 1024
"""Bytes of a picture file at most: above any real one, below what hurts."""
JPEG_QUALITY: Final = 90

# Resizing a long, narrow picture passes through one that is as wide as the target and as high as the source;
# padding passes through a square. Neither may be larger than so many times the cap on pixels.
_PASSING: Final = 4
_WHITE: Final = (255, 255, 255, 255)
RESAMPLE: Final[dict[bundle.Resample, Image.Resampling]] = {
    "nearest": Image.Resampling.NEAREST,
    "box": Image.Resampling.BOX,
    "bilinear": Image.Resampling.BILINEAR,
    "hamming": Image.Resampling.HAMMING,
    "bicubic": Image.Resampling.BICUBIC,
    "lanczos": Image.Resampling.LANCZOS,
}
# EXIF orientation -> what undoes it.
_UPRIGHT: Final = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_ORIENTATION: Final = 0x0112
_SEVERAL: Final = "a question is about one picture; several at once and videos are not supported"
# How MP4 and QuickTime (but not the pictures kept in the same container), Matroska and WebM, and AVI begin.
_VIDEO: Final = re.compile(
    rb"....ftyp(?!avif|avis|heic|heix|mif1|msf1)|\x1a\x45\xdf\xa3|RIFF....AVI ", re.DOTALL
)


def prepare(source: Source, spec: bundle.Picture) -> Pixels:
    """The graph's input for one picture.

    Args:
        source: a path, the bytes of a PNG, JPEG or WebP file, a Pillow image, or a uint8 array [H, W],
            [H, W, 1], [H, W, 3] (RGB) or [H, W, 4] (RGBA).
        spec: how the manifest wants it.

    Returns:
        uint8 [spec.height, spec.width, 3], RGB.

    Raises:
        PictureError: missing, unreadable, no picture, broken, truncated, or too large.
    """
    return fit(decode(source, spec.max_pixels), spec)


def decode(source: Source, max_pixels: int) -> Image.Image:
    """An upright RGB image of whatever was given; transparent pixels lie on white.

    Args:
        source: as in ``prepare``.
        max_pixels: larger pictures are refused before they are decoded.

    Raises:
        PictureError: as ``prepare``.
    """
    if isinstance(source, Image.Image):
        name = "the image"
        _check_size(name, source.size, max_pixels)
        return _upright_rgb(name, source)
    if isinstance(source, np.ndarray):
        _check_size("the array", _array_size(source), max_pixels)
        return _upright_rgb("the array", Image.fromarray(_squeezed(source)))
    if isinstance(source, bytes | bytearray | memoryview):
        return _decode_bytes("the picture", bytes(source), max_pixels)
    if isinstance(source, str | os.PathLike):
        return _decode_bytes(str(source), read_file(Path(source)), max_pixels)
    raise PictureError(
        _SEVERAL
        if type(source) in (list, tuple)
        else f"a {type(source).__name__} is no picture; give a path, bytes, an image or an array"
    )


def read_file(path: Path) -> bytes:
    """The bytes of a picture file.

    Raises:
        PictureError: missing, no file, unreadable, empty, or over ``MAX_FILE``.
    """
    try:
        with path.open("rb") as file:
            return read_stream(file, str(path))
    except FileNotFoundError as error:
        raise PictureError(f"there is no picture at {path}; check the path") from error
    except IsADirectoryError as error:
        raise PictureError(f"{path} is a directory; give a picture file in it") from error
    except (OSError, ValueError) as error:  # ValueError: a path with a NUL in it
        reason = getattr(error, "strerror", None) or error
        raise PictureError(f"cannot read the picture {path}: {reason}") from error


def read_stream(stream: BinaryIO, name: str) -> bytes:
    """The bytes of a picture from an open stream, to its end.

    Raises:
        PictureError: empty, or over ``MAX_FILE``.
    """
    data = stream.read(MAX_FILE + 1)
    if not data:
        raise PictureError(f"{name} is empty; give a PNG, JPEG or WebP picture")
    if len(data) > MAX_FILE:
        raise PictureError(f"{name} is larger than {MAX_FILE // 2**20} MiB; give a smaller picture")
    return data


def fit(image: Image.Image, spec: bundle.Picture) -> Pixels:
    """Pads or crops where the manifest says so, and resizes: RGB image -> uint8 [height, width, 3].

    Raises:
        PictureError: so long and narrow that the steps in between would take too much memory.
    """
    width, height = image.size
    side = max(width, height)
    target = _resized(width, height, spec)
    # Cropping ends in a picture that is long, too.
    passing = side * side if spec.fit == "pad" else target[0] * max(height, target[1])
    _check_passing(passing, image, spec)
    if spec.fit == "pad" and width != height:
        square = Image.new("RGB", (side, side), tuple(spec.pad_colour))
        square.paste(image, ((side - width) // 2, (side - height) // 2))
        image = square
    if image.size != target:
        image = image.resize(target, resample=RESAMPLE[spec.resample])
    if image.size != (spec.width, spec.height):
        # What lies outside of the picture becomes black.
        left, upper = (target[0] - spec.width) // 2, (target[1] - spec.height) // 2
        image = image.crop((left, upper, left + spec.width, upper + spec.height))
    return np.asarray(image, dtype=np.uint8)


def check_passing(image: Image.Image, target: tuple[int, int], spec: bundle.Picture) -> None:
    """Refuses a picture that is so long and narrow that resizing it would take too much memory.

    Raises:
        PictureError: it is.
    """
    _check_passing(target[0] * max(image.height, target[1]), image, spec)


def _check_passing(pixels: int, image: Image.Image, spec: bundle.Picture) -> None:
    if pixels > _PASSING * spec.max_pixels:
        raise PictureError(
            f"a picture of {image.width} x {image.height} pixels is too long and narrow for this model; "
            "crop it first"
        )


def _resized(width: int, height: int, spec: bundle.Picture) -> tuple[int, int]:
    """Width and height that a picture is resized to before its middle is taken."""
    to_height, to_width = (spec.height, spec.width) if spec.resized is None else spec.resized
    if spec.fit != "crop":
        return to_width, to_height
    # The shorter side becomes the target's, a square's, and the longer one is rounded down.
    short, long = sorted((width, height))
    longer = to_width * long // short
    return (to_width, longer) if width <= height else (longer, to_width)


def jpeg_size(pixels: Pixels, quality: int = JPEG_QUALITY) -> int:
    """Bytes of the prepared picture as a JPEG, the yardstick beside the codes."""
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "JPEG", quality=quality)
    return buffer.tell()


def _decode_bytes(name: str, data: bytes, max_pixels: int) -> Image.Image:
    try:
        with warnings.catch_warnings():
            # Pillow's own bomb warning has another cap than ours, which is checked next; the rest is advice
            # about harmless oddities of files.
            warnings.simplefilter("ignore")
            with Image.open(io.BytesIO(data), formats=FORMATS) as image:
                _check_size(name, image.size, max_pixels)
                image.load()
                return _upright_rgb(name, image)
    except PictureError:
        raise
    except Image.DecompressionBombError as error:
        raise PictureError(
            f"{name} has more pixels than this machine decodes ({error}); give a smaller one"
        ) from error
    except UnidentifiedImageError as error:
        if _VIDEO.match(data):
            raise PictureError(
                f"{name} is a video, and videos are not supported; give one of its frames"
            ) from error
        raise PictureError(f"{name} is no PNG, JPEG or WebP picture; convert it first") from error
    except MemoryError as error:
        raise PictureError(f"{name} does not fit into memory; give a smaller picture") from error
    except Exception as error:  # decoders raise nearly anything on damaged bytes; all of it means this
        raise PictureError(f"{name} is broken or truncated ({error}); give an intact picture") from error


def _check_size(name: str, size: tuple[int, int], max_pixels: int) -> None:
    width, height = size
    if width < 1 or height < 1:
        raise PictureError(f"{name} has {width} x {height} pixels; give a picture that is not empty")
    if width * height > max_pixels:
        raise PictureError(
            f"{name} has {width} x {height} pixels, more than the {max_pixels} that are decoded; "
            "give a smaller picture"
        )


def _array_size(array: npt.NDArray[Any]) -> tuple[int, int]:
    channels = array.shape[2] if array.ndim == 3 else 1
    if array.dtype != np.uint8 or array.ndim not in (2, 3) or channels not in (1, 3, 4):
        raise PictureError(
            f"an array of {array.dtype} {list(array.shape)} is no picture; give uint8 [H, W], [H, W, 3] or "
            "[H, W, 4]"
        )
    return int(array.shape[1]), int(array.shape[0])


def _squeezed(array: npt.NDArray[Any]) -> npt.NDArray[Any]:
    return array[:, :, 0] if array.ndim == 3 and array.shape[2] == 1 else array


def _upright_rgb(name: str, image: Image.Image) -> Image.Image:
    # The orientation is read first: converting may drop the metadata.
    undo = _UPRIGHT.get(_orientation(image))
    rgb = _rgb(name, image)
    return rgb if undo is None else rgb.transpose(undo)


def _orientation(image: Image.Image) -> int:
    try:
        value = image.getexif().get(_ORIENTATION, 1)
    except Exception:  # metadata that cannot be read says nothing; the pixels are as good as before
        return 1
    return value if isinstance(value, int) else 1


def _rgb(name: str, image: Image.Image) -> Image.Image:
    if image.mode.startswith("I;16") or image.mode == "I":
        return _from_16_bit(image)
    if image.mode == "F":
        raise PictureError(f"{name} has floating-point pixels, whose range is unknown; give an 8-bit picture")
    if image.mode in ("RGBA", "LA", "PA", "La", "RGBa") or "transparency" in image.info:
        rgba = image.convert("RGBA")
        # Image processors of transformers composite so, to the last bit.
        return Image.alpha_composite(Image.new("RGBA", rgba.size, _WHITE), rgba).convert("RGB")
    # Always a copy: the caller's image is never changed, nor kept open.
    return image.copy() if image.mode == "RGB" else image.convert("RGB")


def _from_16_bit(image: Image.Image) -> Image.Image:
    # Grey of 16 bits; Pillow's own conversion would clip at 255. The upper byte is what it keeps of RGB.
    values = np.clip(np.asarray(image).astype(np.int64), 0, 65535)
    grey = (values >> 8).astype(np.uint8)
    transparent = image.info.get("transparency")
    if isinstance(transparent, int):
        grey = np.where(values == transparent, np.uint8(255), grey)
    return Image.fromarray(grey).convert("RGB")
