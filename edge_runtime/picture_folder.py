"""The pictures of a folder, as the client graph takes them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Final

import numpy as np

from edge_runtime import tiles
from edge_runtime.picture import Pixels, Source
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
    """Inputs of the graph from the first ``n`` pictures of a folder by name, or all it has.

    Returns:
        uint8 [n or fewer, h, w, 3]: the pictures, or tiles of them, the same number of each.

    Raises:
        PictureError: ``folder`` holds no picture, or a broken one.
    """
    return inputs_of(paths_in(folder), spec, n)


def inputs_of(sources: Sequence[Source], spec: bundle.Picture, n: int) -> Pixels:
    """At most ``n`` inputs of the graph from the first pictures, as ``pictures_in``."""
    chosen = sources[:n]
    of_each = max(1, n // len(chosen)) if spec.tiled else 1
    return np.concatenate([_some(tiles.prepare(one, spec).tiles, of_each) for one in chosen])


def _some(of: Pixels, n: int) -> Pixels:
    """At most ``n`` tiles of a picture, evenly over all."""
    some: Pixels = of[np.unique(np.linspace(0, len(of) - 1, min(n, len(of))).astype(int))]
    return some
