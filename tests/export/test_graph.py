"""The exported graph: what is exact, what is pinned, what is left out."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import onnxruntime
import pytest
import torch
from torch import Tensor, nn
from torch.onnx.errors import OnnxExporterError

from edge_runtime.encoder import Encoder
from qtl_core import codes as packing
from qtl_core import quantizer as reference
from qtl_core.bundle import open_half
from qtl_core.errors import CheckpointError
from qtl_core.nn.checkpoint import load_checkpoint
from qtl_core.nn.client_partition import ClientPartition
from qtl_core.nn.quantizer import Quantizer
from qtl_export import graph
from tests.export.conftest import CODE_DIM, SIDE, TOKENS, Export, smooth

ALL_LEVELS = range(2, 257)
BITS = range(1, 9)


class EveryLevel(nn.Module):
    """Codes of one scaled array at every L: [batch, n] -> uint8 [batch, 255, n]."""

    def __init__(self) -> None:
        super().__init__()
        self.quantizer = Quantizer(1, 1, 2)

    def forward(self, scaled: Tensor) -> Tensor:
        # Cast and joined once for all of them: what 255 more nodes cost is tracing time.
        codes = torch.cat([self.quantizer.to_codes(scaled, levels) for levels in ALL_LEVELS], dim=1)
        return codes.to(torch.uint8).reshape(scaled.shape[0], len(ALL_LEVELS), scaled.shape[1])


Both = tuple[npt.NDArray[np.float32], npt.NDArray[np.uint8], npt.NDArray[np.uint8]]


@pytest.fixture(scope="module")
def same_scaled(tmp_path_factory: pytest.TempPathFactory) -> Both:
    """One scaled array, and its codes at every L by PyTorch and by the graph in onnxruntime.

    It holds, beside random values, every rounding boundary of every L and both its neighbours.
    """
    edges = np.concatenate(
        [((np.arange(levels - 1) + 0.5) * 2 / (levels - 1) - 1) for levels in ALL_LEVELS]
    ).astype(np.float32)
    random = np.random.default_rng(0).uniform(-1, 1, 20_000).astype(np.float32)
    near = [np.nextafter(edges, np.float32(way)) for way in (-2, 2)]
    scaled = np.clip(np.concatenate([edges, *near, random, [-1, 0, 1]]), -1, 1).astype(np.float32)
    module = EveryLevel().eval()
    folder = tmp_path_factory.mktemp("levels")
    # The first axis is the batch; two rows are enough to keep it free.
    rows = scaled[: len(scaled) // 2 * 2].reshape(2, -1)
    path = graph.save(graph.trace(module, torch.from_numpy(rows), "scaled", "codes"), folder)
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    device = session.run(None, {"scaled": rows})[0]
    with torch.inference_mode():
        ours = module(torch.from_numpy(rows)).numpy()
    return rows, ours, device


@pytest.mark.parametrize("levels", ALL_LEVELS)
def test_same_scaled_array_same_codes(levels: int, same_scaled: Both) -> None:
    scaled, ours, device = same_scaled
    expected = reference.levels_of(scaled, levels)
    assert expected.max() == levels - 1
    np.testing.assert_array_equal(ours[:, levels - 2], expected)
    np.testing.assert_array_equal(device[:, levels - 2], expected)


def scaled_inside(path: Path, pictures: npt.NDArray[np.uint8]) -> tuple[npt.NDArray[Any], npt.NDArray[Any]]:
    """What the graph itself rounded, and what it returned."""
    model = onnx.load(path)
    (clip,) = (node for node in model.graph.node if node.op_type == "Clip")
    model.graph.output.append(
        onnx.helper.make_tensor_value_info(clip.output[0], onnx.TensorProto.FLOAT, None)
    )
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    payload, scaled = session.run(None, {graph.INPUT: pictures})
    return scaled, payload


@pytest.mark.parametrize("levels", [5, *(1 << bits for bits in BITS)])
def test_graph_rounds_and_packs_as_the_reference(levels: int, exported: Export) -> None:
    bundle, _ = exported(levels)
    scaled, payload = scaled_inside(bundle / "client" / graph.GRAPH, smooth(7, 9))
    assert scaled.shape == (7, TOKENS, CODE_DIM)
    for one, row in zip(scaled, payload, strict=True):
        assert row.tobytes() == packing.pack(reference.levels_of(one, levels), levels)


@pytest.mark.parametrize("levels", [0, 2, 5, 256])
@pytest.mark.parametrize("batch", [1, 3])
def test_device_code_gives_pytorch_payloads(
    levels: int, batch: int, exported: Export, checkpoint: Path
) -> None:
    bundle, _ = exported(levels)
    pictures = smooth(batch, 11)
    payloads = Encoder(open_half(bundle, "client")).run(pictures)
    loaded = load_checkpoint(checkpoint)
    part = ClientPartition(loaded.model.vision, loaded.model.vision_quantizer, levels or None).eval()
    with torch.inference_mode():
        ours = part(torch.from_numpy(pictures)).numpy()
    assert len(payloads) == batch
    if levels:
        assert payloads == [row.tobytes() for row in ours]
    else:
        theirs = np.stack([np.frombuffer(payload, "<f2") for payload in payloads])
        np.testing.assert_allclose(theirs, ours, rtol=2**-9, atol=1e-4)


@pytest.mark.parametrize("levels", [0, 4])
def test_pins(levels: int, exported: Export) -> None:
    bundle, _ = exported(levels)
    model = onnx.load(bundle / "client" / graph.GRAPH)
    onnx.checker.check_model(model)
    assert model.ir_version == graph.IR_VERSION == 10
    assert [(each.domain, each.version) for each in model.opset_import] == [("", 18)]
    assert [each.name for each in model.graph.input] == ["picture"]
    assert [each.name for each in model.graph.output] == ["packed"]
    batch, *rest = model.graph.input[0].type.tensor_type.shape.dim
    assert batch.dim_param and [each.dim_value for each in rest] == [SIDE, SIDE, 3]
    kind = onnx.TensorProto.UINT8 if levels else onnx.TensorProto.FLOAT16
    assert model.graph.output[0].type.tensor_type.elem_type == kind
    assert not model.functions
    assert not (bundle / "client" / graph.WEIGHTS).exists()


@pytest.mark.parametrize("levels", [0, 4])
def test_nothing_of_the_exporting_machine_is_left(
    levels: int, exported: Export, checkpoint: Path, repo_root: Path
) -> None:
    bundle, _ = exported(levels)
    model = onnx.load(bundle / "client" / graph.GRAPH)
    parts: list[Any] = [model, model.graph, *model.graph.node, *model.graph.value_info]
    parts += [*model.graph.input, *model.graph.output, *model.graph.initializer]
    assert not [part for part in parts if part.doc_string or len(getattr(part, "metadata_props", ()))]
    private = [str(repo_root), str(Path(torch.__file__).parent), str(checkpoint), str(bundle), ".py"]
    for path in bundle.rglob("*"):
        if path.is_file():
            data = path.read_bytes()
            assert not [each for each in private if each.encode() in data], path


def test_settled_quantizer_has_the_interpolated_k() -> None:
    quantizer = Quantizer(4, 2, 4, "frozen", {2: 1.5, 16: 2.5, 256: 3.5}).eval()
    x = torch.randn(3, 5, 4)
    for levels in (2, 3, 4, 11, 16, 100, 256):
        assert torch.equal(graph.settled(quantizer, levels).encode(x, levels), quantizer.encode(x, levels))


def test_large_weights_go_into_a_file_of_their_own(
    checkpoint: Path, tmp_path: Path, exported: Export
) -> None:
    bundle, _ = exported(4)
    path = graph.export_graph(load_checkpoint(checkpoint), 4, tmp_path, largest=1000)
    assert {each.name for each in tmp_path.iterdir()} == {graph.GRAPH, graph.WEIGHTS}
    assert path.stat().st_size < (bundle / "client" / graph.GRAPH).stat().st_size
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    pictures = smooth(2, 4)
    expected = Encoder(open_half(bundle, "client")).run(pictures)
    assert [row.tobytes() for row in session.run(None, {"picture": pictures})[0]] == expected


def test_what_cannot_be_exported_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise OnnxExporterError("failed in step 1/3\nand much more") from ValueError(
            "no such operator\nsee above"
        )

    monkeypatch.setattr(torch.onnx, "export", refuse)
    with pytest.raises(CheckpointError, match="cannot export this model's client partition") as caught:
        graph.trace(nn.Identity(), torch.ones(2, 3), "x", "y")
    assert str(caught.value).endswith("no such operator")


def digests(folder: Path, digest: Callable[[bytes], Any] = hashlib.sha256) -> dict[str, str]:
    files = (path for path in sorted(folder.rglob("*")) if path.is_file())
    return {str(path.relative_to(folder)): digest(path.read_bytes()).hexdigest() for path in files}
