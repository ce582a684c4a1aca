"""The entropy coder's tables of a checkpoint, measured where many pictures are: on training scenes.

The exporter takes them before it measures any itself; the few held-out pictures of a checkpoint make tables
that cost almost twice the bytes.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from qtl_core import entropy
from qtl_core.codes import packed_size
from qtl_core.entropy_file import tables_name, write_tables
from qtl_core.errors import StorageError
from qtl_core.nn.checkpoint import QUANTIZERS_FOLDER, Checkpoint, load_checkpoint
from qtl_training.digits.scenes import sample
from qtl_training.features import tower_features

LEVELS: Final = (2, 4, 8, 16, 32)
"""Level counts whose tables come with a checkpoint's own quantizer when nobody names others."""
SCENES: Final = 3000
MOST_ENTRIES: Final = 1 << 16
"""Frequencies of a file in a checkpoint at most; 16 bits each before it is compressed."""
_CHECKED: Final = 500
_SEED: Final = 88_088
_AT_ONCE: Final = 256


def add_tables(
    folder: Path,
    levels: Sequence[int] = (),
    *,
    quantizer: str = "",
    scenes: int = SCENES,
    progress: bool = True,
) -> list[dict[str, Any]]:
    """Measures tables on training scenes and writes them into a checkpoint.

    Args:
        folder: the checkpoint.
        levels: level counts; by default those of ``LEVELS``, or a further quantizer's own.
        quantizer: one of the checkpoint's further quantizers; "" for its own.
        scenes: how many training scenes.
        progress: whether to show bars.

    Returns:
        For each level count ``file, levels, classes, fixed_bytes``, and ``coded_bytes``, the mean on
        validation scenes.

    Raises:
        CheckpointError: no such checkpoint or quantizer.
        InputError: too few scenes.
        StorageError: the checkpoint's folder cannot be written.
    """
    checkpoint = load_checkpoint(folder, quantizer=quantizer)
    wanted = levels or ((checkpoint.settings.vision.levels,) if quantizer else LEVELS)
    known = scene_features(checkpoint, "train", scenes, progress=progress)
    other = scene_features(checkpoint, "validation", _CHECKED, progress=progress)
    place = folder / QUANTIZERS_FOLDER / quantizer if quantizer else folder
    rows = []
    for count in wanted:
        tables = entropy.Tables.fit(codes_of(checkpoint, known, count), count, most_entries=MOST_ENTRIES)
        codes = codes_of(checkpoint, other, count)
        file = place / tables_name(count)
        try:
            write_tables(file, tables)
        except OSError as error:
            raise StorageError(f"{file} cannot be written: {error.strerror}") from error
        fixed = packed_size(codes[0].size, count)
        sizes = [min(len(data), fixed) for data in entropy.encode_batch(codes, tables)]
        rows.append(
            {
                "file": str(file),
                "levels": count,
                "classes": tables.classes,
                "fixed_bytes": fixed,
                "coded_bytes": float(np.mean(sizes)),
            }
        )
    return rows


def scene_features(checkpoint: Checkpoint, split: str, n: int, *, progress: bool = True) -> Tensor:
    """The connector's input for ``n`` scenes of a split that no question set has, [n, tokens, width]."""
    return tower_features(checkpoint.model.vision, sample(split, n, _SEED), progress=progress)


@torch.inference_mode()
def codes_of(checkpoint: Checkpoint, features: Tensor, levels: int) -> NDArray[np.uint8]:
    """Codes uint8 [n, tokens, code_dim] of what ``scene_features`` returned."""
    model = checkpoint.model
    parts = [
        model.vision_quantizer.encode(model.vision.connector(part.float()), levels)
        for part in features.split(_AT_ONCE)
    ]
    codes: NDArray[np.uint8] = torch.cat(parts).numpy()
    return codes


def table(rows: Sequence[dict[str, Any]]) -> str:
    """What was written, as text."""
    lines = [f"{'L':>4}{'classes':>9}{'fixed B':>9}{'coded B':>9}  file"]
    lines += [
        f"{row['levels']:>4}{row['classes']:>9}{row['fixed_bytes']:>9,}{row['coded_bytes']:>9.1f}  "
        f"{row['file']}"
        for row in rows
    ]
    return "\n".join(lines)
