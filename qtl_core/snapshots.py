"""Snapshots of a run: each a folder that is written beside its name and renamed into place.

A kill leaves the last one whole. The two newest are kept.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

from qtl_core.errors import StorageError

RUN_FILE: Final = "run.json"
"""Which every snapshot has, so that a folder without it is none."""
_KEPT: Final = 2
_PART: Final = ".part"
_GONE: Final = ".gone"
_LOCK: Final = ".lock"


@contextmanager
def held(path: Path, *, fresh: bool = False) -> Iterator[None]:
    """Keeps a run's folder for this process, so that no second one writes to it; a kill lets go of it.

    Args:
        path: created if it is not there.
        fresh: whether to remove what it holds.

    Raises:
        StorageError: another process has it, or it cannot be written.
    """
    # Imported here: only POSIX has it, and only processes of a run need it.
    import fcntl

    try:
        path.mkdir(parents=True, exist_ok=True)
        lock = (path / _LOCK).open("w")
    except OSError as error:
        raise StorageError(f"run folder {path} cannot be made: {error.strerror}") from error
    with lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise StorageError(
                f"run folder {path} is in use by another process: stop it, or name another folder with --run"
            ) from error
        if fresh:
            for found in path.iterdir():
                if found.is_dir():
                    shutil.rmtree(found, ignore_errors=True)
                elif found.name != _LOCK:
                    found.unlink(missing_ok=True)
        yield


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
                _drop(folder)
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
        fresh, place = self.path / f".{name}{_PART}", self.path / name
        self._sweep()
        try:
            fresh.mkdir()
            fill(fresh)
            if place.exists():
                _drop(place)
            os.replace(fresh, place)
        except OSError as error:
            shutil.rmtree(fresh, ignore_errors=True)
            raise StorageError(f"no snapshot could be written to {self.path}: {error.strerror}") from error
        for old in self._all()[:-_KEPT]:
            _drop(old)

    def log(self, record: dict[str, Any]) -> None:
        """Appends a line to the log."""
        with (self.path / "log.jsonl").open("a", encoding="utf-8") as file:
            file.write(json.dumps(record) + "\n")

    def _sweep(self) -> None:
        """Removes what a kill left of snapshots that were being written or removed."""
        for ending in (_PART, _GONE):
            for left in self.path.glob(f".*-*{ending}"):
                shutil.rmtree(left, ignore_errors=True)

    def _all(self) -> list[Path]:
        return sorted(path.parent for path in self.path.glob(f"[0-9]*-[0-9]*/{RUN_FILE}"))


def _drop(folder: Path) -> None:
    """Removes a snapshot so that a kill meanwhile leaves none with only some of its files."""
    gone = folder.with_name(f".{folder.name}{_GONE}")
    shutil.rmtree(gone, ignore_errors=True)
    folder.rename(gone)
    shutil.rmtree(gone)


def _name(stage: int, step: int) -> str:
    return f"{stage:06d}-{step:07d}"
