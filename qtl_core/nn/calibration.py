"""What a quantizer's codes are made of on given pictures: the features at the cut."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import numpy as np
import numpy.typing as npt
import torch

from qtl_core.nn.model import VisionEncoder

BATCH = 16
"""Pictures that pass the tower together."""


@torch.inference_mode()
def cut_features(
    vision: VisionEncoder,
    pictures: npt.NDArray[np.uint8],
    *,
    follow: Callable[[range], Iterable[int]] = iter,
) -> npt.NDArray[np.float32]:
    """Features at the cut, float32 [pictures, picture tokens, width].

    Args:
        vision: tower and connector, in evaluation mode.
        pictures: uint8 [pictures, height, width, 3], as the tower takes them; at least one.
        follow: wraps the walk over the batches' starts, for a progress bar.
    """
    starts = range(0, len(pictures), BATCH)
    found = [vision(torch.from_numpy(pictures[start : start + BATCH])).numpy() for start in follow(starts)]
    return np.concatenate(found).astype(np.float32, copy=False)
