"""Inversion: a decoder network draws the picture from what crossed; a reader says what can be read off it."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from qtl_training.audit.cells import Cells
from qtl_training.audit.fitting import fit
from qtl_training.audit.networks import Decoder, Reader
from qtl_training.audit.pictures import Pictures
from qtl_training.audit.reader import as_input, read, trained_reader
from qtl_training.audit.settings import Effort
from qtl_training.audit.similarity import psnr, ssim
from qtl_training.audit.target import Piece, Target

THRESHOLD_DB = 1.5
"""How far the attacker on 16-bit features must be above the mean picture for the audit to mean anything:
at 1.5 dB almost a third of the squared error is gone."""

READER_THRESHOLD = 80.0
"""Percent of the originals' digits that the reader must read, or its numbers say nothing."""

_LR = 3e-3
_BATCH = 128


MEAN, ORIGINAL = "mean picture", "original"
"""What reconstructions are compared with: no attack at all, and no loss at all."""

SHOWN = 8
"""How many reconstructions of each piece are kept for the grid."""


class Inversion:
    """The attack on one target.

    Args:
        target: what is attacked.
    """

    def __init__(self, target: Target) -> None:
        self._target, self.key = target, "inversion"
        self.subjects = (MEAN, ORIGINAL, *(one.name for one in target.representations))

    def make(self, subject: str, seed: int) -> Piece:
        """Reconstructs the test pictures from one representation, and scores what came out."""
        target = self._target
        gallery, effort = target.gallery, target.effort
        reader = trained_reader(gallery.reader, effort, seed, target.work, progress=target.progress)
        if subject == ORIGINAL:
            drawn = gallery.test.pixels
        elif subject == MEAN:
            mean = as_bytes(mean_picture(gallery.train.pixels))
            drawn = np.repeat(mean[None], len(gallery.test.pixels), axis=0)
        else:
            drawn = invert(
                *target.seen(subject),
                gallery.train.pixels,
                target.cut.tokens,
                effort,
                seed,
                what=f"inversion of {subject}",
                progress=target.progress,
            )
        return Piece(score(drawn, gallery.test, reader), drawn[:SHOWN])


def invert(
    seen: Tensor,
    seen_test: Tensor,
    pixels: NDArray[np.uint8],
    tokens: int,
    effort: Effort,
    seed: int,
    *,
    what: str = "inversion",
    progress: bool = True,
) -> NDArray[np.uint8]:
    """Trains a decoder on pictures and what crossed of them, and draws others from what crossed alone.

    Without a single step nothing is trained, and the drawings are the mean picture.

    Args:
        seen: what the server had of the training pictures, float [n, tokens, channels].
        seen_test: what it has of the others.
        pixels: the training pictures, uint8 [n, 96, 96, 3].
        tokens: picture tokens of the tower, a square number.
        effort: steps and batch.
        seed: of weights and order.
        what: names the bar.
        progress: whether to show it.

    Returns:
        uint8 [test pictures, 96, 96, 3].
    """
    torch.manual_seed(seed)
    mean = torch.from_numpy(mean_picture(pixels)).permute(2, 0, 1) / 255
    decoder = Decoder(seen, mean, round(tokens**0.5)).to(  # type: ignore[call-overload]
        memory_format=torch.channels_last
    )

    if effort.inversion_steps:
        decoder.draft.fit(seen, lambda part: as_input(pixels[part]) - mean)

    def loss(chosen: NDArray[np.int64], generator: torch.Generator) -> Tensor:
        target = as_input(pixels[chosen])
        return functional.mse_loss(decoder(seen[torch.from_numpy(chosen)]), target)

    fit(
        decoder,
        loss,
        examples=len(seen),
        steps=effort.inversion_steps,
        batch=effort.batch,
        lr=_LR,
        seed=seed,
        what=what,
        progress=progress,
    )
    with torch.no_grad():
        drawn = torch.cat([decoder(part) for part in seen_test.split(_BATCH)])
    return as_bytes(drawn.permute(0, 2, 3, 1).numpy() * 255)


def score(drawn: NDArray[np.uint8], test: Pictures, reader: Reader) -> dict[str, Any]:
    """How close reconstructions uint8 [n, 96, 96, 3] of the test pictures came.

    Returns:
        ``psnr`` in dB (None for the originals themselves) and ``ssim``, means over pictures, and
        ``reader``: percent that the reader reads right, by ``READINGS``.
    """
    ratio = float(psnr(drawn, test.pixels).mean())
    return {
        "psnr": ratio if np.isfinite(ratio) else None,
        "ssim": float(ssim(drawn, test.pixels).mean()),
        "reader": Cells.of(test.scenes).read_right(read(reader, drawn)),
    }


def mean_picture(pixels: NDArray[np.uint8]) -> NDArray[np.float32]:
    """The mean of pictures uint8 [n, h, w, 3], float32 [h, w, 3]."""
    mean: NDArray[np.float32] = pixels.mean(0, dtype=np.float64).astype(np.float32)
    return mean


def as_bytes(values: NDArray[np.float32]) -> NDArray[np.uint8]:
    """Values 0 to 255 rounded to uint8."""
    return np.clip(np.rint(values), 0, 255).astype(np.uint8)
