"""A quantizer for a checkpoint that has none, fitted to pictures in closed form: no gradients, no questions.

Projection: principal directions of the features, rotated at random, so that every code says about as much.
k: the one that restores most at the number of levels. Map back: least squares from the values of the codes.
"""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import msgspec
import torch
from torch import Tensor

from qtl_core.errors import InputError
from qtl_core.nn.calibration import BATCH, cut_features
from qtl_core.nn.checkpoint import Checkpoint, QuantizerSettings
from qtl_core.nn.quantizer import Quantizer
from qtl_export import held_out
from qtl_export.progress import Progress

MAX_PICTURES: Final = 512
_MAX_NUMBERS: Final = 1 << 28  # of features that are held at once: 1 GB
_TOKENS: Final = 16384  # that directions and map are fitted to
_TOKENS_A_DIRECTION: Final = 4
_ASIDE: Final = 5  # every fifth picture is kept for the noise
_K: Final = tuple(step / 8 for step in range(4, 57))  # 0.5 to 7


@dataclass(frozen=True)
class Fitted:
    """What a fit came to.

    Attributes:
        pictures: how many it was fitted to.
        code_dim: codes a token.
        levels: L.
        k: half the range in standard deviations.
        snr_db: signal-to-noise ratio of the restored features on ``pictures_aside``, in dB.
        pictures_aside: pictures that the fit has not seen.
        unit: "pictures", or "tiles" where pictures are cut and these are counted.
    """

    pictures: int
    code_dim: int
    levels: int
    k: float
    snr_db: float
    pictures_aside: int
    unit: str = "pictures"

    def as_json(self) -> dict[str, Any]:
        """As a JSON object holds it."""
        return dataclasses.asdict(self)

    def as_text(self) -> str:
        """One line for a terminal."""
        return (
            f"quantizer fitted to {self.pictures} {self.unit}: {self.code_dim} codes a token, "
            f"k = {self.k:g}; features come back {self.snr_db:.1f} dB over the noise "
            f"({self.pictures_aside} other {self.unit})"
        )


class PostTraining:
    """The features of a folder's pictures, and quantizers fitted to them.

    Args:
        checkpoint: with or without a quantizer of its own.
        folder: of pictures, a few hundred at best; ``MAX_PICTURES`` are taken.
        code_dim: codes a token; None for the width of the features.
        progress: where to show how far it is.

    Raises:
        PictureError: a folder without pictures, or a broken one.
        InputError: too few pictures for so many codes, more codes than the features are wide, or features
            that are not finite.
    """

    def __init__(
        self, checkpoint: Checkpoint, folder: Path, code_dim: int | None, progress: Progress
    ) -> None:
        self._checkpoint = checkpoint
        self._unit = "tiles" if checkpoint.picture.tiled else "pictures"
        vision = checkpoint.model.vision
        first = held_out.pictures_in(folder, checkpoint.picture, 1)
        tokens, width = cut_features(vision, first).shape[1:]
        most = max(2, min(MAX_PICTURES, _MAX_NUMBERS // (tokens * width)))
        pictures = held_out.pictures_in(folder, checkpoint.picture, most)
        self._code_dim = width if code_dim is None else code_dim
        if not 1 <= self._code_dim <= width:
            raise InputError(f"{self._code_dim} codes a token; give 1 to {width}, the features' width here")
        aside = max(1, len(pictures) // _ASIDE)
        enough = math.ceil(_TOKENS_A_DIRECTION * self._code_dim / tokens)
        if len(pictures) - aside < enough:
            needed = next(n for n in range(1, 10**6) if n - max(1, n // _ASIDE) >= enough)
            raise InputError(
                f"{len(pictures)} {self._unit} in {folder} are too few to fit {self._code_dim} codes a token "
                f"to: give at least {needed}, or fewer codes with --code-dim"
            )
        features = torch.from_numpy(
            cut_features(
                vision,
                pictures,
                follow=lambda starts: progress.bar(
                    starts, "features of the pictures to fit to", len(pictures), "pictures", each=BATCH
                ),
            )
        )
        if not torch.isfinite(features).all():
            raise InputError(
                f"features of the pictures in {folder} are not finite; is the checkpoint damaged?"
            )
        if checkpoint.picture.tiled:  # tiles of one picture lie side by side, and belong together
            kept = torch.arange(len(pictures)) >= len(pictures) - aside
        else:
            kept = torch.arange(len(pictures)) % (len(pictures) // aside) == 0
            kept &= kept.cumsum(0) <= aside
        self._known, self._aside = features[~kept], features[kept]
        self._progress = progress

    @torch.no_grad()
    def fitted(self, levels: int) -> tuple[Checkpoint, Fitted]:
        """The checkpoint with a quantizer of so many levels in place of its own, and no further ones."""
        with self._progress.stage("fitting the quantizer"):
            quantizer, k = self._fit(levels)
            quantizer.eval()
        restored = quantizer.decode(quantizer.encode(self._aside))
        noise = (restored - self._aside).pow(2).mean()
        signal = (self._aside - self._known.mean((0, 1))).pow(2).mean()
        settings = QuantizerSettings(code_dim=self._code_dim, levels=levels, scaling="frozen", k=k)
        before = self._checkpoint
        before.model.vision_quantizer = quantizer
        checkpoint = dataclasses.replace(
            before,
            settings=msgspec.structs.replace(before.settings, vision=settings),
            further={},
            quantizer="",
        )
        return checkpoint, Fitted(
            pictures=len(self._known),
            code_dim=self._code_dim,
            levels=levels,
            k=k,
            snr_db=float(10 * torch.log10(signal / noise.clamp_min(1e-20))),
            pictures_aside=len(self._aside),
            unit=self._unit,
        )

    def _fit(self, levels: int) -> tuple[Quantizer, float]:
        width = self._known.shape[-1]
        rows = self._known.reshape(-1, width)
        some = max(_TOKENS, _TOKENS_A_DIRECTION * self._code_dim)
        if len(rows) > some:
            rows = rows[torch.randperm(len(rows), generator=torch.Generator().manual_seed(0))[:some]]
        quantizer = Quantizer(width, self._code_dim, levels, "frozen", 1.0)
        quantizer.eval().fit(rows[None])
        z = quantizer.project(rows)
        # What an error of a channel's z costs in features; fitted with k = 1, out_proj holds sigma too.
        costs = quantizer.out_proj.weight.pow(2).sum(0) / quantizer.std.clamp_min(1e-6) ** 2

        def noise(k: float) -> float:
            quantizer.k.fill_(k)
            restored = _values(quantizer, z) * k * quantizer.std + quantizer.mean
            return float(((restored - z).pow(2).mean(0) * costs).sum())

        k = min(_K, key=noise)
        quantizer.k.fill_(k)
        known = torch.nn.functional.pad(_values(quantizer, z).double(), (0, 1), value=1.0)
        back = torch.linalg.lstsq(known, rows.double(), driver="gelsd").solution
        quantizer.out_proj.weight.copy_(back[:-1].T)
        quantizer.out_proj.bias.copy_(back[-1])
        return quantizer, k


def _values(quantizer: Quantizer, z: Tensor) -> Tensor:
    """Values of the codes of projected features."""
    return quantizer.values(quantizer.to_codes(quantizer.scale(z)))
