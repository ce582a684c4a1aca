"""benchmarks.edge_latency: what is timed makes the same codes, and ratios are taken within a round."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("torch")
pytest.importorskip("onnxscript")
pytest.importorskip("benchmarks.edge_latency", reason="the tests were copied without benchmarks/")

from benchmarks.edge_latency import __main__ as main
from benchmarks.edge_latency.client_half import Geometry, build
from edge_runtime.encoder import Encoder
from edge_runtime.golden import golden_of
from edge_runtime.variants import variants

SMALL = Geometry(side=64, patch=16, hidden=32, layers=2, heads=2, mlp=64, width=32)


def test_turns_and_ratios() -> None:
    now, order = 0.0, list[str]()

    def way(name: str, seconds: float) -> Callable[[int], None]:
        def takes(picture: int) -> None:
            nonlocal now
            now += seconds * (1 + picture)  # the machine gets slower with the picture, for all of them
            order.append(f"{name}{picture}")

        return takes

    todo = {"a": way("a", 3.0), "b": way("b", 2.0)}
    seconds, busy = main.in_turns(todo, 2, 3, clock=lambda: now, processor=lambda: now / 2)
    assert order == ["a0", "b0", "a0", "b0", "b1", "a1", "a0", "b0"]
    assert seconds == {"a": [3.0, 6.0, 3.0], "b": [2.0, 4.0, 2.0]}
    assert busy == {"a": [1.5, 3.0, 1.5], "b": [1.0, 2.0, 1.0]}
    assert main.median_ratio(seconds["a"], seconds["b"]) == pytest.approx(1.5)
    assert main.spread([1.0, 4.0, 3.0], [2.0, 2.0, 2.0]) == [0.5, 2.0]


def test_what_is_timed_is_the_same_model(tmp_path: Path) -> None:
    built = build(SMALL, tmp_path)
    golden = golden_of(built.half)
    assert golden is not None
    assert [one.name for one in variants(built.half)] == ["fp32", "int8"]
    ways = main.ways(built, 1)
    assert set(ways) == {"tower", "graph", "runtime", "int8", "torch"}
    (states,) = ways["tower"](0)
    assert states.shape == (1, SMALL.tokens, SMALL.hidden)
    for i, payload in enumerate(golden.payloads):
        assert ways["graph"](i)[0][0].tobytes() == payload
        assert Encoder(built.half, threads=1).run(built.pictures[i : i + 1]) == [payload]
        pytorch = np.unpackbits(ways["torch"](i)[0].numpy() ^ np.frombuffer(payload, np.uint8))
        assert pytorch.sum() <= 2
        header, frame = ways["runtime"](i)
        assert header and 0 < len(frame) <= len(payload)
    codes = main.int8_codes(built)
    assert codes["compared"] == 4 * SMALL.tokens * SMALL.width
    assert codes["share"] == codes["differ"] / codes["compared"]
