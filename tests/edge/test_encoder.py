"""The ONNX session: exact payloads from the committed tiny graphs, and graphs that do not fit."""

from __future__ import annotations

import builtins
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest

from edge_runtime.encoder import CPU, Encoder
from qtl_core.bundle import hash_files, open_half
from qtl_core.errors import BundleError, HostError, InputError
from tests.edge import tiny


def encoder(half: Path, **settings: Any) -> Encoder:
    return Encoder(open_half(half, "client"), threads=1, **settings)


def test_payloads_are_exact_and_batched(half: Path) -> None:
    batch = np.stack([tiny.scene(seed) for seed in range(5)])
    made = encoder(half)
    assert made.run(batch) == [tiny.payload(each) for each in batch]
    assert made.run(batch[2:3]) == [tiny.payload(batch[2])]


def test_unquantized_features_are_half_precision_bytes(tmp_path: Path) -> None:
    tiny.write_client(tmp_path, bits=16)
    pixels = tiny.scene(3)
    (payload,) = encoder(tmp_path).run(pixels[None])
    assert payload == tiny.means(pixels).astype("<f2").tobytes()


@pytest.mark.parametrize(
    "batch",
    [
        np.zeros((1, 32, 32, 3), np.float32),
        np.zeros((32, 32, 3), np.uint8),
        np.zeros((1, 31, 32, 3), np.uint8),
        np.zeros((0, 32, 32, 3), np.uint8),
    ],
)
def test_other_arrays_are_refused(half: Path, batch: Any) -> None:
    with pytest.raises(InputError, match=r"takes uint8 \[B, 32, 32, 3\]"):
        encoder(half).run(batch)


def test_unknown_provider_names_the_known(half: Path) -> None:
    with pytest.raises(InputError, match=f"no execution provider 'WishfulProvider'.*{CPU}"):
        encoder(half, providers=["WishfulProvider"])
    assert encoder(half, providers=[CPU]).run(tiny.scene()[None]) == [tiny.payload(tiny.scene())]


def test_graph_that_cannot_be_loaded(half: Path) -> None:
    (half / "client.onnx").write_bytes(b"no graph at all")
    _relist(half)
    with pytest.raises(BundleError, match=r"onnxruntime \S+ cannot load .*client\.onnx"):
        encoder(half)


@pytest.mark.parametrize(
    ("field", "said"),
    [
        (b"\x08\x08", "IR version: 99"),  # ir_version 8
        (b"\x10\x11", "[Oo]pset"),  # opset 17
    ],
)
@pytest.mark.parametrize("made_by", ["999.1.0", ""])
def test_graph_of_a_newer_exporter(half: Path, field: bytes, said: str, made_by: str) -> None:
    data = (half / "client.onnx").read_bytes()
    start = 0 if field[0] == 8 else len(data) - len(field)
    assert data[start : start + 2] == field
    (half / "client.onnx").write_bytes(data[:start] + field[:1] + b"\x63" + data[start + 2 :])
    _relist(half)
    if made_by:
        tiny.edit_manifest(half, made_by={"onnxruntime": made_by})
    remedy = (
        rf"install onnxruntime {made_by} or newer \(here is" if made_by else "install a newer onnxruntime"
    )
    with pytest.raises(BundleError, match=rf"onnxruntime \S+ cannot load .*{said}.*{remedy}") as caught:
        encoder(half)
    assert caught.value.exit_code == 4 and "\n" not in str(caught.value)


def test_graph_that_is_not_the_manifests(half: Path, tmp_path: Path) -> None:
    graph = (half / "client.onnx").read_bytes()
    larger = tmp_path / "larger"
    tiny.write_client(larger, picture=msgspec.structs.replace(tiny.PICTURE, height=64))
    with pytest.raises(BundleError, match="does not fit its manifest"):
        encoder(larger)
    unquantized = tmp_path / "unquantized"
    tiny.write_client(unquantized, bits=16)
    (unquantized / "client.onnx").write_bytes(graph)  # packed bytes, and too few of them
    _relist(unquantized)
    with pytest.raises(BundleError, match="the manifest says 96"):
        encoder(unquantized).run(tiny.scene()[None])
    (half / "client.onnx").write_bytes((tiny.GOLDEN / "tiny_client_16bit.onnx").read_bytes())
    _relist(half)
    with pytest.raises(BundleError, match="does not fit its manifest"):
        encoder(half)


def test_without_onnxruntime(half: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = builtins.__import__

    def refuse(name: str, *args: Any, **kwargs: Any) -> Any:
        if name == "onnxruntime":
            raise ImportError("No module named 'onnxruntime'")
        return real(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", refuse)
    with pytest.raises(HostError, match=r"pip install onnxruntime.*64-bit"):
        encoder(half)


def _relist(half: Path) -> None:
    """Makes the manifest list the files as they are now."""
    files = {name: msgspec.structs.asdict(entry) for name, entry in hash_files(half).items()}
    tiny.edit_manifest(half, files=files)
