"""Which nodes of a client graph stay in fp32 in a variant of reduced precision.

The quantizer's encoder does: int8 noise in ``in_proj`` or in the scaling would move codes at every boundary,
and rounding and packing are arithmetic on whole numbers. So does the normalisation of the picture, which is
free. Noise then enters through the tower and the connector only.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Final

import onnx

PRODUCTS: Final = ("MatMul", "Gemm")
_FIRST: Final = ("Conv", *PRODUCTS)


def encoder_nodes(model: Any) -> list[str]:
    """Names of the nodes from ``in_proj``, it included, to the payload.

    They are found from the payload backwards, up to the first product with a constant matrix. A graph of
    unquantized features, whose output is no bytes, has none.

    Args:
        model: an ``onnx.ModelProto`` whose weights need not be loaded.
    """
    graph = model.graph
    if graph.output[0].type.tensor_type.elem_type != onnx.TensorProto.UINT8:
        return []
    constant = {each.name for each in graph.initializer}
    made_by = {name: node for node in graph.node for name in node.output}
    found: dict[str, None] = {}
    todo = [output.name for output in graph.output]
    while todo:
        node = made_by.get(todo.pop())
        if node is None or node.name in found:
            continue
        found[node.name] = None
        # The shape of something is no value that precision could touch, wherever it comes from.
        if node.op_type != "Shape" and not _weighted(node, constant):
            todo += node.input
    return list(found)


def normalising_nodes(model: Any) -> list[str]:
    """Names of the nodes between the picture and the first convolution or product."""
    made_by = {name: node for node in model.graph.node for name in node.output}
    first = next((node for node in model.graph.node if node.op_type in _FIRST), None)
    found: dict[str, None] = {}
    todo = [] if first is None else [first.input[0]]
    while todo:
        node = made_by.get(todo.pop())
        if node is not None and node.name not in found:
            found[node.name] = None
            todo += node.input
    return list(found)


def products_of_activations(model: Any) -> list[str]:
    """Names of the products of two arrays neither of which is constant: those of attention."""
    constant = {each.name for each in model.graph.initializer}
    return [
        node.name for node in model.graph.node if node.op_type in PRODUCTS and not _weighted(node, constant)
    ]


def _weighted(node: Any, constant: Iterable[str]) -> bool:
    return node.op_type in PRODUCTS and node.input[1] in constant
