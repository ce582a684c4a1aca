"""Checkpoints on the Hugging Face hub: ``org/name`` or ``org/name@revision`` as a folder on this disk.

``huggingface_hub`` (which comes with transformers) downloads, shows its own progress bar and keeps the files
in its cache; its environment variables (HF_HOME, HF_ENDPOINT, HF_TOKEN, HF_HUB_OFFLINE) hold here too.
"""

from __future__ import annotations

import logging
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

from qtl_core.errors import CheckpointError
from qtl_core.exits import storage_error

_ID: Final = re.compile(
    r"(?P<name>[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*)(@(?P<revision>[\w.-]+(/[\w.-]+)*))?", re.ASCII
)
_FILES: Final = ("*.json", "*.safetensors", "*.npz", "*.jinja", "*.model", "*.txt")
"""What a checkpoint may need beside PyTorch's own files: settings, weights, tokenizer and held-out data."""
_PICKLED: Final = ("pytorch_model*.bin", "*/pytorch_model*.bin")
_NOT: Final = ("consolidated*", "original/*", "onnx/*", "*/onnx/*")
"""The same weights once more, in forms that are not read here."""
_SNAPSHOTS, _MODELS = "snapshots", "models--"  # the cache: models--ORG--NAME/snapshots/COMMIT


def checkpoint_folder(place: str | Path) -> Path:
    """The folder of a checkpoint: one on this disk as it is, or one of the hub, downloaded if need be.

    Args:
        place: a folder, or ``org/name`` or ``org/name@revision`` on the hub; a folder that exists wins.

    Raises:
        CheckpointError: an id that the hub does not have or does not give, or a hub that cannot be reached
            while the cache has no complete copy.
        OSError: this disk is full or cannot be written.
    """
    path = Path(place)
    found = _ID.fullmatch(str(place))
    if path.exists() or not found:
        return path
    return _downloaded(found["name"], found["revision"])


def model_name(folder: Path) -> str:
    """What a checkpoint is called: its folder's name, or its name on the hub where it lies in the cache."""
    folder = folder.resolve()
    cached = folder.parent.parent.name
    if folder.parent.name == _SNAPSHOTS and cached.startswith(_MODELS):
        return cached.rpartition("--")[2]
    return folder.name


def _downloaded(name: str, revision: str | None) -> Path:
    from huggingface_hub import snapshot_download

    def get(files: tuple[str, ...], without: tuple[str, ...]) -> Path:
        said: Any = snapshot_download(
            name, revision=revision, allow_patterns=list(files), ignore_patterns=list(without)
        )
        return Path(said)

    with _translated(name, revision), _quiet():
        folder = get(_FILES, _NOT)
        if any(folder.glob("*.safetensors")):
            return folder
        # Staged folders may have safetensors in some parts only.
        parts = sorted({file.parent for file in folder.glob("*/*.safetensors")})
        folder = get((*_FILES, *_PICKLED), (*_NOT, *(f"{part.name}/*.bin" for part in parts)))
    if not folder.is_dir():
        raise CheckpointError(f"{name} on the hub has no file of a checkpoint; check the name")
    return folder


@contextmanager
def _translated(name: str, revision: str | None) -> Iterator[None]:
    """Says in one line what went wrong between here and the hub."""
    from huggingface_hub import constants, errors

    beside = f"there is no folder {name}, and the hub ({constants.ENDPOINT})"
    login = "log in with: hf auth login (or set HF_TOKEN)"
    try:
        yield
    except errors.GatedRepoError as error:
        raise CheckpointError(
            f"{name} is gated: accept its conditions at {constants.ENDPOINT}/{name}, and {login}"
        ) from error
    except errors.RepositoryNotFoundError as error:
        raise CheckpointError(f"{beside} has no {name} for you; check the name, or {login}") from error
    except errors.RevisionNotFoundError as error:
        raise CheckpointError(f"{beside} has no revision {revision!r} of {name}") from error
    except (errors.LocalEntryNotFoundError, errors.OfflineModeIsEnabled) as error:
        if constants.HF_HUB_OFFLINE:
            why = "is not asked while HF_HUB_OFFLINE is set"
        else:
            why = f"cannot be reached ({_reason(error)})"
        raise CheckpointError(f"{beside} {why}; the cache has no complete copy of {name}") from error
    except Exception as error:  # what its network library raises, which is not always the same one
        if isinstance(error, OSError) and storage_error(error) is not None:
            raise
        raise CheckpointError(f"{beside} does not give {name}: {_reason(error)}") from error


def _reason(error: BaseException) -> str:
    """The first line of what is at the bottom of it."""
    while error.__cause__ is not None:
        error = error.__cause__
    return (str(error).strip().splitlines() or [type(error).__name__])[0].rstrip(".")


@contextmanager
def _quiet() -> Iterator[None]:
    """Keeps the library's advice off, and its progress bar where nobody looks; its errors are raised."""
    from huggingface_hub import constants
    from huggingface_hub.utils.tqdm import (
        are_progress_bars_disabled,
        disable_progress_bars,
        enable_progress_bars,
    )

    logger = logging.getLogger("huggingface_hub")
    before = logger.level
    unseen = sys.stderr is None or not sys.stderr.isatty()
    # Where its environment variable says what to do, that holds.
    hide = unseen and constants.HF_HUB_DISABLE_PROGRESS_BARS is None and not are_progress_bars_disabled()
    logger.setLevel(logging.ERROR)
    if hide:
        disable_progress_bars()
    try:
        yield
    finally:
        logger.setLevel(before)
        if hide:
            enable_progress_bars()
