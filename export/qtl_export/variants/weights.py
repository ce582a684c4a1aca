"""Graphs and their weights as files: in one where they fit, in ``GRAPH.data`` where the source's do not."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import onnx

DATA = ".data"


def weights_of(graph: Path) -> Path:
    """The file that a graph's weights lie in where they have one of their own."""
    return graph.with_name(graph.name + DATA)


def save(model: Any, target: Path, *, apart: bool) -> None:
    """Writes an ``onnx.ModelProto``.

    Args:
        model: with its weights.
        target: the graph's file.
        apart: put the weights into a file of their own.
    """
    onnx.save_model(
        model,
        target,
        save_as_external_data=apart,
        all_tensors_to_one_file=True,
        location=weights_of(target).name,
    )
