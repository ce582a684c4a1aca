"""What ``edge_runtime bench`` chose for a bundle on this device, kept where later runs find it.

One file for each bundle, ``choices/FINGERPRINT.json`` in ``folder()``. It holds for the processor, the
onnxruntime and the graph it was measured with, and is left alone where one of them is another.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Final

import msgspec
from msgspec import Meta

from qtl_core.bundle import Half
from qtl_core.errors import StorageError
from qtl_core.exits import storage_error

from .variants import variants

SCHEMA: Final = 1
_LARGEST: Final = 64 * 1024
_AGAIN: Final = "run `edge_runtime bench` again"


class Choice(msgspec.Struct, frozen=True, kw_only=True):
    """The fastest acceptable way to run a bundle's graph on a device.

    Attributes:
        variant: name of the graph.
        provider: onnxruntime execution provider.
        threads: of one run; 0 leaves it to onnxruntime.
        ms: median milliseconds a picture, when it was measured.
        sha256: of the variant's graph, hex.
        onnxruntime: version it was measured with.
        machine: processor and cores it was measured on.
        schema: version of this layout.
    """

    variant: str
    provider: str
    threads: Annotated[int, Meta(ge=0, le=1 << 16)]
    ms: Annotated[float, Meta(gt=0)]
    sha256: str
    onnxruntime: str
    machine: str
    schema: int = SCHEMA

    def __str__(self) -> str:
        threads = (
            f"{self.threads} thread{'s' if self.threads != 1 else ''}" if self.threads else "its threads"
        )
        return f"{self.variant} on {self.provider}, {threads}"


@dataclass(frozen=True, kw_only=True)
class Stored:
    """What was found: a choice that holds here, or why there is none (empty if none was ever stored)."""

    choice: Choice | None = None
    why_not: str = ""


def folder(env: Mapping[str, str] | None = None) -> Path:
    """Where choices are kept: ``$XDG_STATE_HOME/qtl``, or ``~/.local/state/qtl`` where that is not set.

    On macOS ``~/Library/Application Support/qtl``, in ``%LOCALAPPDATA%`` on Windows, unless
    ``XDG_STATE_HOME`` is set.

    Args:
        env: the environment; this process's if not given.

    Raises:
        StorageError: this user has no home folder.
    """
    env = os.environ if env is None else env
    chosen = env.get("XDG_STATE_HOME", "")
    if chosen and Path(chosen).is_absolute():  # a relative one is to be ignored, says the standard
        return Path(chosen) / "qtl"
    if sys.platform == "win32" and env.get("LOCALAPPDATA"):
        return Path(env["LOCALAPPDATA"]) / "qtl"
    try:
        home = Path.home()
    except RuntimeError as error:
        raise StorageError(
            "this user has no home folder; set XDG_STATE_HOME to a folder it can write"
        ) from error
    if sys.platform == "darwin":
        return home / "Library" / "Application Support" / "qtl"
    return home / ".local" / "state" / "qtl"


def path_of(half: Half) -> Path:
    """The file of this bundle's choice.

    Raises:
        StorageError: as ``folder``.
    """
    return folder() / "choices" / f"{half.manifest.fingerprint}.json"


def store(half: Half, choice: Choice) -> Path:
    """Keeps a choice, in one step; returns its file.

    Raises:
        StorageError: the folder cannot be made or written.
    """
    path = path_of(half)
    fresh = path.with_suffix(f".{os.getpid()}.new")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        fresh.write_bytes(msgspec.json.format(msgspec.json.encode(choice), indent=1) + b"\n")
        os.replace(fresh, path)
    except OSError as error:
        said = storage_error(error) or StorageError(f"cannot write {path}: {error.strerror}")
        raise StorageError(f"{said} (set XDG_STATE_HOME to keep the choice elsewhere)") from error
    return path


def stored(half: Half, *, onnxruntime: str, machine: str) -> Stored:
    """The choice for this bundle, if one is kept that holds here. Damaged files count as none.

    Args:
        half: the checked client half.
        onnxruntime: the version installed.
        machine: ``Machine.key`` of this device.
    """
    try:
        with path_of(half).open("rb") as file:
            choice = msgspec.json.decode(file.read(_LARGEST), type=Choice)
    except (FileNotFoundError, NotADirectoryError, StorageError):
        return Stored()
    except OSError as error:
        return Stored(why_not=f"it cannot be read ({error.strerror}); {_AGAIN}")
    except (msgspec.MsgspecError, UnicodeError):
        return Stored(why_not=f"its file is damaged; {_AGAIN}")
    shas = {one.name: one.sha256 for one in variants(half)}
    if choice.schema != SCHEMA:
        return Stored(why_not=f"it was stored by another version of qtl-edge; {_AGAIN}")
    if shas.get(choice.variant) != choice.sha256:
        return Stored(why_not=f"the bundle's graph {choice.variant} is another one now; {_AGAIN}")
    if choice.onnxruntime != onnxruntime:
        return Stored(why_not=f"onnxruntime was {choice.onnxruntime} then and is {onnxruntime} now; {_AGAIN}")
    if choice.machine != machine:
        return Stored(why_not=f"it was measured on another machine ({choice.machine}); {_AGAIN}")
    return Stored(choice=choice)
