"""NF-k block quantization: what the authors of Quantized-TinyLLaVA got from the same features."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("scipy", reason="the tables are normal quantiles")

from qtl_core.codes import pack
from qtl_training.rivals.normal_float import largest_table, quantized, range_table, restored

GOLDEN = Path(__file__).parents[1] / "golden"
BLOCK = 8


@pytest.mark.parametrize("bits", [2, 3, 4])
def test_blocks_mapped_by_range_are_the_authors(bits: int) -> None:
    with np.load(GOLDEN / f"nf{bits}.npz", allow_pickle=False) as golden:
        rows = golden["x"].reshape(18, 24)
        blocks = quantized(rows, bits, BLOCK, "range")
        assert np.array_equal(range_table(bits), golden["table"])
        assert np.array_equal(blocks.low, golden["mins"])
        assert np.array_equal(blocks.scales, golden["scales_q"])
        assert np.array_equal(blocks.ends, np.concatenate([golden["s_min"], golden["s_max"]], 1))
        assert np.frombuffer(pack(blocks.codes, 2**bits), np.uint8).tolist() == golden["packed"].tolist()
        assert np.array_equal(restored(blocks, bits, "range"), golden["restored"].reshape(18, 24))


def test_the_table_by_largest_magnitude_is_qloras() -> None:
    # NF4 as published (QLoRA, appendix E).
    published = [
        -1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453, -0.28444138169288635,
        -0.18477343022823334, -0.09105003625154495, 0.0, 0.07958029955625534, 0.16093020141124725,
        0.24611230194568634, 0.33791524171829224, 0.44070982933044434, 0.5626170039176941,
        0.7229568362236023, 1.0,
    ]  # fmt: skip
    assert np.allclose(largest_table(4), published, atol=2e-4)
    for bits in (2, 3, 5):
        table = largest_table(bits)
        assert len(table) == 2**bits and 0.0 in table and (np.diff(table) > 0).all()


def test_equal_features_come_back_exactly() -> None:
    rows = np.full((2, 16), 0.75, np.float32)
    for ends in ("range", "largest"):
        again = restored(quantized(rows, 2, BLOCK, ends), 2, ends)
        assert np.array_equal(again, rows)
