"""What the tests of ``qtl_core`` share."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest

GOLDEN = Path(__file__).resolve().parents[1] / "golden"
AUTHORS_LEVELS = (4, 8, 16)

Vectors = dict[str, npt.NDArray[np.float32]]


@pytest.fixture(params=AUTHORS_LEVELS, ids=lambda levels: f"L{levels}")
def authors(request: pytest.FixtureRequest) -> tuple[int, Vectors]:
    """What the authors' own split quantizer returned: (levels, every intermediate)."""
    with np.load(GOLDEN / f"fsq_levels{request.param}.npz", allow_pickle=False) as file:
        return request.param, dict(file)
