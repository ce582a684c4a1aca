"""What one thing tells about another: mutual information in bits, and a classifier's accuracy."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

_LEAF = 10  # training examples that a rule of the classifier must hold for


def entropy_of(values: NDArray[Any]) -> float:
    """Entropy of a sample's distribution in bits (plug-in estimate)."""
    counts = np.unique(values, return_counts=True)[1]
    share = counts / counts.sum()
    return float(-(share * np.log2(share)).sum()) + 0.0


def information(
    seen: NDArray[np.int64], about: NDArray[np.int64], rng: np.random.Generator, shuffles: int
) -> tuple[float, bool]:
    """How many bits ``seen`` tells about ``about``.

    The plug-in estimate is too large by what chance puts into a table of this size; shuffling one side
    leaves only that, so its mean is taken off.

    Args:
        seen: int64 [n].
        about: int64 [n].
        rng: of the shuffles.
        shuffles: how many.

    Returns:
        The estimate in bits, at least 0, and whether it is beyond chance: larger than after any shuffle.
    """
    seen, about = (np.unique(part, return_inverse=True)[1] for part in (seen, about))
    found = _plug_in(seen, about)
    by_chance = np.array([_plug_in(seen, rng.permutation(about)) for _ in range(shuffles)])
    # Equal sums in another order differ in the last digit; that is no information.
    beyond = found > by_chance.max() + 1e-9
    return max(0.0, found - float(by_chance.mean())) if beyond else 0.0, bool(beyond)


def accuracy(
    seen: NDArray[np.int64],
    about: NDArray[np.int64],
    seen_test: NDArray[np.int64],
    about_test: NDArray[np.int64],
) -> tuple[float, float]:
    """Percent that a decision tree tells right, and percent that the most frequent answer is right.

    Args:
        seen: int64 [n, features], what the tree learns from.
        about: int64 [n], what it is to tell.
        seen_test: int64 [m, features].
        about_test: int64 [m].
    """
    from sklearn.tree import DecisionTreeClassifier

    values, counts = np.unique(about, return_counts=True)
    chance = 100 * float(np.mean(about_test == values[counts.argmax()]))
    if (seen == seen[0]).all():
        return chance, chance
    tree = DecisionTreeClassifier(min_samples_leaf=min(_LEAF, len(seen)), random_state=0).fit(seen, about)
    return 100 * float(np.mean(tree.predict(seen_test) == about_test)), chance


def _plug_in(seen: NDArray[Any], about: NDArray[Any]) -> float:
    width = int(about.max()) + 1
    joint = np.bincount(seen * width + about, minlength=(int(seen.max()) + 1) * width)
    share = joint.reshape(-1, width) / len(seen)
    independent = share.sum(1, keepdims=True) * share.sum(0, keepdims=True)
    filled = share > 0
    return float((share[filled] * np.log2(share[filled] / independent[filled])).sum())
