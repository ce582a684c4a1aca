"""The folder that a quantizer is written to, and what an earlier run has left there.

config.json, qtl.json, qtl.safetensors     see qtl_core/nn/families/fitted.py
entropy-L-levels.npz                       the entropy coder's tables for its codes
card.json                                  the numbers
run/                                       snapshots and log
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

import msgspec
import numpy as np
import torch

from qtl_core import entropy
from qtl_core.entropy_file import tables_name, write_tables
from qtl_core.errors import InputError, StorageError
from qtl_core.nn.checkpoint import Checkpoint, FurtherQuantizer
from qtl_core.nn.families.base import CONFIG_FILE
from qtl_core.nn.families.fitted import MODEL_TYPE, save_fitted
from qtl_core.nn.reading import read_json
from qtl_training.distillation.feature_cache import BATCH, FeatureCache
from qtl_training.distillation.report import Trained
from qtl_training.tables import MOST_ENTRIES

CARD: Final = "card.json"
RUN: Final = "run"
_TABLE_CODES: Final = 1 << 24


def prepare(output: Path, *, fresh: bool) -> None:
    """Makes the folder, or looks at what is there.

    Args:
        output: the folder.
        fresh: whether to forget an earlier run.

    Raises:
        InputError: it holds something else than a quantizer.
        StorageError: it cannot be made.
    """
    config = output / CONFIG_FILE
    if config.is_file() and read_json(config).get("model_type") != MODEL_TYPE:
        raise InputError(
            f"{output} holds a checkpoint that is no quantizer; name another folder with --output"
        )
    try:
        output.mkdir(parents=True, exist_ok=True)
        if fresh:
            for name in (CONFIG_FILE, CARD):
                (output / name).unlink(missing_ok=True)
            shutil.rmtree(output / RUN, ignore_errors=True)
    except OSError as error:
        raise StorageError(f"{output} cannot be made: {error.strerror}") from error


def finished(output: Path, made_of: dict[str, Any], asked: str) -> Trained | None:
    """What an earlier run has finished with the same settings and questions; None if none has."""
    if not (output / CARD).is_file() or not (output / CONFIG_FILE).is_file():
        return None
    try:
        trained = msgspec.json.decode((output / CARD).read_bytes(), type=Trained)
    except (OSError, msgspec.MsgspecError):
        return None
    same = trained.settings == json.loads(json.dumps(made_of)) and trained.asked == asked
    return trained if same else None


def write_quantizer(
    output: Path,
    checkpoint: str | Path,
    base: Checkpoint,
    quantizer: FurtherQuantizer,
    features: FeatureCache,
    pictures: Sequence[int],
) -> str:
    """Writes a quantizer, and tables for its codes; says where the tables come from, or why there are none.

    Args:
        output: the folder.
        checkpoint: that it is for, as the user named it.
        base: the same, loaded.
        quantizer: on the CPU, in evaluation mode.
        features: of pictures.
        pictures: places of those to measure tables on.

    Raises:
        StorageError: the folder cannot be written.
    """
    levels, code_dim = quantizer.settings.levels, quantizer.settings.code_dim
    some = pictures[: max(1, _TABLE_CODES // (features.tokens * code_dim))]
    with torch.no_grad():
        parts = [
            quantizer.module.encode(features.cut(some[start : start + BATCH]).cpu()).numpy()
            for start in range(0, len(some), BATCH)
        ]
    said = f"measured on {len(some)} pictures"
    try:
        for old in output.glob("entropy-*-levels.npz"):
            old.unlink()
        try:
            tables = entropy.Tables.fit(np.concatenate(parts), levels, most_entries=MOST_ENTRIES)
            write_tables(output / tables_name(levels), tables)
        except InputError as error:
            said = f"none ({error})"
        save_fitted(output, checkpoint, base, quantizer)
    except OSError as error:
        raise StorageError(f"{output} cannot be written: {error.strerror}") from error
    return said


def write_card(output: Path, trained: Trained) -> None:
    """Writes the numbers, which says that all is done.

    Raises:
        StorageError: the folder cannot be written.
    """
    try:
        (output / CARD).write_bytes(msgspec.json.format(msgspec.json.encode(trained), indent=1) + b"\n")
    except OSError as error:
        raise StorageError(f"{output} cannot be written: {error.strerror}") from error
