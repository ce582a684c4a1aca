"""What the frozen tower says about many pictures, computed once and kept."""

from __future__ import annotations

from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from tqdm import tqdm

from qtl_core.nn.model import VisionEncoder
from qtl_training.digits.scenes import Scenes, render

_BATCH = 64


class Features(Protocol):
    """The tower's features of a stage's scenes: a tensor that is kept, or whatever makes them on demand."""

    def __getitem__(self, index: Any, /) -> Tensor:
        """Features [scenes, tokens, tower width] of a slice or a list of scenes."""


class _Pictures(Dataset[NDArray[np.uint8]]):
    def __init__(self, scenes: Scenes) -> None:
        self._scenes = scenes

    def __len__(self) -> int:
        return -(-len(self._scenes) // _BATCH)

    def __getitem__(self, batch: int) -> NDArray[np.uint8]:
        return render(self._scenes, slice(batch * _BATCH, (batch + 1) * _BATCH))


@torch.no_grad()
def tower_features(vision: VisionEncoder, scenes: Scenes, *, progress: bool = True) -> Tensor:
    """The connector's input for every scene, float16 [scenes, tokens, tower width].

    The tower runs in evaluation mode; pictures are drawn in a process of their own meanwhile.
    """
    vision.eval()
    loader: DataLoader[Any] = DataLoader(_Pictures(scenes), batch_size=None, num_workers=1, prefetch_factor=4)
    out: Tensor | None = None
    with tqdm(total=len(scenes), desc="tower features", unit="picture", disable=not progress or None) as bar:
        done = 0
        for pictures in loader:
            found = vision.tower_features(torch.as_tensor(pictures))
            if out is None:
                out = torch.empty(len(scenes), *found.shape[1:], dtype=torch.float16)
            out[done : done + len(found)] = found.to(torch.float16)
            done += len(found)
            bar.update(len(found))
    if out is None:
        raise ValueError("no scenes to compute features of")
    return out
