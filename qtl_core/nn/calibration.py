"""What a quantizer's codes are made of on given pictures: the features at the cut."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import numpy as np
import numpy.typing as npt
import torch

from qtl_core.nn.model import VisionEncoder

BATCH = 16
"""Pictures that pass the tower together, at most."""
_PIXELS = 1 << 18  # of all of them: a tower keeps what each of its layers made, 0.1 GB a picture at 384 x 384


def together(pictures: npt.NDArray[np.uint8]) -> int:
    """How many of these pictures, uint8 [n, height, width, 3], should pass a tower together."""
    height, width = pictures.shape[1:3]
    return max(1, min(BATCH, _PIXELS // (height * width)))


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
    each = together(pictures)
    starts = range(0, len(pictures), each)
    found = [vision(torch.from_numpy(pictures[start : start + each])).numpy() for start in follow(starts)]
    return np.concatenate(found).astype(np.float32, copy=False)
