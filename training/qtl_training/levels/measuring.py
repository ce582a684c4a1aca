"""Entropy of the features, the rule's choice, and for each level count its bytes and its accuracy."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from tqdm import tqdm

from qtl_core import entropy
from qtl_core.codes import bits_of, packed_size
from qtl_core.density import estimate
from qtl_core.level_selection import (
    BATCHES,
    FeatureEntropy,
    cell_width,
    channel_entropy,
    code_entropy,
    feature_entropy,
    standardise,
)
from qtl_core.nn.checkpoint import Checkpoint, load_checkpoint
from qtl_training.answering import answered_right
from qtl_training.digits.dataset import QuestionSet, question_set, share_right
from qtl_training.features import tower_features

LEVELS: Final = (2, 3, 4, 6, 8, 16, 32)
"""Level counts that are measured when nobody names others; the rule's choice comes to them."""
_AT_ONCE: Final = 256
_CURVE: Final = 400
_SHOWN: Final = 4.5


def measure_levels(
    folder: Path,
    levels: Sequence[int] = LEVELS,
    *,
    quantizer: str = "",
    split: str = "validation",
    batches: int = BATCHES,
    each_type: int = 480,
    progress: bool = True,
) -> dict[str, Any]:
    """Estimates the entropy of a checkpoint's features on digit scenes and measures each level count.

    Args:
        folder: the checkpoint.
        levels: level counts to measure beside the one that the rule chooses.
        quantizer: one of the checkpoint's further quantizers; "" for its own.
        split: "validation" or "test".
        batches: batches of pictures that the entropy is estimated in.
        each_type: questions of each of the 13 types.
        progress: whether to show bars.

    Returns:
        ``entropy_bits{mean, sd}`` over ``batches`` batches, ``batch_entropy_bits`` of each,
        ``channel_entropy_bits``, ``recommended_levels``, ``recommended_bits`` and ``because``,
        ``atoms{share, values}``, ``values`` and ``deviation`` of the other features, ``density{at, values}``;
        ``table``, for each level count ``levels, bits, k, cell_sigma, code_entropy_bits, fixed_bytes,
        coded_bytes, accuracy, families`` (bytes a picture, accuracy in percent: macro, and by family), and
        ``unquantized{bytes, accuracy, families}``.

    Raises:
        CheckpointError: the checkpoint cannot be read.
        InputError: too few pictures for the batches, or features that are damaged or constant.
    """
    checkpoint = load_checkpoint(folder, quantizer=quantizer)
    data = question_set(split, each_type=each_type)
    tower = tower_features(checkpoint.model.vision, data.scenes, progress=progress)
    features = _cut(checkpoint, tower)
    coder = checkpoint.model.vision_quantizer
    scaled = standardise(features, coder.params())
    found = feature_entropy(scaled, batches)
    in_sigma = scaled / np.float32(found.deviation)
    rows = [
        _row(checkpoint, tower, features, data, count, found.deviation)
        for count in tqdm(
            sorted({*levels, found.levels}), desc="level counts", disable=not progress or None, unit="L"
        )
    ]
    whole = _accuracy(checkpoint, tower, data, None)
    return {
        "data": "digits",
        "split": split,
        "quantizer": quantizer,
        "pictures": len(features),
        "n": len(data.questions),
        **_entropy(found, in_sigma),
        "because": found.because(),
        "recommended_levels": found.levels,
        "recommended_bits": bits_of(found.levels),
        "table": rows,
        "unquantized": {"bytes": 2 * features[0].size, **whole},
        "density": _curve(in_sigma[found.split.continuous]),
    }


@torch.inference_mode()
def _cut(checkpoint: Checkpoint, tower: Tensor) -> NDArray[np.float32]:
    """Features at the cut, float32 [pictures, picture tokens, width]."""
    connector = checkpoint.model.vision.connector
    parts = [connector(part.float()).numpy() for part in tower.split(_AT_ONCE)]
    return np.concatenate(parts).astype(np.float32, copy=False)


def _entropy(found: FeatureEntropy, in_sigma: NDArray[np.float32]) -> dict[str, Any]:
    return {
        "entropy_bits": {"mean": found.mean, "sd": found.sd},
        "batches": len(found.batches),
        "batch_entropy_bits": list(found.batches),
        "channel_entropy_bits": channel_entropy(in_sigma, found.split),
        "values": found.values,
        "deviation": found.deviation,
        "atoms": {"share": found.split.share, "values": len(found.split.atoms)},
    }


def _row(
    checkpoint: Checkpoint,
    tower: Tensor,
    features: NDArray[np.float32],
    data: QuestionSet,
    count: int,
    sigma: float,
) -> dict[str, Any]:
    coder = checkpoint.model.vision_quantizer
    with torch.inference_mode():
        codes = coder.encode(torch.from_numpy(features), count).numpy()
        k = coder.k_for(count).numpy()
    return {
        "levels": count,
        "bits": bits_of(count),
        "k": float(k.mean()),
        "cell_sigma": cell_width(count, k) / sigma,
        "code_entropy_bits": code_entropy(codes, count),
        "fixed_bytes": packed_size(codes[0].size, count),
        "coded_bytes": float(np.mean(coded_sizes(codes, count))),
        **_accuracy(checkpoint, tower, data, count),
    }


def coded_sizes(codes: NDArray[np.uint8], levels: int) -> list[int]:
    """Bytes that the entropy coder makes of each picture, under tables of pictures it is not among.

    The even pictures are coded under tables of the odd ones, and the other way round.

    Args:
        codes: uint8 [pictures, tokens, channels], two pictures or more.
        levels: L.
    """
    sizes = [0] * len(codes)
    for half in (0, 1):
        tables = entropy.Tables.fit(codes[1 - half :: 2], levels)
        sizes[half::2] = [len(data) for data in entropy.encode_batch(codes[half::2], tables)]
    return sizes


def _accuracy(checkpoint: Checkpoint, tower: Tensor, data: QuestionSet, count: int | None) -> dict[str, Any]:
    families, _ = share_right(data.questions, answered_right(checkpoint, tower, data.questions, count))
    return {"accuracy": families["macro"], "families": families}


def _curve(values: NDArray[np.float32]) -> dict[str, list[float]]:
    """The density of all features where a plot shows it."""
    density = estimate(values)
    at = np.linspace(-_SHOWN, _SHOWN, _CURVE)
    return {"at": at.tolist(), "values": np.interp(at, density.at, density.values, 0, 0).tolist()}
