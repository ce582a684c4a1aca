"""The benchmark's cross-entropies are those of sources whose entropy is known."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pytest

pytest.importorskip("torch")

from benchmarks.entropy_coder import conditioning
from qtl_core.entropy import Tables

PICTURES, TOKENS, CHANNELS = 600, 9, 8


def _entropy(*shares: float) -> float:
    return float(-sum(share * np.log2(share) for share in shares))


def _repeats(kind: str, seed: int) -> npt.NDArray[np.uint8]:
    """Codes of 4 levels that are the one before with a chance of 0.7, and each other with 0.1."""
    rng = np.random.default_rng(seed)
    codes = rng.integers(0, 4, (PICTURES, TOKENS, CHANNELS)).astype(np.uint8)
    same = rng.random(codes.shape) < 0.6
    axis = 1 if kind == "previous_token" else 2
    for index in range(1, codes.shape[axis]):
        here, before = np.take(codes, index, axis), np.take(codes, index - 1, axis)
        kept = np.where(np.take(same, index, axis), before, here)
        codes[(slice(None),) * axis + (index,)] = kept
    return codes


@pytest.mark.parametrize("kind", conditioning.KINDS)
def test_conditional_entropy_of_a_chain(kind: str) -> None:
    known, test = _repeats(kind, 0), _repeats(kind, 1)
    found = conditioning.bytes_of_picture(known, test, Tables.fit(known, 4, classes=1))
    first, more = (CHANNELS, TOKENS - 1) if kind == "previous_token" else (TOKENS, CHANNELS - 1)
    chain = first * (2 + more * _entropy(0.7, 0.1, 0.1, 0.1)) / 8
    assert found["static"] == pytest.approx(2 * TOKENS * CHANNELS / 8, rel=0.005)
    assert found[kind] == pytest.approx(chain, rel=0.01)
    (other,) = set(conditioning.KINDS) - {kind}
    assert found[other] == pytest.approx(found["static"], rel=0.005)


def test_coded_bytes_are_the_cross_entropy_and_an_end() -> None:
    known, test = _repeats("previous_channel", 0), _repeats("previous_channel", 1)[:50]
    tables = Tables.fit(known, 4, classes=1)
    said = conditioning.coded(test, tables)
    assert 0 <= said["over_cross_entropy_mean"] <= said["over_cross_entropy_max"] <= 1.2
    assert said["sent_bytes_mean"] == min(18.0, said["sent_bytes_mean"])
    theirs = conditioning.constriction_bytes(test[:5], tables)
    assert theirs is None or theirs >= said["coded_bytes_mean"] - 1
