"""The client halves that both processors run: the shipped model at several level counts and quantizers."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import msgspec

from edge_runtime.variants import variants
from qtl_core import shipped
from qtl_core.bundle import hash_files, open_half, write_manifest
from qtl_export.config import ExportConfig
from qtl_export.exporter import export
from qtl_export.progress import Progress

FOLDER: Final = "bundles"
"""Their folder in the work folder."""
INT8: Final = "int8"
_GOLDEN: Final = 8
"""Pictures of the export's own validation; four of them become the golden ones."""


@dataclass(frozen=True, kw_only=True)
class Bundle:
    """One export of the shipped checkpoint.

    Attributes:
        name: of its folder.
        levels: codes' levels; None for the quantizer's own.
        quantizer: a further quantizer of the checkpoint; "" for its own.
        pictures: how many each of its graphs encodes.
        int8: whether it gets a variant with int8 weights, if the exporter has made none.
    """

    name: str
    levels: int | None
    quantizer: str = ""
    pictures: int = 5
    int8: bool = False


BUNDLES: Final = (
    Bundle(name="bits2", levels=4, pictures=20, int8=True),
    Bundle(name="levels3", levels=3),
    Bundle(name="levels256", levels=256),
    Bundle(name="small", levels=None, quantizer="small"),
    Bundle(name="tiny", levels=None, quantizer="tiny"),
)
"""Exported as ``qtl-export`` does it; the many codes come from ``every``, which an emulator can afford."""


def make(work: Path, progress: Progress) -> None:
    """Exports every bundle of the table afresh: the check is of the exporter that is here now.

    Args:
        work: the work folder.
        progress: where to show how far it is.

    Raises:
        QtlError: as ``qtl_export.exporter.export``.
    """
    folder = work / FOLDER
    for one in progress.bar(BUNDLES, "exporting", len(BUNDLES), "bundles"):
        export(
            ExportConfig(
                checkpoint=shipped.digits(),
                levels=one.levels,
                quantizer=one.quantizer,
                output=folder / one.name,
                validate=_GOLDEN,
            )
        )
        if one.int8:
            _add_int8(folder / one.name / "client")


def _add_int8(client: Path) -> None:
    """Weights of the matrix products as int8, activations quantised as they come, unless there is one."""
    half = open_half(client, "client")
    if any(one.name.startswith(INT8) for one in variants(half)):
        return
    from onnxruntime.quantization import QuantType, quantize_dynamic

    before = logging.root.manager.disable
    # It advises pre-processing, which infers shapes that this graph has from its exporter.
    logging.disable(logging.WARNING)
    try:
        quantize_dynamic(
            client / half.manifest.graph,
            client / f"client.{INT8}.onnx",
            op_types_to_quantize=["MatMul", "Gemm"],
            weight_type=QuantType.QInt8,
        )
    finally:
        logging.disable(before)
    write_manifest(client, msgspec.structs.replace(half.manifest, files=hash_files(client)))
