"""The work folder: what has been computed, under names that say from what.

    features/    tower features of training, validation and test scenes
    pictures/    the pictures of the validation and the test split
    files/       coded pictures of a split at one setting
    weights/     trained models that may be measured again
    results/     one JSON file for each variant, seed and split

Every file is written beside its name and renamed into place, so a kill leaves whole files only, and
whatever is there is not computed again. A name holds a key: a hash of the start checkpoint and of every
setting the content depends on. Other settings get other names; old files stay until somebody deletes them.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from qtl_core.errors import CheckpointError, StorageError

_KEY_DIGITS = 16
_WEIGHT_FILES = ("model.safetensors", "qtl.safetensors", "qtl.json")


class Store:
    """Files of one work folder.

    Args:
        folder: created where it is not there.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def path(self, room: str, name: str, suffix: str, **depends: Any) -> Path:
        """The file for ``name`` in a room such as "results", and for what it depends on."""
        return self.folder / room / f"{name}-{key(depends)}{suffix}"

    def write(self, path: Path, fill: Callable[[Path], None]) -> None:
        """Lets ``fill`` write a file, and puts it in place.

        Raises:
            StorageError: if the folder cannot be written.
        """
        part = path.with_name(f".{path.name}.{os.getpid()}.part")
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            fill(part)
            os.replace(part, path)
        except OSError as error:
            part.unlink(missing_ok=True)
            raise StorageError(f"{path} cannot be written: {error.strerror or error}") from error

    def write_json(self, path: Path, value: Any) -> None:
        """Puts a JSON file in place."""
        self.write(path, lambda part: _write_text(part, json.dumps(value, indent=1) + "\n"))


def read_json(path: Path) -> Any:
    """What a JSON file holds."""
    return json.loads(path.read_text("utf-8"))


def key(depends: Any) -> str:
    """A short hash of JSON values."""
    text = json.dumps(depends, sort_keys=True, default=_plain)
    return hashlib.sha256(text.encode()).hexdigest()[:_KEY_DIGITS]


def checkpoint_hash(folder: Path) -> str:
    """A hash of a checkpoint's weights and settings, its further quantizers included.

    Raises:
        CheckpointError: if it is none.
    """
    digest = hashlib.sha256()
    files = [folder / name for name in _WEIGHT_FILES]
    files += sorted(path for path in folder.glob("quantizers/*/*") if path.name in _WEIGHT_FILES)
    for file in files:
        if not file.is_file():
            raise CheckpointError(f"no checkpoint at {folder}: {file.name} is missing")
        digest.update(f"{file.relative_to(folder)}\n".encode())
        digest.update(file.read_bytes())
    return digest.hexdigest()[:_KEY_DIGITS]


def _plain(value: Any) -> Any:
    """Dataclasses and mappings that json does not know."""
    return dict(value) if hasattr(value, "keys") else value.__dict__


def _write_text(path: Path, text: str) -> None:
    path.write_text(text, "utf-8")
