"""``qtl-export inspect``: what a checkpoint is, and what its client half costs, without loading weights."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import msgspec
from torch import nn

from qtl_core.codes import packed_size
from qtl_core.nn.checkpoint import load_checkpoint
from qtl_export.config import QUANTIZED_BITS
from qtl_export.cost import client_cost, client_parameters
from qtl_export.expected_time import Expected, expect, rows_of


class Inspected(msgspec.Struct, frozen=True, kw_only=True):
    """What ``inspect`` found.

    Attributes:
        checkpoint: the folder, or the id of the hub that was given.
        family: its family.
        tower: kind of vision tower.
        connector: class of the connector.
        decoder: kind of language model.
        picture: [width, height] that the tower takes, in pixels.
        fit: "square", "pad" or "crop".
        tokens: of a picture at the cut, before a quantizer merges any.
        tower_width: of the features the connector reads.
        width: of the features at the cut, and of the decoder.
        quantizer: its settings; None if there is none.
        coded_tokens: code vectors of a picture; those of ``tokens`` where there is no quantizer.
        code_dim: codes of each of them; ``width`` where there is no quantizer.
        client_parameters: that the client graph needs.
        server_parameters: of the decoder.
        file_bytes: of all the checkpoint's files.
        gflop: of the client graph for one picture (a multiplication and an addition are two), in 1e9.
        peak_bytes: estimate of the client graph's memory for one picture in float32: its weights, and what
            its largest single operation reads and writes.
        bytes_by_bits: payload of a picture at 1 to 8 bits, packed; "16" for unquantized features.
        bench: seconds to expect on the device whose measurement was given; None where none was.
        tiles: tiles a picture has at most. Where there are several, everything above is of one tile.
    """

    checkpoint: str
    family: str
    tower: str
    connector: str
    decoder: str
    picture: tuple[int, int]
    fit: str
    tokens: int
    tower_width: int
    width: int
    quantizer: dict[str, Any] | None
    coded_tokens: int
    code_dim: int
    client_parameters: int
    server_parameters: int
    file_bytes: int
    gflop: float
    peak_bytes: int
    bytes_by_bits: dict[str, int]
    bench: Expected | None = None
    tiles: int = 1

    def as_json(self) -> str:
        """One line of JSON."""
        return json.dumps(msgspec.to_builtins(self))

    def as_text(self) -> str:
        """A table for a terminal."""
        one = "one tile" if self.tiles > 1 else "one picture"
        rows = [
            ("family", self.family),
            *([("tiles", self._tiles())] if self.tiles > 1 else []),
            ("vision tower", f"{self.tower}, {self.picture[0]} x {self.picture[1]} pixels ({self.fit})"),
            ("connector", f"{self.connector}, {self.tower_width} to {self.width}"),
            ("decoder", f"{self.decoder}, {self.server_parameters:,} parameters"),
            ("at the cut", f"{self.tokens} tokens x {self.width}"),
            ("quantizer", self._quantizer()),
            (
                "client half",
                f"{self.client_parameters:,} parameters, {_mega(4 * self.client_parameters)} in float32",
            ),
            (one, f"{self.gflop:,.2f} GFLOP, about {_mega(self.peak_bytes)} of memory"),
            ("files", _mega(self.file_bytes)),
            (f"bytes of {one}", "  ".join(f"{bits} bit: {n:,}" for bits, n in self.bytes_by_bits.items())),
        ]
        if self.bench is not None:
            rows += rows_of(self.bench)
        wide = max(len(name) for name, _ in rows)
        return "\n".join([self.checkpoint, *(f"  {name:<{wide}}  {value}" for name, value in rows)])

    def _tiles(self) -> str:
        most = self.tiles
        return (
            f"up to {most} a picture, by its size; each is a picture to the client half, and {most} take "
            f"{self.gflop * most:,.2f} GFLOP and {self.bytes_by_bits['2'] * most:,} bytes at 2 bits"
        )

    def _quantizer(self) -> str:
        if self.quantizer is None:
            return "none: it can be exported unquantized (--bits 16); bytes below are at code_dim = width"
        scaling, levels = self.quantizer["scaling"], self.quantizer["levels"]
        return f"{self.coded_tokens} x {self.code_dim} codes, {levels} levels by default, scaling {scaling}"


def inspect(path: Path, quantizer: str = "", bench: Path | None = None) -> Inspected:
    """Looks at a checkpoint; names and shapes of its tensors are checked on the way.

    Args:
        path: the folder, or an id of the hub.
        quantizer: one of its further vision quantizers; "" for its own.
        bench: what ``edge_runtime bench --json`` wrote on a device, to say what to expect there.

    Raises:
        CheckpointError: as ``load_checkpoint``.
        InputError: ``bench`` is no such file, or does not say enough.
    """
    checkpoint = load_checkpoint(path, quantizer=quantizer, weights=False)
    model, settings = checkpoint.model, checkpoint.settings.vision
    vision, cost = model.vision, client_cost(checkpoint, model.quantized)
    tokens, width = cost.tokens, cost.width
    coded = tokens // settings.merge**2 if model.quantized else tokens
    code_dim = settings.code_dim if model.quantized else width
    weights = client_parameters(vision)
    if model.quantized:
        weights += sum(parameter.numel() for parameter in model.vision_quantizer.in_proj.parameters())
    peak = 4 * weights + cost.largest_bytes
    by_bits = {str(bits): packed_size(coded * code_dim, 1 << bits) for bits in QUANTIZED_BITS}
    return Inspected(
        checkpoint=str(path),
        family=checkpoint.family,
        tower=str(vision.tower.config.model_type),
        connector=type(vision.connector).__name__,
        decoder=str(model.decoder.language_model.config.model_type),
        picture=(checkpoint.picture.width, checkpoint.picture.height),
        fit=checkpoint.picture.fit,
        tokens=tokens,
        tower_width=cost.tower_width,
        width=width,
        quantizer=msgspec.to_builtins(settings) if model.quantized else None,
        coded_tokens=coded,
        code_dim=code_dim,
        client_parameters=weights,
        server_parameters=_count(model.decoder),
        file_bytes=sum(file.stat().st_size for file in checkpoint.path.rglob("*") if file.is_file()),
        gflop=cost.gflop,
        peak_bytes=peak,
        bytes_by_bits={**by_bits, "16": 2 * tokens * width},
        bench=None if bench is None else expect(bench, cost.gflop, peak),
        tiles=checkpoint.picture.most_tiles,
    )


def _count(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def _mega(n: int) -> str:
    return f"{n / 1e6:,.1f} MB"
