"""Codes of two processors beside each other: every bound of DESIGN.md is held, and broken ones are named."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pytest

from qtl_core import codes as packing
from tests.aarch64 import comparing
from tests.aarch64.comparing import ACROSS, Compared
from tests.aarch64.every import Head

PICTURES = 40
HEAD = Head(quantizer="", levels=4, tokens=9, code_dim=32)
Codes = npt.NDArray[np.uint8]


@pytest.fixture
def codes() -> Codes:
    return np.random.default_rng(0).integers(1, 3, (PICTURES, HEAD.tokens, HEAD.code_dim), dtype=np.uint8)


@pytest.fixture(autouse=True)
def distance(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """What stands in for the distance to a boundary, which PyTorch works out."""
    found = [5e-4]
    monkeypatch.setattr(comparing, "_farthest", lambda head, apart, pictures: found[0])
    return found


def _packed(codes: Codes, levels: int = 4) -> Codes:
    rows = [np.frombuffer(packing.pack(one, levels), np.uint8) for one in codes]
    return np.stack(rows)


def _compare(mine: Codes, other: Codes, *, variant: str = "fp32", levels: int = 4) -> Compared:
    head = Head(quantizer="", levels=levels, tokens=HEAD.tokens, code_dim=HEAD.code_dim)
    pictures = np.zeros((PICTURES, 2, 2, 3), np.uint8)
    return comparing.compare(
        "b", variant, head, ACROSS, _packed(mine, levels), _packed(other, levels), pictures
    )


def _changed(codes: Codes, n: int, by: int = 1) -> Codes:
    changed = codes.copy()
    changed.reshape(-1)[:n] += np.uint8(by)
    return changed


def test_the_same_codes(codes: Codes) -> None:
    row = _compare(codes, codes)
    assert (row.codes, row.differ, row.largest, row.farthest, row.fault) == (codes.size, 0, 0, None, "")
    assert row.pictures == PICTURES


@pytest.mark.parametrize(
    ("levels", "n", "well"), [(4, 1, True), (4, 2, False), (17, 11, True), (17, 12, False)]
)
def test_the_share_that_may_differ(codes: Codes, levels: int, n: int, well: bool) -> None:
    row = _compare(_changed(codes, n), codes, levels=levels)
    assert (row.differ, row.largest) == (n, 1)
    assert row.share_bound == (1e-4 if levels <= 16 else 1e-3)
    assert (not row.fault) is well, row.fault
    assert row.farthest == 5e-4


def test_two_levels_are_too_many(codes: Codes) -> None:
    assert (
        "differs by 2 levels" in _compare(_changed(np.ones_like(codes), 1, by=2), np.ones_like(codes)).fault
    )


def test_a_code_that_differs_far_from_a_boundary(codes: Codes, distance: list[float]) -> None:
    distance[0] = 0.01
    assert "0.01 levels from a rounding boundary" in _compare(_changed(codes, 1), codes).fault


def test_reduced_precision_has_its_own_bound(codes: Codes) -> None:
    tenth = codes.size // 10
    row = _compare(_changed(codes, tenth), codes, variant="int8")
    assert (row.differ, row.share_bound, row.farthest, row.fault) == (tenth, 0.1, None, "")
    assert "a share of 0.1 may" in _compare(_changed(codes, tenth + 1), codes, variant="int8").fault
