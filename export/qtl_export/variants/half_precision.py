"""The graph in half precision, by onnxruntime's own converter: for GPU providers, and half the bytes."""

from __future__ import annotations

import warnings
from collections.abc import Collection
from pathlib import Path
from typing import Any

import onnx
from onnxruntime.transformers.float16 import convert_float_to_float16

from qtl_export.variants.nodes import encoder_nodes, normalising_nodes
from qtl_export.variants.weights import save, weights_of


def to_half(source: Path, target: Path) -> None:
    """Writes a graph whose tower and connector compute in float16.

    Normalisation and the quantizer's encoder stay in fp32 (``nodes``).

    Args:
        source: the fp32 graph.
        target: where to; its weights go into ``TARGET.data`` where the source's have a file of their own.
    """
    model = onnx.load(source)
    apart = {*normalising_nodes(model), *encoder_nodes(model)}
    _own_constants(model.graph, apart)
    _forget_inside(model.graph, apart)
    with warnings.catch_warnings():
        # It says of every weight below 6e-8 that it is rounded up: they are zeros to anything that follows.
        warnings.simplefilter("ignore")
        # The exporter wrote down every type and shape; inferring them again fails beyond 2 GiB.
        half = convert_float_to_float16(
            model, keep_io_types=True, disable_shape_infer=True, node_block_list=sorted(apart)
        )
    save(half, target, apart=weights_of(source).exists())


def _own_constants(graph: Any, apart: Collection[str]) -> None:
    """Gives the nodes that stay in fp32 constants of their own where others use the same.

    The exporter keeps equal constants once, and the converter would round a shared one to half precision.
    """
    others = {name for node in graph.node if node.name not in apart for name in node.input}
    shared = {each.name: each for each in graph.initializer if each.name in others}
    copied: set[str] = set()
    for node in graph.node:
        if node.name not in apart:
            continue
        for index, name in enumerate(node.input):
            if name in shared:
                own = f"{name}.fp32"
                if own not in copied:
                    copied.add(own)
                    graph.initializer.add().CopyFrom(shared[name])
                    graph.initializer[-1].name = own
                node.input[index] = own


def _forget_inside(graph: Any, apart: Collection[str]) -> None:
    """Drops the noted types of constants, and of values that pass between two nodes that stay in fp32.

    The converter takes whatever has a noted type for a result to convert, and casts it there and back.
    """
    between = {name for node in graph.node if node.name in apart for name in node.output}
    between -= {name for node in graph.node if node.name not in apart for name in node.input}
    between |= {each.name for each in graph.initializer}
    kept = [each for each in graph.value_info if each.name not in between]
    del graph.value_info[:]
    graph.value_info.extend(kept)
