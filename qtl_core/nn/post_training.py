"""A quantizer for features that have none, fitted in closed form: no gradients, no questions.

Projection: principal directions of the features, rotated at random, so that every code says about as much.
k: the one that restores most at the number of levels. Map back: least squares from the values of the codes.
"""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from typing import Any, Final

import msgspec
import torch
from torch import Tensor

from qtl_core.errors import InputError
from qtl_core.nn.checkpoint import Checkpoint, QuantizerSettings
from qtl_core.nn.quantizer import Quantizer

MAX_PICTURES: Final = 512
"""Pictures that are fitted to at most."""
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


def most_pictures(tokens: int, width: int) -> int:
    """How many pictures' features [tokens, width] are held at once, at most."""
    return max(2, min(MAX_PICTURES, _MAX_NUMBERS // (tokens * width)))


def check_enough(
    pictures: int, tokens: int, width: int, code_dim: int, where: str, unit: str = "pictures"
) -> None:
    """Makes sure that a quantizer can be fitted to so many pictures.

    Args:
        pictures: how many there are, those that will be kept aside included.
        tokens: of a picture at the cut.
        width: of the features there.
        code_dim: codes a token.
        where: the pictures' folder, for the message.
        unit: what there are so many of: "pictures" or "tiles".

    Raises:
        InputError: too few pictures for so many codes, or more codes than the features are wide.
    """
    if not 1 <= code_dim <= width:
        raise InputError(f"{code_dim} codes a token; give 1 to {width}, the features' width here")
    enough = math.ceil(_TOKENS_A_DIRECTION * code_dim / tokens)
    if pictures - _aside(pictures) < enough:
        needed = next(n for n in range(1, 10**6) if n - _aside(n) >= enough)
        raise InputError(
            f"{pictures} {unit} in {where} are too few to fit {code_dim} codes a token to: "
            f"give at least {needed}, or fewer codes with --code-dim"
        )


def kept_aside(pictures: int, most: int | None = None, *, together: bool = False) -> Tensor:
    """Which of so many pictures a fit should not see, bool [pictures]: every fifth, ``most`` at most.

    With ``together`` they are the last ones: of tiles, those of a picture lie side by side.
    """
    aside = _aside(pictures) if most is None else min(most, _aside(pictures))
    if together:
        return torch.arange(pictures) >= pictures - aside
    kept = torch.arange(pictures) % (pictures // aside) == 0
    return kept & (kept.cumsum(0) <= aside)


def _aside(pictures: int) -> int:
    return max(1, pictures // _ASIDE)


@torch.no_grad()
def fit(features: Tensor, code_dim: int, levels: int) -> tuple[Quantizer, float]:
    """Fits a quantizer.

    Args:
        features: float32 [pictures, tokens, width].
        code_dim: codes a token.
        levels: L.

    Returns:
        The quantizer, in evaluation mode, and its k.
    """
    width = features.shape[-1]
    rows = features.reshape(-1, width)
    some = max(_TOKENS, _TOKENS_A_DIRECTION * code_dim)
    if len(rows) > some:
        rows = rows[torch.randperm(len(rows), generator=torch.Generator().manual_seed(0))[:some]]
    quantizer = Quantizer(width, code_dim, levels, "frozen", 1.0)
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


@torch.no_grad()
def signal_to_noise(quantizer: Quantizer, features: Tensor, mean: Tensor) -> float:
    """How far restored features lie over their noise, in dB.

    Args:
        quantizer: in evaluation mode.
        features: float32 [pictures, tokens, width], which no fit has seen.
        mean: [width], of the features that it was fitted to; what deviates from it is the signal.
    """
    noise = (quantizer.decode(quantizer.encode(features)) - features).pow(2).mean()
    signal = (features - mean).pow(2).mean()
    return float(10 * torch.log10(signal / noise.clamp_min(1e-20)))


def settings_of(code_dim: int, levels: int, k: float) -> QuantizerSettings:
    """The settings of a quantizer that ``fit`` returned."""
    return QuantizerSettings(code_dim=code_dim, levels=levels, scaling="frozen", k=k)


def with_quantizer(checkpoint: Checkpoint, quantizer: Quantizer, settings: QuantizerSettings) -> Checkpoint:
    """The checkpoint with this vision quantizer in place of its own, and no further ones."""
    checkpoint.model.vision_quantizer = quantizer
    return dataclasses.replace(
        checkpoint,
        settings=msgspec.structs.replace(checkpoint.settings, vision=settings),
        further={},
        quantizer="",
        fitted=None,
    )


def _values(quantizer: Quantizer, z: Tensor) -> Tensor:
    """Values of the codes of projected features."""
    return quantizer.values(quantizer.to_codes(quantizer.scale(z)))
