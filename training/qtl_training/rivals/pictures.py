"""Pictures as JPEG, WebP or AVIF: the whole model on the server, fine-tuned on what the codec leaves."""

from __future__ import annotations

import io
from collections.abc import Sequence
from functools import cache
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, features
from torch import Tensor

from qtl_core.errors import MissingExtra, PictureError
from qtl_core.nn.model import VisionEncoder
from qtl_training.digits.scenes import SIDE, Scenes, render
from qtl_training.rivals.methods import Setting

Format = Literal["jpeg", "webp", "avif"]
Picture = NDArray[np.uint8]
_GREYS = (0, 64, 128, 192, 255)
_AVIF_BEST, _AVIF_FAST = 3, 6
_BATCH = 64


class PictureCodec:
    """Encodes and decodes pictures with Pillow at a codec's best settings.

    JPEG: optimised Huffman tables, baseline or progressive, whichever is smaller. WebP: lossy, method 6.
    AVIF: libaom at speed 3, within a percent of its best (0) on these pictures and three to four times as
    fast; ``fast`` (training, and choosing settings on the validation split) takes speed 6, 1 to 6 % above
    it and ten times as fast. No metadata anywhere. Scaling is Lanczos down and bicubic up.

    Args:
        name: "jpeg", "webp" or "avif".

    Raises:
        MissingExtra: if this Pillow was built without the codec.
    """

    def __init__(self, name: Format) -> None:
        if name != "jpeg" and not features.check(name):
            raise MissingExtra.of("bench", f"PIL with {name.upper()}")
        self.name: Format = name

    def encode(self, picture: Picture, setting: Setting, *, fast: bool = False) -> bytes:
        """A file of a picture, uint8 [96, 96, 3]."""
        image = Image.fromarray(picture)
        if setting.side != SIDE:
            image = image.resize((setting.side, setting.side), Image.Resampling.LANCZOS)
        return min((_save(image, self.name, **options) for options in self._options(setting, fast)), key=len)

    def decode(self, data: bytes) -> Picture:
        """The picture of a file, uint8 [96, 96, 3].

        Raises:
            PictureError: if it is none.
        """
        try:
            image = Image.open(io.BytesIO(data), formats=[self.name]).convert("RGB")
        except (OSError, ValueError, SyntaxError) as error:
            raise PictureError(f"no {self.name} file: {error}") from error
        if image.size != (SIDE, SIDE):
            image = image.resize((SIDE, SIDE), Image.Resampling.BICUBIC)
        return np.asarray(image)

    def header(self, setting: Setting, *, fast: bool = False) -> int:
        """Bytes of the codec's constant header, as the smallest file at a setting that holds nothing.

        It is the smallest file of a picture of one grey, over five greys, with the same settings: magic,
        boxes, markers, quantization tables, the smallest Huffman tables and the few bits that say "all
        the same". Two ends that agree on settings beforehand need not send it, so sizes are also given
        without it. It favours the codec: the few bits are taken off as well.
        """
        return _header(self.name, setting, fast)

    def _options(self, setting: Setting, fast: bool) -> list[dict[str, Any]]:
        if self.name == "jpeg":
            base = {"quality": setting.quality, "optimize": True, "subsampling": setting.chroma}
            return [base, {**base, "progressive": True}]
        if self.name == "webp":
            return [{"quality": setting.quality, "method": 6, "lossless": False}]
        speed = _AVIF_FAST if fast else _AVIF_BEST
        return [{"quality": setting.quality, "speed": speed, "subsampling": setting.chroma, "max_threads": 1}]


@cache
def _header(name: Format, setting: Setting, fast: bool) -> int:
    codec = PictureCodec(name)
    flat = [np.full((SIDE, SIDE, 3), grey, np.uint8) for grey in _GREYS]
    return min(len(codec.encode(picture, setting, fast=fast)) for picture in flat)


def _save(image: Image.Image, name: Format, **options: Any) -> bytes:
    file = io.BytesIO()
    image.save(file, name, **options)
    return file.getvalue()


class CodedScenes:
    """A training stage's features where the server gets coded pictures: drawn, encoded, decoded, seen.

    Quality and scale are drawn anew for every picture, so that one fine-tune serves the whole curve.
    Gradients reach the tower.

    Args:
        vision: the tower that sees the pictures.
        scenes: what is drawn.
        codec: what stands between.
        settings: drawn from evenly.
        seed: of the drawing of settings.
    """

    def __init__(
        self,
        vision: VisionEncoder,
        scenes: Scenes,
        codec: PictureCodec,
        settings: Sequence[Setting],
        seed: int,
    ) -> None:
        self._vision, self._scenes, self._codec = vision, scenes, codec
        self._settings, self._rng = list(settings), np.random.default_rng([seed, 31])

    def __getitem__(self, chosen: Any) -> Tensor:
        """The tower's features of some scenes, float32 [scenes, tokens, width]."""
        pictures = render(self._scenes, np.asarray(chosen))
        drawn = self._rng.integers(len(self._settings), size=len(pictures)).tolist()
        seen = [
            self._codec.decode(self._codec.encode(picture, self._settings[setting], fast=True))
            for picture, setting in zip(pictures, drawn, strict=True)
        ]
        return self._vision.tower_features(torch.from_numpy(np.stack(seen)))


@torch.no_grad()
def features_of(vision: VisionEncoder, codec: PictureCodec, files: Sequence[bytes]) -> Tensor:
    """What the server's tower sees in coded pictures, float32 [pictures, tokens, tower width].

    Where a file is empty, because nobody asks about that picture, the features are zero.
    """
    vision.eval()
    there = [place for place, file in enumerate(files) if file]
    found = []
    for start in range(0, len(there), _BATCH):
        pictures = np.stack([codec.decode(files[place]) for place in there[start : start + _BATCH]])
        found.append(vision.tower_features(torch.from_numpy(pictures)))
    seen = torch.cat(found)
    return seen.new_zeros(len(files), *seen.shape[1:]).index_copy(0, torch.tensor(there), seen)
