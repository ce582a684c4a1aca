"""Aligning picture tokens with words, as LLaVA's first stage aligns its connector with a decoder.

A question names what it looks for by a word's embedding. If a picture token says in the same space
what its cell holds, and a place vector where it is, attention finds one by the other at once;
without that, "where is the 5?" was learnt far more slowly.
"""

from __future__ import annotations

import math
from collections.abc import Iterable

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from qtl_core.nn.decoder import PictureDecoder
from qtl_training.digits.scenes import COLOURS, GRID
from qtl_training.packing import Vocabulary

_ROWS = ("top", "middle", "bottom")
_COLUMNS = ("left", "centre", "right")


class Alignment:
    """The words of digits, colours and places, and the loss that aligns picture tokens with them.

    Args:
        vocabulary: of the questions, where words stand behind a space.
    """

    def __init__(self, vocabulary: Vocabulary) -> None:
        def ids(words: Iterable[str]) -> list[Tensor]:
            return [torch.tensor(vocabulary.ids(f" {word}")) for word in words]

        self._digits, self._colours = ids(map(str, range(10))), ids(COLOURS)
        self._rows, self._columns = ids(_ROWS), ids(_COLUMNS)

    def loss(
        self, features: Tensor, digits: NDArray[np.int8], colours: NDArray[np.int8], decoder: PictureDecoder
    ) -> Tensor:
        """Mean cross-entropy of the right words.

        Args:
            features: float [scenes, tokens, width], the connector's output.
            digits: int8 [scenes, cells]; -1 where a cell is empty.
            colours: int8 [scenes, cells], likewise.
            decoder: has the embeddings and the place vectors.
        """
        side = math.isqrt(features.shape[1])
        band = torch.arange(side) * GRID // side
        cell = (band[:, None] * GRID + band[None, :]).flatten()
        digit, colour = (torch.from_numpy(part.astype(np.int64))[:, cell] for part in (digits, colours))
        there = digit >= 0
        seen = features[there]
        loss = functional.cross_entropy(seen @ _words(self._digits, decoder), digit[there])
        loss = loss + functional.cross_entropy(seen @ _words(self._colours, decoder), colour[there])
        if decoder.picture_places is not None:
            rows, columns = decoder.picture_places
            loss = loss + functional.cross_entropy(rows @ _words(self._rows, decoder), band)
            loss = loss + functional.cross_entropy(columns @ _words(self._columns, decoder), band)
        return loss


def _words(words: list[Tensor], decoder: PictureDecoder) -> Tensor:
    """Embeddings of words, [width, words]; of a word in several tokens, their mean."""
    return torch.stack([decoder.embed(ids).mean(0) for ids in words], dim=1)
