"""int8 graphs by onnxruntime's own quantization, with the settings of optimum's presets.

What each preset means is optimum's ``AutoQuantizationConfig`` (which needs an older transformers than ours):
uint8 activations, per-channel symmetric weights, matrix products. They differ in the weights:

- ``avx2``: uint8 weights. Its U8U8 kernel does not saturate; the U8S8 one adds pairs of products in 16 bits.
- ``avx512``: int8 weights of seven bits ("reduce range"), for the same saturation without VNNI.
- ``avx512_vnni`` and ``arm64``: int8 weights of eight bits; the two graphs are the same.

Dynamic: the range of each activation is found at each run. Static: it was measured on calibration pictures,
and is written into the graph as QuantizeLinear/DequantizeLinear pairs, which other providers read as well.
There convolutions are quantized too, which gain nothing dynamically, but for the first: it sees the picture
itself.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Literal

import numpy as np
import onnx
from onnxruntime import quantization
from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType

from edge_runtime.picture import Pixels
from qtl_export.graph import INPUT
from qtl_export.variants.nodes import PRODUCTS, encoder_nodes, products_of_activations
from qtl_export.variants.weights import weights_of

Kind = Literal["dynamic", "static"]
KINDS: Final[tuple[Kind, ...]] = ("dynamic", "static")


@dataclass(frozen=True, kw_only=True)
class Preset:
    """How weights are quantized for one kind of processor."""

    weights: QuantType
    reduce_range: bool


_PRESETS: Final = {
    "arm64": Preset(weights=QuantType.QInt8, reduce_range=False),
    "avx2": Preset(weights=QuantType.QUInt8, reduce_range=False),
    "avx512": Preset(weights=QuantType.QInt8, reduce_range=True),
    "avx512_vnni": Preset(weights=QuantType.QInt8, reduce_range=False),
}


def quantize(source: Path, target: Path, preset: str, kind: Kind, calibration: Pixels | None = None) -> None:
    """Writes an int8 graph.

    Args:
        source: the fp32 graph.
        target: where to; its weights go into ``TARGET.data`` where the source's have a file of their own.
        preset: one of ``PRESETS``.
        kind: when the ranges of activations are found.
        calibration: for "static": uint8 [n, height, width, 3].

    Raises:
        ValueError: "static" without pictures.
    """
    settings = _PRESETS[preset]
    graph = onnx.load(source, load_external_data=False)
    apart = encoder_nodes(graph)
    common: dict[str, Any] = {
        "per_channel": True,
        "reduce_range": settings.reduce_range,
        "weight_type": settings.weights,
        "use_external_data_format": weights_of(source).exists(),
    }
    with _quiet():
        if kind == "dynamic":
            quantization.quantize_dynamic(
                source,
                target,
                op_types_to_quantize=list(PRODUCTS),
                nodes_to_exclude=apart,
                extra_options={"WeightSymmetric": True, "MatMulConstBOnly": True},
                **common,
            )
            return
        if calibration is None or not len(calibration):
            raise ValueError("static quantization needs calibration pictures")
        quantization.quantize_static(
            source,
            target,
            _Pictures(calibration),
            quant_format=QuantFormat.QDQ,
            activation_type=QuantType.QUInt8,
            op_types_to_quantize=[*PRODUCTS, "Conv"],
            nodes_to_exclude=[*apart, *products_of_activations(graph), *_first_convolution(graph)],
            # Results are added to and normalised next, in fp32: rounding them first would only add noise.
            extra_options={"WeightSymmetric": True, "OpTypesToExcludeOutputQuantization": list(PRODUCTS)},
            **common,
        )


def _first_convolution(model: Any) -> list[str]:
    return [node.name for node in model.graph.node if node.op_type == "Conv"][:1]


class _Pictures(CalibrationDataReader):
    """One picture at a time, as a device runs them."""

    def __init__(self, pictures: Pixels) -> None:
        self._left = iter(pictures)

    def get_next(self) -> dict[str, Any] | None:
        one = next(self._left, None)
        return None if one is None else {INPUT: one[np.newaxis]}


@contextmanager
def _quiet() -> Iterator[None]:
    """Keeps advice off: it is to infer shapes first, which this graph has from its exporter."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        yield
    finally:
        logging.disable(before)
