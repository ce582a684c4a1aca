"""The pictures of an audit: what attackers learn from, and the test scenes nobody was asked about."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from qtl_core.errors import InputError
from qtl_core.nn.checkpoint import Checkpoint
from qtl_training.audit.settings import Effort
from qtl_training.audit.work import WorkFolder
from qtl_training.digits.scenes import SIDE, Scenes, render, sample
from qtl_training.features import tower_features

# Seeds of their own: neither the model's training pictures nor the project's test questions are about them.
_LEARNT, _SCORED, _READ, _EMPTY = 70_001, 70_002, 70_003, 70_004


@dataclass(frozen=True)
class Pictures:
    """Some scenes, their pictures, and what the tower says about them.

    Attributes:
        name: names the kept features.
    """

    name: str
    scenes: Scenes
    _checkpoint: Checkpoint
    _work: WorkFolder
    _progress: bool

    @cached_property
    def pixels(self) -> NDArray[np.uint8]:
        """uint8 [n, 96, 96, 3]."""
        return render(self.scenes, slice(None))

    @cached_property
    def features(self) -> Tensor:
        """Tower features, float16 [n, tokens, tower width]."""
        vision = self._checkpoint.model.vision
        kept = self._work.array(
            f"features-{self.name}",
            lambda: tower_features(vision, self.scenes, progress=self._progress).numpy(),
        )
        return torch.from_numpy(kept)


class Gallery:
    """Every picture of one audit.

    Args:
        checkpoint: whose tower sees them.
        effort: how many there are.
        work: where features are kept.
        progress: whether to show bars.

    Raises:
        InputError: if the checkpoint takes pictures of another size.
    """

    def __init__(
        self, checkpoint: Checkpoint, effort: Effort, work: WorkFolder, *, progress: bool = True
    ) -> None:
        size = (checkpoint.picture.height, checkpoint.picture.width)
        if size != (SIDE, SIDE):
            raise InputError(
                f"{checkpoint.path} takes pictures of {size[0]} x {size[1]} pixels; the audit attacks digit "
                f"scenes of {SIDE} x {SIDE}, so it needs a checkpoint trained on those"
            )

        def some(name: str, split: str, n: int, seed: int, *, empty: bool = False) -> Pictures:
            scenes = sample(split, n, seed)
            return Pictures(name, emptied(scenes) if empty else scenes, checkpoint, work, progress)

        self.train = some("train", "train", effort.scenes, _LEARNT)
        self.test = some("test", "test", effort.test_scenes, _SCORED)
        self.reader = some("reader", "train", effort.reader_scenes, _READ)
        self.empty_train = some("empty-train", "train", effort.empty_scenes, _EMPTY, empty=True)
        self.empty_test = some("empty-test", "test", effort.empty_scenes, _EMPTY, empty=True)


def emptied(scenes: Scenes) -> Scenes:
    """The same number of scenes, without a single digit."""
    nothing = np.full_like(scenes.digits, -1)
    return dataclasses.replace(
        scenes, digits=nothing, colours=nothing.copy(), scans=np.full_like(scenes.scans, -1)
    )
