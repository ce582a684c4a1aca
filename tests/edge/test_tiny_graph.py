"""The committed tiny graphs are what their script makes. Needs onnx, which a device does not have."""

from __future__ import annotations

import pytest

from tests.edge.tiny import GOLDEN

onnx = pytest.importorskip("onnx")


def test_committed_graphs_are_the_scripts() -> None:
    from tests.edge import make_tiny_graph as script

    for name, made in script.graphs().items():
        committed = onnx.load(GOLDEN / name)
        assert committed == made, f"{name} is stale; run tests/edge/make_tiny_graph.py"
        assert committed.ir_version == script.IR
