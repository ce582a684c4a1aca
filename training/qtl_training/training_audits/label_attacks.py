"""Attacks of a server on labels that stay home: from the outputs it sent, and from their gradients.

Everything here is done with what the server has: outputs h, gradients g as they came, the questions, its own
head W (the identity where h are scores) and the list of answers. With p = softmax(h W^T) an answer y would
have given g = (p - e_y) W, which is compared with what came.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

import numpy as np
from numpy.typing import NDArray

from qtl_core.gradients import encode
from qtl_training.training_audits.observed import Floats, Ints, Observed

KNOWN: Final = 5
"""Labelled questions of each answer that the attacker with examples has."""

_STREAM: Final = 15


def received(seen: Observed, bits: int, seed: int) -> Floats:
    """The gradients as they cross at ``bits`` a value, float32 [n, columns]."""
    found = np.empty_like(seen.gradient)
    for micro in np.unique(seen.micro):
        here = seen.micro == micro
        random = np.random.default_rng([seed, int(micro), _STREAM])
        found[here] = encode(seen.gradient[here], bits, random)[1]
    return found


def chance(seen: Observed) -> float:
    """Percent of labels that the most frequent answer to each kind of question names."""
    right = sum(int(np.bincount(seen.labels[seen.kinds == kind]).max()) for kind in np.unique(seen.kinds))
    return 100 * right / len(seen.labels)


def from_outputs(seen: Observed, gradient: Floats, seed: int) -> Ints:
    """What the model would answer, by the head that the server has; gradients are not looked at."""
    return _int((seen.outputs @ seen.head.T).argmax(1))


def from_gradients(seen: Observed, gradient: Floats, seed: int) -> Ints:
    """The answer whose gradient is nearest to the one that came; where none came, the model's.

    Of scores it is the one negative number, at every size.
    """
    guess = from_outputs(seen, gradient, seed)
    if seen.head.shape[0] == seen.head.shape[1]:
        some, found = gradient.min(1) < 0, gradient.argmin(1)
    else:
        some = gradient.any(1)
        found = np.stack([np.square(one - gradient).sum(1) for one in _expected(seen)], 1).argmin(1)
    return _int(np.where(some, found, guess))


def from_norms(seen: Observed, gradient: Floats, seed: int) -> Ints:
    """The answer whose gradient would be as long as the one that came."""
    norms = np.linalg.norm(gradient, axis=1)
    away = np.stack([np.abs(np.linalg.norm(one, axis=1) - norms) for one in _expected(seen)], 1)
    # Many answers are about as long: the likeliest of those within a hundredth.
    near = away <= away.min(1, keepdims=True) + 0.01 * norms[:, None]
    scores = np.where(near, seen.outputs @ seen.head.T, -np.inf)
    return _int(scores.argmax(1))


def from_examples(seen: Observed, gradient: Floats, seed: int) -> Ints:
    """The nearest mean direction of gradients whose labels the server knows: ``KNOWN`` of each answer."""
    return _nearest_mean(seen, gradient, seed)


def outputs_with_examples(seen: Observed, gradient: Floats, seed: int) -> Ints:
    """The same from outputs in place of gradients, to tell what of it the gradients gave away."""
    return _nearest_mean(seen, seen.outputs - seen.outputs.mean(0), seed)


Attack = Callable[[Observed, Floats, int], Ints]
ATTACKS: Final[dict[str, Attack]] = {
    "outputs": from_outputs,
    "gradients": from_gradients,
    "norms": from_norms,
    "outputs, examples": outputs_with_examples,
    "gradients, examples": from_examples,
}


def recovered(attack: str, seen: Observed, bits: int, seed: int) -> float:
    """Percent of labels that an attack names, of those it was not told."""
    found = ATTACKS[attack](seen, received(seen, bits, seed), seed)
    asked = ~_told(seen, seed) if attack.endswith("examples") else np.ones(len(found), np.bool_)
    return 100 * float((found == seen.labels)[asked].mean())


def _expected(seen: Observed) -> list[Floats]:
    """For each answer y, (p - e_y) W of every question, float32 [n, columns]."""
    scores = (seen.outputs @ seen.head.T).astype(np.float64)
    shares = np.exp(scores - scores.max(1, keepdims=True))
    mean = (shares / shares.sum(1, keepdims=True)) @ seen.head
    return [(mean - row).astype(np.float32) for row in seen.head]


def _told(seen: Observed, seed: int) -> NDArray[np.bool_]:
    """Which questions' labels the attacker with examples knows."""
    random = np.random.default_rng([seed, 17])
    told = np.zeros(len(seen.labels), np.bool_)
    for label in np.unique(seen.labels):
        places = np.flatnonzero(seen.labels == label)
        told[random.permutation(places)[: min(KNOWN, len(places) // 2)]] = True
    return told


def _nearest_mean(seen: Observed, vectors: Floats, seed: int) -> Ints:
    told, unit = _told(seen, seed), vectors / (np.linalg.norm(vectors, axis=1, keepdims=True) + 1e-30)
    labels = np.unique(seen.labels[told])
    means = np.stack([unit[told & (seen.labels == label)].mean(0) for label in labels])
    means /= np.linalg.norm(means, axis=1, keepdims=True) + 1e-30
    return _int(labels[(unit @ means.T).argmax(1)])


def _int(found: NDArray[np.int64] | NDArray[np.intp]) -> Ints:
    return np.asarray(found, np.int64)
