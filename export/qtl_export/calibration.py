"""Tables for the entropy coder: the checkpoint's own, or measured on calibration pictures; and their check.

A checkpoint may bring tables that were measured on many pictures where it was trained, in a file beside its
quantizer for each number of levels. Pictures that the user names go before these, and the checkpoint's few
held-out ones come last.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch

from qtl_core import entropy
from qtl_core.bundle import Cut, Half
from qtl_core.codes import Codes
from qtl_core.entropy_file import read_tables, tables_name, tables_of
from qtl_core.errors import CheckpointError, CodeError, InputError
from qtl_core.nn.calibration import BATCH, cut_features
from qtl_core.nn.checkpoint import QUANTIZERS_FOLDER, Checkpoint
from qtl_export import held_out
from qtl_export.progress import Progress

MAX_PICTURES: Final = 512
_TOKENS_WANTED: Final = 32768


@dataclass(frozen=True, eq=False)
class Calibrated:
    """What came of looking for tables.

    Attributes:
        tables: the entropy coder's; None where there are none, and codes then travel packed.
        source: where they come from, or why there are none, for people.
        pictures: how many pictures they were measured on; None where the checkpoint brought them.
        cross_bytes: mean bytes of those pictures' payloads, each half of them under tables of the other;
            None where that was not measured.
    """

    tables: entropy.Tables | None
    source: str
    pictures: int | None = None
    cross_bytes: float | None = None

    def said(self, cut: Cut, codes: Codes | None = None) -> dict[str, Any]:
        """What the manifests say about the tables.

        Args:
            cut: what crosses.
            codes: [pictures, tokens, code_dim] of pictures as they were found, to count bytes on where the
                tables were not measured on these.
        """
        if self.tables is None:
            return {"tables": None, "why": self.source, "fixed_bytes": cut.payload_bytes}
        counted = self.cross_bytes
        if counted is None and codes is not None and len(codes):
            counted = float(np.mean(_sent(codes, self.tables, cut)))
        return {
            "tables": self.source,
            "classes": self.tables.classes,
            "calibration_pictures": self.pictures,
            "coded_bytes_mean": counted,
            # Tables fit the pictures they were measured on better than any others.
            "coded_on_other_pictures": self.cross_bytes is not None or self.pictures is None,
            "fixed_bytes": cut.payload_bytes,
        }


def check_coding(client: Half, server: Half, codes: Codes) -> list[str]:
    """Codes as the device does and decodes as the server does; returns what is wrong."""
    here, there = tables_of(client), tables_of(server)
    if here is None or there is None:
        return []
    coded = entropy.encode_batch(codes, here)
    lost = sum(not _survives(data, there, one) for data, one in zip(coded, codes, strict=True))
    return [f"the codes of {lost} pictures did not survive entropy coding"] if lost else []


def _survives(data: bytes, tables: entropy.Tables, codes: Codes) -> bool:
    try:
        return bool((entropy.decode(data, tables, codes.shape) == codes).all())
    except CodeError:
        return False


def calibrate(checkpoint: Checkpoint, cut: Cut, folder: Path | None, progress: Progress) -> Calibrated:
    """Finds tables for a cut.

    Args:
        checkpoint: with its quantizer.
        cut: what crosses.
        folder: the user's pictures; None for what the checkpoint brings.
        progress: where to show how far it is.

    Raises:
        PictureError: a folder without pictures, or a broken one.
        CheckpointError: tables or held-out pictures of the checkpoint that are damaged, or of another cut.
    """
    if not cut.quantized:
        return Calibrated(None, "half-precision features are not entropy-coded")
    if folder is None:
        brought = _brought(checkpoint, cut)
        if brought is not None:
            return brought
    most = min(MAX_PICTURES, max(1, _TOKENS_WANTED // cut.tokens))
    found = held_out.originals(checkpoint.path, folder, checkpoint.picture, most)
    if found is None:
        return Calibrated(None, "the checkpoint brings no tables and no pictures; give some with --pictures")
    pictures, source = found
    features = cut_features(
        checkpoint.model.vision,
        pictures,
        follow=lambda starts: progress.bar(
            starts, "features of the calibration pictures", len(pictures), "pictures", each=BATCH
        ),
    )
    with torch.inference_mode():
        codes: Codes = checkpoint.model.vision_quantizer.encode(
            torch.from_numpy(features), cut.levels
        ).numpy()
    with progress.stage("measuring the entropy coder's tables"):
        try:
            tables = entropy.Tables.fit(codes, cut.levels)
        except InputError as error:
            return Calibrated(None, f"{source}: {error}")
        tiled = checkpoint.picture.tiled
        return Calibrated(tables, source, len(pictures), _cross_bytes(codes, cut, tiled=tiled))


def _brought(checkpoint: Checkpoint, cut: Cut) -> Calibrated | None:
    folder = checkpoint.path if checkpoint.fitted is None else checkpoint.fitted
    if checkpoint.quantizer:
        folder = folder / QUANTIZERS_FOLDER / checkpoint.quantizer
    path = folder / tables_name(cut.levels)
    if not path.is_file():
        return None
    tables = read_tables(path)
    if (tables.levels, tables.channels) != (cut.levels, cut.code_dim):
        raise CheckpointError(
            f"{path} is for {tables.channels} channels of {tables.levels} levels, the quantizer has "
            f"{cut.code_dim} of {cut.levels}; remove the file, or measure it again"
        )
    return Calibrated(tables, f"{path.name} of the checkpoint")


def _cross_bytes(codes: Codes, cut: Cut, *, tiled: bool) -> float | None:
    """Mean bytes under tables of other pictures; None where half of the pictures are too few for tables."""
    sizes: list[int] = []
    # Tiles of one picture lie side by side, and belong into the same half.
    middle = len(codes) // 2
    halves = (codes[:middle], codes[middle:]) if tiled else (codes[0::2], codes[1::2])
    for half, other in (halves, halves[::-1]):
        try:
            tables = entropy.Tables.fit(other, cut.levels)
        except InputError:
            return None
        sizes += _sent(half, tables, cut)
    return float(np.mean(sizes))


def _sent(codes: Codes, tables: entropy.Tables, cut: Cut) -> list[int]:
    """Bytes sent for each picture: entropy-coded, or packed where that is shorter."""
    return [min(len(data), cut.payload_bytes) for data in entropy.encode_batch(codes, tables)]
