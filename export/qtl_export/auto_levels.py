"""``--bits auto``: the number of levels from the entropy of the features of calibration pictures."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from qtl_core.codes import bits_of
from qtl_core.errors import PictureError
from qtl_core.level_selection import BATCHES, FeatureEntropy, feature_entropy, standardise
from qtl_core.nn.calibration import BATCH, cut_features
from qtl_core.nn.checkpoint import Checkpoint
from qtl_export import held_out
from qtl_export.progress import Progress

_VALUES_WANTED: Final = 100_000
_FEWEST, _MOST = 24, 256
_A_BATCH: Final = 1000


@dataclass(frozen=True, eq=False)
class AutoLevels:
    """A choice of ``--bits auto``.

    Attributes:
        entropy: what the choice rests on.
        pictures: how many pictures it was estimated from.
        source: where they come from, for people.
    """

    entropy: FeatureEntropy
    pictures: int
    source: str

    @property
    def levels(self) -> int:
        """L."""
        return self.entropy.levels

    def as_json(self) -> dict[str, Any]:
        """What the report holds of it."""
        return {
            "levels": self.levels,
            "bits": bits_of(self.levels),
            "because": self.entropy.because(),
            "entropy_bits": {"mean": self.entropy.mean, "sd": self.entropy.sd},
            "batches": len(self.entropy.batches),
            "values": self.entropy.values,
            "deviation": self.entropy.deviation,
            "atoms": {"share": self.entropy.split.share, "values": len(self.entropy.split.atoms)},
            "pictures": self.pictures,
            "source": self.source,
        }

    def as_text(self) -> str:
        """One line for a terminal."""
        return f"--bits auto: {self.entropy.because()} ({self.pictures} pictures: {self.source})"


def choose_levels(checkpoint: Checkpoint, folder: Path | None, progress: Progress) -> AutoLevels:
    """Chooses L for a checkpoint's vision quantizer.

    Args:
        checkpoint: with the quantizer.
        folder: the user's pictures; None for the checkpoint's held-out ones.
        progress: where to show how far it is.

    Raises:
        PictureError: there are no pictures, or a broken one.
        InputError: too few pictures, or features that are damaged or constant.
    """
    if folder is None and not (checkpoint.path / held_out.FILE).is_file():
        raise PictureError(
            f"--bits auto looks at the features of real pictures, and {checkpoint.path} holds none "
            f"({held_out.FILE}); give a folder of some with --pictures, or name the bits"
        )
    quantizer = checkpoint.model.vision_quantizer
    found = held_out.originals(checkpoint.path, folder, checkpoint.picture, _MOST)
    if found is None:
        raise PictureError(
            f"{checkpoint.path} holds no pictures any more; give a folder of some with --pictures"
        )
    pictures, source = found
    # One picture tells how many features each has, and so how many pictures are enough.
    each = standardise(cut_features(checkpoint.model.vision, pictures[:1]), quantizer.params()).size
    pictures = pictures[: max(_FEWEST, math.ceil(_VALUES_WANTED / each))]
    features = cut_features(
        checkpoint.model.vision,
        pictures,
        follow=lambda starts: progress.bar(starts, "features", len(pictures), "pictures", each=BATCH),
    )
    scaled = standardise(features, quantizer.params())
    batches = max(2, min(BATCHES, len(pictures), scaled.size // _A_BATCH))
    return AutoLevels(feature_entropy(scaled, batches), len(pictures), source)
