"""What is attacked: one checkpoint's client side, its representations and the pictures that cross."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from qtl_core.nn.checkpoint import load_checkpoint
from qtl_training.audit.pictures import Gallery
from qtl_training.audit.representations import Cut, Representation
from qtl_training.audit.settings import AuditSettings
from qtl_training.audit.work import WorkFolder, weights_digest


class Target:
    """One checkpoint under attack.

    Args:
        settings: the audit's.
        progress: whether to show bars.

    Attributes:
        checkpoint: the model.
        weights: its digest.
        cut: what it sends.
        representations: in the order of reports, 16-bit features first.
        work: finished pieces.
        gallery: the pictures.

    Raises:
        CheckpointError: a checkpoint that cannot be read, or without a named quantizer.
        InputError: a checkpoint for other pictures than digit scenes.
        StorageError: a work folder that cannot be written.
    """

    def __init__(self, settings: AuditSettings, *, progress: bool = True) -> None:
        self.effort, self.pads, self.progress = settings.effort, settings.pads, progress
        self.checkpoint = load_checkpoint(settings.checkpoint)
        self.cut = Cut(self.checkpoint)
        self.representations = self.cut.representations(settings.levels, settings.quantizers)
        self.weights = weights_digest(settings.checkpoint)
        self.work = WorkFolder(settings, self.weights)
        self.gallery = Gallery(self.checkpoint, settings.effort, self.work, progress=progress)
        self._seen: tuple[str, Tensor, Tensor] | None = None

    def named(self, name: str) -> Representation:
        """The representation of this name."""
        return next(one for one in self.representations if one.name == name)

    def seen(self, name: str) -> tuple[Tensor, Tensor]:
        """What the server has of the training and of the test pictures; the last one asked for is kept."""
        if self._seen is None or self._seen[0] != name:
            train, test = self.gallery.train.features, self.gallery.test.features
            one = self.named(name)
            self._seen = (name, self.cut.seen(one, train), self.cut.seen(one, test))
        return self._seen[1:]


@dataclass(frozen=True)
class Piece:
    """One attack on one subject with one seed.

    Attributes:
        numbers: what was measured, as JSON holds it.
        pictures: the first reconstructions, uint8 [n, 96, 96, 3], where the attack makes any.
    """

    numbers: dict[str, Any]
    pictures: NDArray[np.uint8] | None = None


class Attack(Protocol):
    """One kind of attack on one target.

    Attributes:
        key: names its pieces in the work folder; differs where its settings do.
        subjects: what it is made on: representations, and what they are compared with.
    """

    key: str
    subjects: tuple[str, ...]

    def make(self, subject: str, seed: int) -> Piece:
        """Attacks one of ``subjects`` with one seed."""
