"""Makes ``tests/golden/tiny_client*.onnx``: client graphs small enough to commit. Needs onnx; tests do not.

    python tests/edge/make_tiny_graph.py

A 32 x 32 picture becomes 4 x 4 tokens of 3 codes: the mean of each colour over 8 x 8 pixels, cut into 4
levels and packed; or, in the 16-bit one, those means as half-precision features. Of the variants, "near" cuts
a few codes one level off, "far" some by two. ``tests.edge.tiny``
computes the same in numpy.
"""

from __future__ import annotations

from pathlib import Path

import onnx
from onnx import TensorProto, helper

OPSET, IR = 17, 8
"""What onnxruntime 1.19 and everything after it reads."""
GOLDEN = Path(__file__).resolve().parents[1] / "golden"


def ints(name: str, *values: int) -> onnx.TensorProto:
    return helper.make_tensor(name, TensorProto.INT64, [len(values)], values)


def floats(name: str, shape: list[int], *values: float) -> onnx.TensorProto:
    return helper.make_tensor(name, TensorProto.FLOAT, shape, values)


def model(
    nodes: list[onnx.NodeProto], output: onnx.ValueInfoProto, constants: list[onnx.TensorProto]
) -> onnx.ModelProto:
    picture = helper.make_tensor_value_info("picture", TensorProto.UINT8, ["batch", 32, 32, 3])
    graph = helper.make_graph(nodes, "tiny_client", [picture], [output], initializer=constants)
    made = helper.make_model(
        graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=IR, producer_name="tiny"
    )
    onnx.checker.check_model(made)
    return made


def means() -> tuple[list[onnx.NodeProto], list[onnx.TensorProto]]:
    """picture -> means [batch, 4, 4, 3]."""
    nodes = [
        helper.make_node("Cast", ["picture"], ["pixels"], to=TensorProto.FLOAT),
        helper.make_node("Reshape", ["pixels", "cells_shape"], ["cells"]),
        helper.make_node("ReduceMean", ["cells"], ["means"], axes=[2, 4], keepdims=0),
    ]
    return nodes, [ints("cells_shape", -1, 4, 8, 4, 8, 3)]


def packed(step: float = 64.0) -> onnx.ModelProto:
    """The 2-bit client; another step is what a variant of it gets wrong."""
    nodes, constants = means()
    nodes += [
        helper.make_node("Div", ["means", "step"], ["scaled"]),
        helper.make_node("Floor", ["scaled"], ["codes"]),
        helper.make_node("Reshape", ["codes", "fours"], ["grouped"]),
        helper.make_node("Mul", ["grouped", "weights"], ["weighted"]),
        helper.make_node("ReduceSum", ["weighted", "last"], ["bytes"], keepdims=0),
        helper.make_node("Cast", ["bytes"], ["packed"], to=TensorProto.UINT8),
    ]
    constants += [
        floats("step", [], step),
        ints("fours", -1, 12, 4),
        floats("weights", [4], 1.0, 4.0, 16.0, 64.0),
        ints("last", -1),
    ]
    return model(nodes, helper.make_tensor_value_info("packed", TensorProto.UINT8, ["batch", 12]), constants)


def features() -> onnx.ModelProto:
    """The unquantized client."""
    nodes, constants = means()
    nodes += [
        helper.make_node("Reshape", ["means", "tokens"], ["flat"]),
        helper.make_node("Cast", ["flat"], ["features"], to=TensorProto.FLOAT16),
    ]
    constants.append(ints("tokens", -1, 16, 3))
    output = helper.make_tensor_value_info("features", TensorProto.FLOAT16, ["batch", 16, 3])
    return model(nodes, output, constants)


def graphs() -> dict[str, onnx.ModelProto]:
    """Every graph by the name of its file."""
    return {
        "tiny_client.onnx": packed(),
        "tiny_client_near.onnx": packed(64.5),
        "tiny_client_far.onnx": packed(128.0),
        "tiny_client_16bit.onnx": features(),
    }


if __name__ == "__main__":
    for name, made in graphs().items():
        path = GOLDEN / name
        path.write_bytes(made.SerializeToString())
        print(f"{path.name}: {path.stat().st_size} bytes")
