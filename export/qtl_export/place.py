"""Where a bundle grows, and how it gets to its place: beside the target, and there by one rename.

A kill at any time leaves the old bundle or the new one, never half of either; what it leaves beside them is a
hidden folder that the next export to the same place removes.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import stat
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import msgspec

from qtl_core.bundle import MANIFEST, Manifest
from qtl_core.errors import BundleError, StorageError
from qtl_core.exits import storage_error

HALVES = ("client", "server")


def check_target(target: Path) -> None:
    """Refuses a place where something lies that no export made.

    Raises:
        BundleError: a file, or a folder with anything in it that is not a bundle's.
    """
    if not os.path.lexists(target):
        return
    if target.is_symlink() or not target.is_dir():
        raise BundleError(f"{target} exists and is no folder; give another one with -o")
    foreign = _foreign(target)
    if foreign is not None:
        raise BundleError(
            f"{target} exists and is not a bundle of ours (it holds {foreign}); give another folder with -o, "
            "or move that away"
        )


@contextmanager
def beside(target: Path) -> Iterator[Path]:
    """A new folder next to ``target``, on the same file system; gone afterwards unless it was put in place.

    Raises:
        StorageError: the folder around ``target`` cannot be made or written.
    """
    prefix = f".{target.name}.partial-"
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        _remove_abandoned(target.parent, prefix)
        work = Path(tempfile.mkdtemp(prefix=prefix, dir=target.parent))
    except OSError as error:
        raise storage_error(error) or StorageError(
            f"cannot write to {target.parent} ({error.strerror}); give another folder with -o"
        ) from error
    # The lock says that somebody is at work here; it goes with the process, however that ends.
    lock = os.open(work, os.O_RDONLY)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield work
    finally:
        os.close(lock)
        shutil.rmtree(work, ignore_errors=True)


def put(work: Path, target: Path) -> None:
    """Moves the finished bundle ``work`` to ``target``; what was there goes.

    Raises:
        BundleError: something that is no bundle came to lie there in the meantime.
    """
    check_target(target)
    umask = os.umask(0)
    os.umask(umask)
    work.chmod(0o777 & ~umask)  # mkdtemp's folder is for its owner only
    if not target.exists():
        work.rename(target)
        return
    old = Path(tempfile.mkdtemp(prefix=f".{target.name}.partial-", dir=target.parent))
    try:
        target.rename(old / "old")
        try:
            work.rename(target)
        except OSError:
            (old / "old").rename(target)
            raise
    finally:
        shutil.rmtree(old, ignore_errors=True)


def _foreign(folder: Path) -> str | None:
    """The name of something in a folder that no export put there; None if there is none."""
    for entry in sorted(folder.iterdir()):
        if entry.name not in HALVES or entry.is_symlink() or not entry.is_dir():
            return entry.name
        try:
            manifest = msgspec.json.decode((entry / MANIFEST).read_bytes(), type=Manifest)
        except (OSError, msgspec.MsgspecError, UnicodeError):
            return f"{entry.name} without a manifest that can be read"
        known = {*manifest.files, MANIFEST}
        for root, _, files in os.walk(entry):
            for name in files:
                inside = (Path(root) / name).relative_to(entry).as_posix()
                if inside not in known:
                    return f"{entry.name}/{inside}"
    return None


def _remove_abandoned(parent: Path, prefix: str) -> None:
    """Removes what killed exports to the same place have left."""
    for entry in parent.iterdir():
        if not entry.name.startswith(prefix) or not stat.S_ISDIR(entry.lstat().st_mode):
            continue
        try:
            lock = os.open(entry, os.O_RDONLY)
        except OSError:  # somebody else's, or just gone
            continue
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:  # an export that is running
            continue
        else:
            shutil.rmtree(entry, ignore_errors=True)
        finally:
            os.close(lock)
