"""What both sides of a training run derive from its recipe: its fingerprint, and its stages' seeds."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

import msgspec

from qtl_core.errors import CheckpointError

_FILES: Final = ("config.json", "qtl.json", "model.safetensors", "qtl.safetensors", "tokenizer.json")
_CHUNK: Final = 1 << 22


def stage_seed(seed: int, number: int) -> int:
    """The seed of stage ``number`` (from 0) of a recipe with this seed."""
    return seed * 101 + number


def run_fingerprint(seed: int, stages: Sequence[Any], vision: Any, model: Any, start: Path | None) -> bytes:
    """16 bytes that agree where stages, seed and the checkpoint to start from do.

    Name, log, times between snapshots and where data lies are each side's own.

    Args:
        seed: the recipe's.
        stages: the recipe's, without what is the client's own affair (``split_stage.agreed``).
        vision: the recipe's vision quantizer, in place of the checkpoint's own; None if there is none.
        model: the model that the recipe builds; None if it starts from a checkpoint.
        start: the checkpoint's folder.

    Raises:
        CheckpointError: a file of the checkpoint cannot be read.
    """
    state = hashlib.sha256(msgspec.json.encode([seed, stages, vision, model], order="sorted"))
    for path in [] if start is None else [start / name for name in _FILES]:
        if not path.is_file():
            continue
        state.update(path.name.encode())
        try:
            with path.open("rb") as file:
                while chunk := file.read(_CHUNK):
                    state.update(chunk)
        except OSError as error:
            raise CheckpointError(f"{path} cannot be read: {error.strerror}") from error
    return state.digest()[:16]
