"""The frozen tower's features of picture files: kept in memory up to a bound, else computed when needed."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from edge_runtime.picture import prepare
from qtl_core import bundle
from qtl_core.errors import PictureError
from qtl_core.nn.model import VisionEncoder


class PictureFeatures:
    """What the connector reads of pictures, float16 [pictures, tokens, tower width].

    Each picture passes the tower by itself, so that its features are the same whenever they are computed.

    Args:
        vision: its tower does not learn.
        spec: how a picture is prepared, as on the device.
        cache_bytes: of features that are kept.

    Attributes:
        vision: may be replaced by another one with the same tower.
        chosen: the pictures that an index means, in order.
    """

    def __init__(self, vision: VisionEncoder, spec: bundle.Picture, *, cache_bytes: int) -> None:
        self.vision = vision
        self.chosen: tuple[Path, ...] = ()
        self._spec, self._room = spec, cache_bytes
        self._none: Tensor | None = None
        self._kept: dict[Path, Tensor] = {}
        self._seen: dict[Path, str] = {}

    def add(self, path: Path) -> None:
        """Makes sure that a picture can be decoded, and keeps its features while there is room.

        Raises:
            PictureError: it cannot be decoded, or has features that half precision does not hold.
        """
        if path not in self._seen:
            try:
                self._look(path)
                self._seen[path] = ""
            except PictureError as error:
                self._seen[path] = str(error)
        if self._seen[path]:
            raise PictureError(self._seen[path])

    def _look(self, path: Path) -> None:
        if self._room <= 0:
            prepare(path, self._spec)
            return
        found = self._of(path)
        if found.nbytes <= self._room:
            self._kept[path] = found
            self._room -= found.nbytes
        else:
            self._room = 0

    def __getitem__(self, index: Any, /) -> Tensor:
        """Features of a list of pictures, by their places in ``chosen``."""
        paths: Sequence[Path] = [self.chosen[place] for place in index]
        if not paths:
            return self._nothing()
        return torch.cat([self._kept[path] if path in self._kept else self._of(path) for path in paths])

    def _of(self, path: Path) -> Tensor:
        found = self._through(prepare(path, self._spec)[None])
        if not bool(found.isfinite().all()):
            raise PictureError(
                f"{path} has features that are not finite, or too large for half precision; is the "
                "checkpoint damaged?"
            )
        return found

    def _nothing(self) -> Tensor:
        """Features of no picture at all: their shape is a blank one's."""
        if self._none is None:
            blank = np.zeros((1, self._spec.height, self._spec.width, 3), np.uint8)
            self._none = self._through(blank)[:0]
        return self._none

    @torch.no_grad()
    def _through(self, pixels: NDArray[np.uint8]) -> Tensor:
        tower = self.vision.tower
        training = tower.training
        tower.eval()
        found = self.vision.tower_features(torch.from_numpy(pixels.copy()).to(self.vision.pixel_mean.device))
        tower.train(training)
        return found.to(torch.float16).cpu()
