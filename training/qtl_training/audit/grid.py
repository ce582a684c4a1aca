"""A picture of the inversion attack: originals, and beneath them what each representation gave away."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from qtl_core.errors import StorageError
from qtl_training.audit.inversion import MEAN, ORIGINAL
from qtl_training.audit.target import Target

_INCH = 1.05  # a picture's side


def draw_grid(file: Path, found: dict[str, Any], target: Target) -> None:
    """Writes the grid as PNG: one row a representation, the first seed's reconstructions.

    Args:
        file: where to.
        found: the report; its inversion attack gives the captions.
        target: whose work folder holds the reconstructions.

    Raises:
        StorageError: if it cannot be written.
    """
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot as plt

    rows = _rows(found["attacks"]["inversion"], target)
    width = max(len(pictures) for _, pictures in rows)
    figure, axes = plt.subplots(
        len(rows), width, figsize=(2.1 + _INCH * width, _INCH * len(rows) + 0.1), squeeze=False, dpi=110
    )
    for line, (caption, pictures) in zip(axes, rows, strict=True):
        for place in line:
            place.set_axis_off()
        for place, picture in zip(line, pictures, strict=False):
            place.imshow(picture)
        line[0].text(
            -0.12, 0.5, caption, transform=line[0].transAxes, ha="right", va="center", fontsize=8.5
        )  # fmt: skip
    figure.subplots_adjust(2.1 / (2.1 + _INCH * width), 0.01, 0.995, 0.99, 0.04, 0.04)
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(file)
    except OSError as error:
        raise StorageError(f"the grid {file} cannot be written: {error.strerror}") from error
    finally:
        plt.close(figure)


def _rows(inversion: dict[str, Any], target: Target) -> list[tuple[str, NDArray[np.uint8]]]:
    reader = inversion["original"]["reader"]["digits"]["mean"]
    captions = {ORIGINAL: f"original\nreader: {reader:.0f} % of digits"}
    for row in inversion["rows"]:
        captions[row["representation"]] = _caption(f"{row['representation']}, {row['packed_bytes']:,} B", row)
    captions[MEAN] = _caption("mean picture", inversion["mean_image"])
    found = []
    for name, caption in captions.items():
        pictures = target.work.pictures("inversion", name, 1)
        if pictures is not None:
            found.append((caption, pictures))
    return found


def _caption(name: str, row: dict[str, Any]) -> str:
    return f"{name}\n{row['psnr']['mean']:.1f} dB, {row['reader']['digits']['mean']:.0f} % of digits"
