"""The tower's features of pictures on disk, in half precision: the tower runs once for each picture.

One file of float16, [pictures, tokens, tower width], written from its beginning: what a killed run has
written stays, and the next run goes on behind it. The file's name says what it was computed from.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Final

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from edge_runtime import picture
from qtl_core.errors import InputError, StorageError
from qtl_core.nn.checkpoint import Checkpoint

BATCH: Final = 16
"""Pictures that pass the tower together. The same ones after a kill: so their features are the same."""
_LARGEST: Final = float(np.finfo(np.float16).max)


class FeatureCache:
    """Features of pictures; ``fill`` computes what the file does not have yet.

    Args:
        folder: where the file lies, or will.
        checkpoint: its tower and connector, in evaluation mode, on any device.
        client: SHA-256 of their weights.
        pictures: files, at least one.

    Attributes:
        path: the file.
        tokens: of a picture at the cut.
        width: of the features there.

    Raises:
        PictureError: the first picture is broken.
        InputError: features that are not finite, or too large for half precision.
    """

    def __init__(self, folder: Path, checkpoint: Checkpoint, client: str, pictures: Sequence[Path]) -> None:
        self._checkpoint, self._pictures = checkpoint, pictures
        self._vision = checkpoint.model.vision
        first = self._of(pictures[:1])
        self._shape = len(pictures), *first.shape[1:]
        self.path = folder / f"features-{self._name(client)}.f16"
        with torch.no_grad():
            tokens, width = self._vision.connector(first).shape[1:]
        self.tokens, self.width = int(tokens), int(width)

    def fill(self, *, progress: bool) -> None:
        """Computes features where the file ends, in batches of the same pictures whenever it is called.

        Args:
            progress: whether to show a bar.

        Raises:
            PictureError: a picture is broken.
            InputError: features that are not finite, or too large for half precision.
            StorageError: the file cannot be written.
        """
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._fill(progress)
        except OSError as error:
            raise StorageError(f"{self.path} cannot be written: {error.strerror}") from error

    def __len__(self) -> int:
        return len(self._pictures)

    @torch.no_grad()
    def cut(self, chosen: Sequence[int]) -> Tensor:
        """Features at the cut, float32 [chosen, tokens, width], of pictures by their places."""
        device = self._vision.pixel_mean.device
        features = np.memmap(self.path, np.float16, "r", shape=self._shape)
        parts = []
        for start in range(0, len(chosen), BATCH):
            found = np.ascontiguousarray(features[list(chosen[start : start + BATCH])])
            parts.append(self._vision.connector(torch.from_numpy(found).to(device, torch.float32)))
        return torch.cat(parts)

    def _fill(self, progress: bool) -> None:
        each = 2 * int(np.prod(self._shape[1:]))
        with self.path.open("ab") as file:
            # Another run on the same pictures may be writing it; the lock goes with the process.
            fcntl.flock(file, fcntl.LOCK_EX)
            file.seek(0, os.SEEK_END)
            done = file.tell() // each // BATCH * BATCH
            if file.tell() >= each * len(self):
                return
            file.truncate(done * each)
            file.seek(0, os.SEEK_END)
            bar = tqdm(
                total=len(self),
                initial=done,
                desc="tower features",
                unit=" pictures",
                disable=not progress or None,
            )
            with bar:
                for start in range(done, len(self), BATCH):
                    found = self._of(self._pictures[start : start + BATCH])
                    file.write(found.cpu().numpy().astype(np.float16).tobytes())
                    file.flush()
                    bar.update(len(found))

    @torch.no_grad()
    def _of(self, pictures: Sequence[Path]) -> Tensor:
        prepared = np.stack([picture.prepare(path, self._checkpoint.picture) for path in pictures])
        found = self._vision.tower_features(torch.from_numpy(prepared).to(self._vision.pixel_mean.device))
        if not bool((found.abs() <= _LARGEST).all()):
            names = ", ".join(path.name for path in pictures[:3])
            raise InputError(
                f"the tower's features of {names} ... are not finite, or too large for half precision; "
                "is the checkpoint damaged?"
            )
        return found

    def _name(self, client: str) -> str:
        """A name for what the features depend on: weights, normalisation and choice of layer, pictures."""
        said = [client, repr(self._vision.settings), repr(self._checkpoint.picture)]
        for path in self._pictures:
            about = path.stat()
            said.append(f"{path.resolve()} {about.st_size} {about.st_mtime_ns}")
        return hashlib.sha256("\n".join(said).encode()).hexdigest()[:16]
