"""Messages as an eavesdropper gathers them: payload sizes, and what is in the pictures they carry."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from qtl_training.digits.scenes import Scenes

Ints = NDArray[np.int64]

_SHARE = 2 / 3


@dataclass(frozen=True)
class Sizes:
    """Payload bytes of some pictures, and what is in them.

    Attributes:
        payload: int64 [n].
        digits: int64 [n], how many digits.
        colours: int64 [n], how many different colours.
    """

    payload: Ints
    digits: Ints
    colours: Ints

    def some(self, index: Ints) -> Sizes:
        """Those of some pictures."""
        return Sizes(self.payload[index], self.digits[index], self.colours[index])


@dataclass(frozen=True)
class Mail:
    """What the eavesdropper learns from, and what he is scored on; pictures without digits apart.

    Attributes:
        train, test: scenes with digits.
        empty_train, empty_test: scenes without.
    """

    train: Sizes
    test: Sizes
    empty_train: Sizes
    empty_test: Sizes

    def part(self, seed: int) -> Mail:
        """A random two thirds of each, so that several seeds tell how much depends on the sample."""
        rng = np.random.default_rng([seed, 41])

        def some(sizes: Sizes) -> Sizes:
            n = len(sizes.payload)
            return sizes.some(np.sort(rng.permutation(n)[: max(2, round(_SHARE * n))]))

        return Mail(some(self.train), some(self.test), some(self.empty_train), some(self.empty_test))

    def sent(self, train: Ints, test: Ints, empty_train: Ints, empty_test: Ints) -> Mail:
        """The same pictures in payloads of these sizes."""
        parts = (self.train, self.test, self.empty_train, self.empty_test)
        sizes = (train, test, empty_train, empty_test)
        return Mail(*(replace(part, payload=size) for part, size in zip(parts, sizes, strict=True)))

    def at(self, payload: int) -> Mail:
        """The same pictures, every payload of the same size."""
        parts = (self.train, self.test, self.empty_train, self.empty_test)
        return self.sent(*(np.full_like(part.payload, payload) for part in parts))


def unsent(scenes: Scenes) -> Sizes:
    """What is in some scenes, in payloads of no bytes."""
    digits = (scenes.digits >= 0).sum(1).astype(np.int64)
    kinds = [len(set(row[row >= 0].tolist())) for row in scenes.colours]
    return Sizes(np.zeros_like(digits), digits, np.array(kinds, np.int64))


def half_empty(filled: Sizes, empty: Sizes) -> Sizes:
    """As many scenes with digits as without."""
    n = min(len(filled.payload), len(empty.payload))
    return Sizes(
        np.concatenate([filled.payload[:n], empty.payload[:n]]),
        np.concatenate([filled.digits[:n], empty.digits[:n]]),
        np.concatenate([filled.colours[:n], empty.colours[:n]]),
    )
