"""``qtl-export inspect``: what a checkpoint is, and what its client half costs, without loading weights."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import msgspec
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

from qtl_core.codes import packed_size
from qtl_core.nn.checkpoint import Checkpoint, load_checkpoint
from qtl_core.nn.model import VisionEncoder
from qtl_export.config import QUANTIZED_BITS

_LAYERS = ".layers."


class Inspected(msgspec.Struct, frozen=True, kw_only=True):
    """What ``inspect`` found.

    Attributes:
        checkpoint: the folder.
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


def inspect(path: Path, quantizer: str = "") -> Inspected:
    """Looks at a checkpoint; names and shapes of its tensors are checked on the way.

    Args:
        path: the folder.
        quantizer: one of its further vision quantizers; "" for its own.

    Raises:
        CheckpointError: as ``load_checkpoint``.
    """
    checkpoint = load_checkpoint(path, quantizer=quantizer, weights=False)
    model, settings = checkpoint.model, checkpoint.settings.vision
    vision = model.vision.to("meta")
    gflop, peak, tower_features, features = _cost(vision, checkpoint)
    tokens, width = features.shape[1:]
    coded = tokens // settings.merge**2 if model.quantized else tokens
    code_dim = settings.code_dim if model.quantized else width
    needed = [parameter for name, parameter in vision.named_parameters() if not _idle(name, vision)]
    weights = sum(parameter.numel() for parameter in needed)
    if model.quantized:
        weights += sum(parameter.numel() for parameter in model.vision_quantizer.in_proj.parameters())
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
        tower_width=tower_features.shape[-1],
        width=width,
        quantizer=msgspec.to_builtins(settings) if model.quantized else None,
        coded_tokens=coded,
        code_dim=code_dim,
        client_parameters=weights,
        server_parameters=_count(model.decoder),
        file_bytes=sum(file.stat().st_size for file in path.rglob("*") if file.is_file()),
        gflop=gflop,
        peak_bytes=4 * weights + peak,
        bytes_by_bits={**by_bits, "16": 2 * tokens * width},
        tiles=checkpoint.picture.most_tiles,
    )


class _Largest(TorchDispatchMode):
    """Bytes of activations that the largest single operation reads and writes."""

    def __init__(self, weights: Iterable[Tensor]) -> None:
        super().__init__()
        self.bytes = 0
        self._weights = {id(tensor) for tensor in weights}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        touched = [*args, *(out if isinstance(out, tuple | list) else [out])]
        live = {id(one): one for one in touched if isinstance(one, Tensor) and id(one) not in self._weights}
        self.bytes = max(self.bytes, sum(one.numel() * one.element_size() for one in live.values()))
        return out


@torch.inference_mode()
def _cost(vision: VisionEncoder, checkpoint: Checkpoint) -> tuple[float, int, Tensor, Tensor]:
    """GFLOP, bytes of the largest operation, and valueless features before and after the connector."""
    spec = checkpoint.picture
    picture = torch.empty(1, spec.height, spec.width, 3, dtype=torch.uint8, device="meta")
    with _Largest(vision.parameters()) as largest:
        tower_features = vision.tower_features(picture)
    counter = FlopCounterMode(display=False)
    with counter:
        features = vision(picture)
    counts: dict[str, dict[Any, int]] = counter.get_flop_counts()
    total = counter.get_total_flops()
    root = f"{type(vision).__name__}."
    # Layers behind the one that is read: PyTorch runs them, the graph does not have them.
    idle = sum(
        sum(by_operation.values())
        for name, by_operation in counts.items()
        if name.startswith(root) and _is_layer(name) and _idle(name.removeprefix(root) + ".", vision)
    )
    if checkpoint.model.quantized:
        projection = checkpoint.model.vision_quantizer.in_proj
        total += 2 * projection.weight.numel() * features.shape[1] // checkpoint.settings.vision.merge**2
    return (total - idle) / 1e9, largest.bytes, tower_features, features


def _is_layer(name: str) -> bool:
    return _LAYERS in name and name.rpartition(_LAYERS)[2].isdigit()


def _idle(name: str, vision: VisionEncoder) -> bool:
    """Whether a parameter or layer of the tower is behind the last hidden state that is read."""
    before, found, rest = name.partition(_LAYERS)
    if not found or not before.startswith("tower."):
        return "post_layernorm" in name
    depth = int(vision.tower.config.num_hidden_layers)
    chosen = vision.settings.feature_layer
    read = [layer if layer >= 0 else depth + 1 + layer for layer in _several(chosen)]
    return int(rest.partition(".")[0]) >= max(read)


def _several(layer: int | tuple[int, ...]) -> tuple[int, ...]:
    return (layer,) if isinstance(layer, int) else layer


def _count(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def _mega(n: int) -> str:
    return f"{n / 1e6:,.1f} MB"
