"""``--calibrate``: a quantizer for a checkpoint that has none, fitted to the pictures of a folder."""

from __future__ import annotations

from pathlib import Path

import torch

from edge_runtime.picture_folder import paths_in, pictures_in
from qtl_core.errors import InputError
from qtl_core.nn.calibration import BATCH, cut_features
from qtl_core.nn.checkpoint import Checkpoint
from qtl_core.nn.post_training import (
    Fitted,
    check_enough,
    fit,
    kept_aside,
    most_pictures,
    settings_of,
    signal_to_noise,
    with_quantizer,
)
from qtl_export.progress import Progress


class PostTraining:
    """The features of a folder's pictures, and quantizers fitted to them.

    Args:
        checkpoint: with or without a quantizer of its own.
        folder: of pictures, a few hundred at best; ``MAX_PICTURES`` are taken.
        code_dim: codes a token; None for the width of the features.
        progress: where to show how far it is.

    Attributes:
        known: files of the pictures that are fitted to; the others measure the noise.

    Raises:
        PictureError: a folder without pictures, or a broken one.
        InputError: too few pictures for so many codes, more codes than the features are wide, or features
            that are not finite.
    """

    def __init__(
        self, checkpoint: Checkpoint, folder: Path, code_dim: int | None, progress: Progress
    ) -> None:
        self._checkpoint = checkpoint
        self._unit = "tiles" if checkpoint.picture.tiled else "pictures"
        vision = checkpoint.model.vision
        first = pictures_in(folder, checkpoint.picture, 1)
        tokens, width = cut_features(vision, first).shape[1:]
        most = most_pictures(tokens, width)
        pictures = pictures_in(folder, checkpoint.picture, most)
        self._code_dim = width if code_dim is None else code_dim
        check_enough(len(pictures), tokens, width, self._code_dim, str(folder), self._unit)
        features = torch.from_numpy(
            cut_features(
                vision,
                pictures,
                follow=lambda starts: progress.bar(
                    starts, "features of the pictures to fit to", len(pictures), "pictures", each=BATCH
                ),
            )
        )
        if not torch.isfinite(features).all():
            raise InputError(
                f"features of the pictures in {folder} are not finite; is the checkpoint damaged?"
            )
        aside = kept_aside(len(pictures), together=checkpoint.picture.tiled)
        self._known, self._aside = features[~aside], features[aside]
        # Of tiles nobody asks which pictures they are of.
        paths = [] if checkpoint.picture.tiled else paths_in(folder)[:most]
        self.known = [path for path, kept in zip(paths, aside, strict=False) if not kept]
        self._progress = progress

    def fitted(self, levels: int) -> tuple[Checkpoint, Fitted]:
        """The checkpoint with a quantizer of so many levels in place of its own, and no further ones."""
        with self._progress.stage("fitting the quantizer"):
            quantizer, k = fit(self._known, self._code_dim, levels)
        settings = settings_of(self._code_dim, levels, k)
        return with_quantizer(self._checkpoint, quantizer, settings), Fitted(
            pictures=len(self._known),
            code_dim=self._code_dim,
            levels=levels,
            k=k,
            snr_db=signal_to_noise(quantizer, self._aside, self._known.mean((0, 1))),
            pictures_aside=len(self._aside),
            unit=self._unit,
        )
