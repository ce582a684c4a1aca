"""What comes with the package, and the defaults the three commands share."""

from __future__ import annotations

from pathlib import Path
from typing import Final

from .errors import CheckpointError

BUNDLE: Final = "./bundle"
"""Where ``qtl-export`` writes and the two others read when nothing else is said."""
SERVER: Final = "tcp://127.0.0.1:5555"
"""Where ``qtl-server`` listens and ``edge_runtime`` asks when nothing else is said."""

_PACKAGE = Path(__file__).resolve().parent
_PLACES: Final = (_PACKAGE / "shipped_digits", _PACKAGE.parent / "examples" / "digits")
"""In an installed wheel, and in the source tree (an editable install included)."""


def digits() -> Path:
    """The folder of the shipped checkpoint.

    Raises:
        CheckpointError: this install came without it.
    """
    for place in _PLACES:
        if (place / "config.json").is_file():
            return place
    raise CheckpointError("the shipped checkpoint is not in this install; name a checkpoint folder instead")


def picture() -> Path:
    """A digit scene (PNG) to ask the shipped model about.

    Raises:
        CheckpointError: this install came without it.
    """
    for place in _PLACES:
        if (place / "scene.png").is_file():
            return place / "scene.png"
    raise CheckpointError("the example picture is not in this install; name a picture instead")
