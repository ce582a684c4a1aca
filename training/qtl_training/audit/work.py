"""The audit's work folder: finished pieces, so that a killed audit goes on where it stopped.

    WORK/0123456789ab/                   one checkpoint and one effort
      features-train.npy ...             tower features, float16
      reader-1.safetensors               the reader of seed 1
      inversion_2-bit_1.json             attack, representation, seed
      inversion_2-bit_1.npz              the first reconstructions of it

Pieces are written beside their names and renamed, so a kill leaves only whole ones.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors.torch import load_file, save
from torch import Tensor

from qtl_core.errors import StorageError
from qtl_training.audit.settings import VERSION, AuditSettings


class WorkFolder:
    """Finished pieces of audits of one checkpoint with one effort.

    Args:
        settings: the audit's; attacks, representations and seeds are no part of the
            folder's name, so a longer audit takes up a shorter one.
        weights: the checkpoint's digest.

    Raises:
        StorageError: if the folder cannot be made.
    """

    def __init__(self, settings: AuditSettings, weights: str) -> None:
        identity = {"version": VERSION, "weights": weights, **asdict(settings.effort)}
        digest = hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()
        self.path = settings.work / digest[:12]
        try:
            self.path.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise StorageError(
                f"work folder {self.path} cannot be made: {error.strerror}; name another with --work"
            ) from error

    def piece(self, attack: str, representation: str, seed: int) -> Path:
        """The file of one finished piece."""
        return self.path / f"{attack}_{representation}_{seed}.json"

    def done(self, attack: str, representation: str, seed: int) -> dict[str, Any] | None:
        """One finished piece, or None."""
        file = self.piece(attack, representation, seed)
        if not file.is_file():
            return None
        found: dict[str, Any] = json.loads(file.read_text("utf-8"))
        return found

    def finish(
        self,
        attack: str,
        representation: str,
        seed: int,
        result: dict[str, Any],
        pictures: NDArray[np.uint8] | None = None,
    ) -> None:
        """Keeps one piece; its pictures first, so that a piece that is there is whole."""
        file = self.piece(attack, representation, seed)
        if pictures is not None:
            buffer = io.BytesIO()
            np.savez_compressed(buffer, pictures=pictures)
            _write(file.with_suffix(".npz"), buffer.getvalue())
        _write(file, json.dumps(result).encode())

    def pictures(self, attack: str, representation: str, seed: int) -> NDArray[np.uint8] | None:
        """The pictures kept with a piece, or None."""
        file = self.piece(attack, representation, seed).with_suffix(".npz")
        if not file.is_file():
            return None
        with np.load(file, allow_pickle=False) as kept:
            return np.asarray(kept["pictures"])

    def array(self, name: str, make: Callable[[], NDArray[Any]]) -> NDArray[Any]:
        """An array made once and kept."""
        file = self.path / f"{name}.npy"
        if not file.is_file():
            buffer = io.BytesIO()
            np.save(buffer, make(), allow_pickle=False)
            _write(file, buffer.getvalue())
        kept: NDArray[Any] = np.load(file, allow_pickle=False)
        return kept

    def weights(self, name: str, make: Callable[[], dict[str, Tensor]]) -> dict[str, Tensor]:
        """Weights made once and kept."""
        file = self.path / f"{name}.safetensors"
        if not file.is_file():
            _write(file, save({key: value.contiguous() for key, value in make().items()}))
        found: dict[str, Tensor] = load_file(file)
        return found


def weights_digest(checkpoint: Path) -> str:
    """SHA-256 over a checkpoint's weights, settings and tables, the further quantizers' too."""
    digest = hashlib.sha256()
    kinds = ("*.safetensors", "*.json", "entropy-*.npz")
    files = [
        file for folder in ("", "quantizers/*/") for kind in kinds for file in checkpoint.glob(folder + kind)
    ]
    for file in sorted(files):
        if file.name == "card.json":  # says how good the weights are, and changes nothing
            continue
        digest.update(f"{file.relative_to(checkpoint).as_posix()}\0".encode())
        digest.update(hashlib.sha256(file.read_bytes()).digest())
    return digest.hexdigest()


def _write(file: Path, data: bytes) -> None:
    part = file.with_name(f".{file.name}.part")
    try:
        part.write_bytes(data)
        os.replace(part, file)
    except OSError as error:
        part.unlink(missing_ok=True)
        raise StorageError(f"{file} cannot be written: {error.strerror}; free some space") from error
