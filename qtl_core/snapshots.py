"""Snapshots of a run: each a folder that is written beside its name and renamed into place.

A kill leaves the last one whole. The two newest are kept.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

from qtl_core.errors import StorageError

RUN_FILE: Final = "run.json"
"""Which every snapshot has, so that a folder without it is none."""
_KEPT: Final = 2


class Snapshots:
    """The snapshots and the log of one run.

    Args:
        path: the run's folder; created if it is not there.

    Raises:
        StorageError: if the folder cannot be written.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            path.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise StorageError(f"run folder {path} cannot be made: {error.strerror}") from error

    def newest(self) -> Path | None:
        """The newest whole snapshot, or None in a new run."""
        found = self._all()
        return found[-1] if found else None

    def points(self) -> list[tuple[int, int]]:
        """Stage and next step of every snapshot, oldest first."""
        parts = (folder.name.split("-") for folder in self._all())
        return [(int(stage), int(step)) for stage, step in parts]

    def back_to(self, stage: int, step: int) -> Path | None:
        """The snapshot of that moment, after which those behind it are gone; None if there is none."""
        name, found = _name(stage, step), self._all()
        if name not in [folder.name for folder in found]:
            return None
        for folder in found:
            if folder.name > name:
                shutil.rmtree(folder)
        return self.path / name

    def save(self, stage: int, step: int, fill: Callable[[Path], None]) -> None:
        """Writes a snapshot, then drops all but the two newest.

        Args:
            stage: index of the stage to go on with.
            step: its next step.
            fill: writes the snapshot's files into a folder, ``RUN_FILE`` among them.

        Raises:
            StorageError: if the disk is full or the folder cannot be written; older snapshots stay.
        """
        name = _name(stage, step)
        fresh, place = self.path / f".{name}.part", self.path / name
        try:
            shutil.rmtree(fresh, ignore_errors=True)
            fresh.mkdir()
            fill(fresh)
            shutil.rmtree(place, ignore_errors=True)
            os.replace(fresh, place)
        except OSError as error:
            shutil.rmtree(fresh, ignore_errors=True)
            raise StorageError(f"no snapshot could be written to {self.path}: {error.strerror}") from error
        for old in self._all()[:-_KEPT]:
            shutil.rmtree(old)

    def log(self, record: dict[str, Any]) -> None:
        """Appends a line to the log."""
        with (self.path / "log.jsonl").open("a", encoding="utf-8") as file:
            file.write(json.dumps(record) + "\n")

    def _all(self) -> list[Path]:
        return sorted(path.parent for path in self.path.glob(f"[0-9]*-[0-9]*/{RUN_FILE}"))


def _name(stage: int, step: int) -> str:
    return f"{stage:06d}-{step:07d}"
