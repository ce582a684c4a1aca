"""How many levels features are worth, from their entropy: estimate, rule, and what the codes then hold.

The rule
--------
No uniquely decodable code spends fewer bits a symbol on average than the symbols' entropy (Shannon's source
coding theorem), so the fixed-length code that the quantizer sends, log2 L bits a feature, needs log2 L >= H.
Features are continuous; their entropy depends on the cells in which they are told apart: in cells of width D,
where D is small, H = h - log2 D with the differential entropy h (Renyi 1959). Our cell is one sigma wide, one
standard deviation of what moves, and so H = h(z / sigma). The smallest L that can hold it is::

    L = ceil(2^h)        at least 2

An entropy is known within ``density.ENTROPY_ERROR`` bit; h is lowered by it first, so that no level is spent
on the error of the estimate.

A normal has the most entropy of all distributions of one deviation, h = log2(2 pi e) / 2 = 2.05 bits, so the
rule never goes beyond its L = 5. A Laplace distribution (1.94) and a uniform one (1.79) get 4, clusters less,
two narrow ones 2. So do tails so heavy that nearly all features lie within a fraction of sigma: more levels
across k sigma would stand empty. Cells of half a sigma would take 2^(h + 1) levels, and so on; that one sigma
is fine enough is what accuracy has to show.

What the rule does not know is what a feature is worth to the answers: show it beside the accuracy at each L.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from . import quantizer
from .codes import MAX_LEVELS, MIN_LEVELS, bits_of
from .density import ENTROPY_ERROR, MIN_VALUES, Split, estimate, split_atoms
from .errors import CodeError, InputError

BATCHES: Final = 8
"""Batches of pictures, as in Figure A1 of arXiv 2511.23402."""


@dataclass(frozen=True, eq=False)
class FeatureEntropy:
    """The differential entropy of features in units of their own standard deviation.

    Attributes:
        batches: of each batch of pictures, in bits.
        values: how many features it is of, atoms not counted.
        deviation: theirs, in the units they were given in; 1 where those are a sigma that fits.
        split: which features are atoms.
    """

    batches: tuple[float, ...]
    values: int
    deviation: float
    split: Split

    @property
    def mean(self) -> float:
        """Mean of the batches, bits."""
        return float(np.mean(self.batches))

    @property
    def sd(self) -> float:
        """Their standard deviation, bits, unbiased; 0 of a single one."""
        return float(np.std(self.batches, ddof=1)) if len(self.batches) > 1 else 0.0

    @property
    def levels(self) -> int:
        """What the rule makes of the mean."""
        return recommend(self.mean)

    def because(self) -> str:
        """The rule's choice and its reason, for people."""
        mean, cells = self.mean, 2 ** (self.mean - ENTROPY_ERROR)
        return (
            f"the entropy of z/sigma is {mean:.3f} bits (sd {self.sd:.3f}, {len(self.batches)} batches); "
            f"2^({mean:.3f} - {ENTROPY_ERROR:g}) = {cells:.2f} cells of one sigma take {self.levels} levels"
        )


def recommend(entropy_bits: float) -> int:
    """The rule of this module: the smallest L, 2 to 256, with log2 L at least the entropy.

    Args:
        entropy_bits: differential entropy of z / sigma, with the deviation of these very features.

    Raises:
        InputError: not a number.
    """
    if math.isnan(entropy_bits):
        raise InputError("the entropy is not a number; the features it was estimated from are damaged")
    wanted = min(entropy_bits - ENTROPY_ERROR, math.log2(MAX_LEVELS))
    cells: float = 2.0**wanted
    return max(math.ceil(cells), MIN_LEVELS)


def standardise(features: npt.ArrayLike, params: quantizer.Params) -> quantizer.Floats:
    """(z - mu) / sigma as the quantizer has them before k and the clip.

    Args:
        features: float [pictures, tokens, width].
        params: the quantizer. "image" takes mu and sigma of each picture, "frozen" its own of each channel.

    Returns:
        float32 [pictures, tokens / merge^2, code_dim].

    Raises:
        ValueError: a shape that does not fit.
    """
    z = quantizer.project(features, params)
    if params.scaling == "frozen" and params.mean is not None and params.std is not None:
        mu, sigma = params.mean, np.maximum(params.std, quantizer.SIGMA_FLOOR)
    else:
        mu = z.mean(axis=(-2, -1), keepdims=True, dtype=np.float32)
        sigma = np.maximum(z.std(axis=(-2, -1), keepdims=True, ddof=1), quantizer.EPSILON)
    return np.asarray((z - mu) / sigma, dtype=np.float32)


def feature_entropy(scaled: npt.ArrayLike, batches: int = BATCHES) -> FeatureEntropy:
    """The entropy of features batch by batch, atoms left out.

    Args:
        scaled: z / sigma as ``standardise`` gives it, float [pictures, tokens, channels]. How far the
            channels lie apart matters, their common scale does not.
        batches: into how many runs of pictures, as equal as possible.

    Raises:
        InputError: a NaN or an infinite feature, too few of them (it says how many pictures it takes), or
            features that are nothing but exact repeats.
    """
    array = np.asarray(scaled)
    if array.ndim != 3 or not array.size:
        raise InputError(f"features must be [pictures, tokens, channels], not of shape {array.shape}")
    if not 1 <= batches <= len(array):
        raise InputError(
            f"{len(array)} pictures cannot be split into {batches} batches; give more pictures, or a number "
            "of batches from 1 up to theirs"
        )
    split = split_atoms(array)
    moving = array[split.continuous]
    parts = [array[rows][split.continuous[rows]] for rows in np.array_split(np.arange(len(array)), batches)]
    fewest = min(len(part) for part in parts)
    if fewest < MIN_VALUES:
        raise InputError(_too_few(array, split, batches, fewest))
    deviation = float(moving.std(dtype=np.float64))
    bits = tuple(estimate(part).entropy_bits - math.log2(deviation) for part in parts)
    return FeatureEntropy(bits, len(moving), deviation, split)


def channel_entropy(scaled: npt.ArrayLike, split: Split) -> float | None:
    """The mean differential entropy of the channels, each with a density of its own, in bits.

    It is what a coder with a table for each channel faces: less than the entropy of all features together
    by what the channel's number tells about a feature.

    Args:
        scaled: float [pictures, tokens, channels], in the units that the entropy is to be in.
        split: its atoms, which are left out.

    Returns:
        None if no channel has enough features for an estimate; channels that have not are left out.
    """
    array = np.asarray(scaled)
    channels = (array[..., c][split.continuous[..., c]] for c in range(array.shape[-1]))
    found = [estimate(channel).entropy_bits for channel in channels if len(channel) >= MIN_VALUES]
    return float(np.mean(found)) if found else None


def code_entropy(codes: npt.ArrayLike, levels: int) -> float:
    """Entropy of codes under a static table for each channel, the mean over channels, in bits a code.

    Args:
        codes: integers 0..levels-1, [..., channels].
        levels: L.

    Raises:
        CodeError: no integers, a code outside its range, or levels outside 2..256.
        InputError: no codes.
    """
    bits_of(levels)
    array = np.asarray(codes)
    if array.ndim < 1 or not array.size:
        raise InputError(f"no codes in an array of shape {array.shape}; give those of one picture or more")
    if array.dtype.kind not in "ui":
        raise CodeError(f"codes must be integers, not {array.dtype}")
    if int(array.min()) < 0 or int(array.max()) >= levels:
        raise CodeError(f"codes must lie in 0..{levels - 1}, found {int(array.min())} to {int(array.max())}")
    channels = array.shape[-1]
    own = array.reshape(-1, channels).astype(np.int64) + levels * np.arange(channels)
    counts = np.bincount(own.ravel(), minlength=levels * channels).reshape(channels, levels)
    share = counts / len(own)
    information = np.log2(share, out=np.zeros_like(share), where=share > 0)
    return -float((share * information).sum(axis=1).mean())


def cell_width(levels: int, k: npt.ArrayLike) -> float:
    """Width of the quantizer's cells in units of its sigma, 2 k / (L - 1); the geometric mean over channels.

    Args:
        levels: L.
        k: half the range in units of sigma; one number, or one for each channel.

    Raises:
        CodeError: levels outside 2..256.
    """
    bits_of(levels)
    log_k: Any = np.log2(np.asarray(k, dtype=np.float64))
    return float(2 ** (1 + log_k.mean()) / (levels - 1))


def _too_few(array: npt.NDArray[Any], split: Split, batches: int, fewest: int) -> str:
    each = array[0].size
    moving = each * (1 - split.share)
    if moving < 1:
        return (
            f"{split.share:.2%} of the features are exact repeats of {len(split.atoms):,} values, which "
            "leaves nothing to estimate a density from; are the pictures the same, or the features constant?"
        )
    wanted = batches * math.ceil(MIN_VALUES / moving)
    repeats = f", {split.share:.1%} of them exact repeats that do not count" if split.share else ""
    return (
        f"{batches} batches need {MIN_VALUES} features each, and one has {fewest}: {len(array)} pictures of "
        f"{each} features{repeats}; give {wanted} pictures or more"
    )
