"""The graph with a fixed batch: for providers that build an engine for one shape."""

from __future__ import annotations

from pathlib import Path

import onnx
from onnxruntime.tools.onnx_model_utils import make_input_shape_fixed

from qtl_export.graph import INPUT


def fix_batch(source: Path, target: Path, batch: int) -> None:
    """Writes a graph that takes exactly ``batch`` pictures.

    Weights that lie in a file of their own are shared: the new graph names the source's file.

    Args:
        source: the fp32 graph, any batch.
        target: where to, in the same folder.
        batch: pictures.
    """
    model = onnx.load(source, load_external_data=False)
    graph = model.graph
    height, width, channels = (each.dim_value for each in graph.input[0].type.tensor_type.shape.dim[1:])
    make_input_shape_fixed(graph, INPUT, [batch, height, width, channels])
    onnx.save_model(model, target)
