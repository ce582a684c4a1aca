"""The shipped checkpoint at length: a million codes at each kind of level count."""

from __future__ import annotations

import math
from pathlib import Path

import pytest

from qtl_core import shipped
from qtl_core.errors import CheckpointError
from qtl_export.config import ExportConfig
from qtl_export.exporter import CODES_WANTED, export

pytestmark = pytest.mark.slow


@pytest.mark.parametrize("levels", [2, 3, 4, 16, 256])
def test_a_million_codes(levels: int, tmp_path: Path) -> None:
    try:
        checkpoint = shipped.digits()
    except CheckpointError as error:
        pytest.skip(str(error))
    cut = export(
        ExportConfig(checkpoint=checkpoint, levels=levels, output=tmp_path / "probe", validate=1, force=True)
    ).cut
    n = math.ceil(CODES_WANTED / (cut.tokens * cut.code_dim))
    said = export(ExportConfig(checkpoint=checkpoint, levels=levels, output=tmp_path / "b", validate=n))
    codes = said.validation["codes"]
    print(said.as_text())
    assert codes["compared"] >= CODES_WANTED
    assert codes["differ"] <= codes["share_bound"] * codes["compared"]
    assert codes["largest_difference"] <= 1
    assert codes["farthest_from_boundary"] <= 1e-3
    assert said.validation["passed"]
    assert said.validation["answers"]["differ"] == 0
