"""What the tower says about pictures, computed when it is first needed and kept as far as memory goes."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from edge_runtime.picture import prepare
from edge_runtime.training.graphs import Graphs
from qtl_core import bundle
from qtl_core.errors import PictureError
from qtl_core.trainable import FEATURES

Features = NDArray[np.float16]


class TowerFeatures:
    """Features of the pictures of a stage.

    Args:
        graphs: of the client half.
        spec: how pictures are prepared.
        shape: of one picture's features.
        pictures: their files.
        memory: bytes that may be kept; what does not fit is computed again.
    """

    def __init__(
        self,
        graphs: Graphs,
        spec: bundle.Picture,
        shape: tuple[int, int],
        pictures: Sequence[Path],
        memory: int,
    ) -> None:
        self._graphs, self._spec, self._shape, self._pictures = graphs, spec, shape, pictures
        self._most = memory // (2 * shape[0] * shape[1])
        self._kept: dict[int, Features] = {}

    def of(self, pictures: Sequence[int]) -> Features:
        """Float16 [pictures, tokens, tower width].

        Raises:
            PictureError: a picture that cannot be used.
            BundleError: the graph fails.
        """
        found = [self._one(index) for index in pictures]
        return np.stack(found) if found else np.empty((0, *self._shape), np.float16)

    def _one(self, index: int) -> Features:
        if index in self._kept:
            return self._kept[index]
        # One by one: sums must not depend on which pictures came together.
        picture = prepare(self._pictures[index], self._spec)
        features: Features = self._graphs.run(FEATURES, {"picture": picture[np.newaxis]})["features"][0]
        if not np.isfinite(features).all():
            raise PictureError(
                f"{self._pictures[index]} has features that are not finite, or too large for half precision; "
                "is the bundle damaged?"
            )
        # The first ones stay: every epoch asks for all, in another order.
        if len(self._kept) < self._most:
            self._kept[index] = features
        return features
