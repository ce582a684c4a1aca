"""A network that reads digit scenes: it tells what of a picture can still be read off a reconstruction.

It is nobody's victim and nobody's attacker: it has seen clean pictures of other scenes only, some of
them blurred and paled as reconstructions are, and never a code or a reconstruction.
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from qtl_training.audit.cells import Cells
from qtl_training.audit.fitting import fit
from qtl_training.audit.networks import Reader
from qtl_training.audit.pictures import Pictures
from qtl_training.audit.settings import Effort
from qtl_training.audit.work import WorkFolder

_LR = 3e-3
_BATCH = 128
_PALEST = 0.4
_COARSEST = 6  # pixels that a blurred picture averages over


def trained_reader(
    pictures: Pictures, effort: Effort, seed: int, work: WorkFolder, *, progress: bool = True
) -> Reader:
    """The reader of one seed: trained, or taken from the work folder."""
    torch.manual_seed(seed)
    reader = Reader().to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    reader.load_state_dict(
        work.weights(f"reader-{seed}", lambda: _train(reader, pictures, effort, seed, progress))
    )
    found: Reader = reader.eval()
    return found


@torch.no_grad()
def read(reader: Reader, pictures: NDArray[np.uint8]) -> Tensor:
    """Scores of each cell, float [n, 9, 17], of pictures uint8 [n, 96, 96, 3]."""
    parts = [reader(as_input(pictures[at : at + _BATCH])) for at in range(0, len(pictures), _BATCH)]
    return torch.cat(parts)


def as_input(pictures: NDArray[np.uint8]) -> Tensor:
    """Pictures uint8 [n, h, w, 3] as float [n, 3, h, w], values 0 to 1."""
    return torch.from_numpy(np.ascontiguousarray(pictures)).permute(0, 3, 1, 2).float() / 255


def _train(
    reader: Reader, pictures: Pictures, effort: Effort, seed: int, progress: bool
) -> dict[str, Tensor]:
    cells = Cells.of(pictures.scenes)
    mean = as_input(pictures.pixels).mean(0)

    def loss(chosen: NDArray[np.int64], generator: torch.Generator) -> Tensor:
        clean = as_input(pictures.pixels[chosen])
        shown = _worn(clean, mean, generator)
        return cells.loss(reader(shown), torch.from_numpy(chosen))

    fit(
        reader,
        loss,
        examples=len(pictures.scenes),
        steps=effort.reader_steps,
        batch=effort.batch,
        lr=_LR,
        seed=seed,
        what="reader",
        progress=progress,
    )
    return dict(reader.state_dict())


def _worn(clean: Tensor, mean: Tensor, generator: torch.Generator) -> Tensor:
    """Half of the pictures blurred, all paled towards the mean picture by a random share."""
    coarse = int(torch.randint(2, _COARSEST + 1, (), generator=generator))
    small = functional.adaptive_avg_pool2d(clean, clean.shape[-1] // coarse)
    blurred = functional.interpolate(small, clean.shape[-1], mode="bilinear")
    chosen = torch.rand(len(clean), 1, 1, 1, generator=generator) < 0.5
    strength = _PALEST + (1 - _PALEST) * torch.rand(len(clean), 1, 1, 1, generator=generator)
    return mean + strength * (torch.where(chosen, blurred, clean) - mean)
