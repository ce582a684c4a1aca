"""Which conversations a step of training is about: epochs in an order drawn from the seed. No PyTorch."""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from edge_runtime.training.conversations import Conversation, Conversations
from qtl_core.crossing import MicroBatch

_STREAM = 15


class ConversationSamples:
    """A stage's micro-batches of conversations.

    A step's content depends on the seed and its number only, so that a replayed step is the same step. Every
    conversation is taken once before one is taken twice; an epoch may end in the middle of a micro-batch.

    Args:
        found: the conversations.
        micro_batches: in one step.
        rows: conversations in one of them.
        seed: of the order.

    Attributes:
        conversations: all of them.
        pictures: every one of them once; a ``MicroBatch`` names pictures by their place in it.
    """

    def __init__(self, found: Conversations, *, micro_batches: int, rows: int, seed: int) -> None:
        self._count, self._rows, self.conversations = micro_batches, rows, found.samples
        self.pictures: tuple[Path, ...] = found.pictures
        self._place = {path: place for place, path in enumerate(self.pictures)}

        @lru_cache(maxsize=2)
        def order(epoch: int) -> NDArray[np.int64]:
            return np.random.default_rng([seed, epoch, _STREAM]).permutation(len(found.samples))

        self._order = order

    def micro_batches(self, step: int) -> list[MicroBatch]:
        """The step's micro-batches, each with its own pictures: none, or as many as its rows show."""
        first = step * self._count
        return [self._micro_batch((first + number) * self._rows) for number in range(self._count)]

    def _micro_batch(self, first: int) -> MicroBatch:
        chosen = [self._sample(number) for number in range(first, first + self._rows)]
        pictures = tuple(dict.fromkeys(path for one in chosen for path in one.pictures))
        place_of = {path: place for place, path in enumerate(pictures)}
        return MicroBatch(
            tuple(self._place[path] for path in pictures), tuple(one.row(place_of) for one in chosen)
        )

    def _sample(self, number: int) -> Conversation:
        epoch, place = divmod(number, len(self.conversations))
        return self.conversations[int(self._order(epoch)[place])]
