"""The bounds a graph is held to on a device: at full precision DESIGN.md's, else the manifest's."""

from __future__ import annotations

import math
from pathlib import Path

import msgspec
import numpy as np
import onnxruntime
import pytest

from edge_runtime import selftest
from edge_runtime.bench import candidates, loader, measure
from edge_runtime.doctor.bundle import described
from edge_runtime.encoder import CPU
from edge_runtime.golden import TOLERANCE, Bounds, golden_of
from edge_runtime.variants import Variant, variant
from qtl_core.bundle import Half, Manifest, VariantEntry, open_half, write_manifest
from tests.edge import tiny

GPU = "CUDAExecutionProvider"
INT8 = VariantEntry(graph="client.int8-arm64.onnx", passed=True, share_bound=0.25, largest_bound=2)


def a_graph(entry: VariantEntry | None, name: str = "int8-arm64") -> Variant:
    return Variant(name=name, graph=f"client.{name}.onnx", bytes=100, sha256="0", entry=entry)


def test_bounds_by_graph_and_provider() -> None:
    cut = tiny.cut()
    full, own = a_graph(None, "fp32"), a_graph(INT8)
    assert (
        Bounds.of(cut, full, CPU) == Bounds.of(cut, full, CPU, 0.5) == Bounds(share=1e-4, largest=1, least=1)
    )
    assert Bounds.of(cut, full, GPU) == Bounds(share=TOLERANCE, largest=1)
    for provider in (CPU, GPU):
        assert Bounds.of(cut, own, provider) == Bounds(share=0.25, largest=2)
        assert Bounds.of(cut, own, provider, 0.5) == Bounds(share=0.5, largest=2)
    assert Bounds.of(cut, a_graph(None), CPU) == Bounds(share=TOLERANCE, largest=1)
    fixed = a_graph(msgspec.structs.replace(INT8, share_bound=1e-4, largest_bound=1), "static")
    assert Bounds.of(cut, fixed, CPU, 0.5) == Bounds.full(cut)
    assert Bounds.of(cut, fixed, GPU) == Bounds(share=TOLERANCE, largest=1)
    features = tiny.cut(16)
    assert Bounds.of(features, full, CPU) == Bounds(share=0.0, largest=1e-3)
    assert Bounds.of(features, full, GPU) == Bounds(share=TOLERANCE, largest=math.inf)


def a_half(folder: Path, entry: VariantEntry) -> Half:
    """The tiny client half with a second graph, the same as the first, under the name int8-arm64."""
    graph = (tiny.GOLDEN / "tiny_client.onnx").read_bytes()
    files = {"golden.npz": tiny.golden(), entry.graph: graph}
    manifest: Manifest = tiny.write_client(folder, files=files)
    write_manifest(folder, msgspec.structs.replace(manifest, variants={"int8-arm64": entry}))
    return open_half(folder, "client")


def test_bench_never_chooses_what_was_put_there_by_force(tmp_path: Path) -> None:
    for passed in (True, False):
        half = a_half(tmp_path / str(passed), msgspec.structs.replace(INT8, passed=passed))
        golden = golden_of(half)
        assert golden is not None
        every = candidates(half, [CPU], 1, names=["int8-arm64"])
        (timing,) = measure(every, loader(half), golden, half.manifest.cut, seconds=0, keep=True)
        assert timing.acceptable == passed
        assert timing.refused == ("" if passed else "validation at export found it over its bounds")
        assert ("int8-arm64 0 MB (over its bounds" in described(half).said) == (not passed)


def test_selftest_states_the_bounds(tmp_path: Path) -> None:
    half = a_half(tmp_path / "client", INT8)
    golden = selftest.golden(half)
    # A code in six is another one than the graph makes: beyond a tenth, within this variant's quarter.
    payloads = []
    for payload in golden.payloads:
        codes = np.frombuffer(payload, np.uint8).copy()
        codes[:8] ^= 1
        payloads.append(codes.tobytes())
    off = type(golden)(golden.pictures, tuple(payloads))
    every = selftest.places(half, onnxruntime.get_available_providers(), None)
    full, int8 = selftest.test(every, loader(half), off, half)
    assert (full.share_bound, full.largest_bound) == (1e-4, 1)
    assert (int8.share_bound, int8.largest_bound) == (0.25, 2)
    assert int8.differ / int8.compared == pytest.approx(1 / 6)
    assert full.fault and not int8.fault
    assert "codes differ (25 % may)" in selftest.line(int8)


def test_weights_that_two_graphs_share(tmp_path: Path) -> None:
    entry = msgspec.structs.replace(INT8, weights="client.onnx.data")
    files = {"client.onnx.data": b"12345", entry.graph: b"123"}
    manifest = tiny.write_client(tmp_path / "client", files=files)
    write_manifest(tmp_path / "client", msgspec.structs.replace(manifest, variants={"int8-arm64": entry}))
    half = open_half(tmp_path / "client", "client")
    assert variant(half, "int8-arm64").bytes == 8
