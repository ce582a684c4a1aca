"""The pictures of a folder, as the client graph takes them."""

from __future__ import annotations

from pathlib import Path
from typing import Final

import numpy as np

from edge_runtime import picture
from edge_runtime.picture import Pixels
from qtl_core import bundle
from qtl_core.errors import PictureError

SUFFIXES: Final = (".png", ".jpg", ".jpeg", ".webp")


def paths_in(folder: Path) -> list[Path]:
    """The picture files of a folder by name, at least one.

    Raises:
        PictureError: ``folder`` holds no picture, or cannot be read.
    """
    try:
        found = sorted(path for path in folder.iterdir() if path.suffix.lower() in SUFFIXES)
    except OSError as error:
        raise PictureError(f"cannot read the folder {folder}: {error.strerror}; name another") from error
    if not found:
        raise PictureError(
            f"there is no picture ({', '.join(SUFFIXES)}) in {folder}; name a folder with some"
        )
    return found


def pictures_in(folder: Path, spec: bundle.Picture, n: int) -> Pixels:
    """The first ``n`` pictures of a folder by name, or all it has, uint8 [n, h, w, 3].

    Raises:
        PictureError: ``folder`` holds no picture, or a broken one.
    """
    return np.stack([picture.prepare(path, spec) for path in paths_in(folder)[:n]])
