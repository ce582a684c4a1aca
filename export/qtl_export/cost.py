"""What the client graph costs: operations and memory for one picture, counted without computing anything."""

from __future__ import annotations

import copy
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

from qtl_core.nn.checkpoint import Checkpoint
from qtl_core.nn.model import VisionEncoder

_LAYERS = ".layers."


@dataclass(frozen=True, kw_only=True)
class Cost:
    """Of one picture in the client graph.

    Attributes:
        gflop: floating-point operations in 1e9; a multiplication and an addition are two.
        largest_bytes: of activations that the largest single operation reads and writes, in float32.
        tower_width: of the features the connector reads.
        tokens: of a picture at the cut, before a quantizer merges any.
        width: of the features at the cut.
    """

    gflop: float
    largest_bytes: int
    tower_width: int
    tokens: int
    width: int


@torch.inference_mode()
def client_cost(checkpoint: Checkpoint, quantized: bool) -> Cost:
    """Counts the operations of tower, connector and quantizer encoder; the model stays as it is.

    Args:
        checkpoint: with weights or without.
        quantized: whether the quantizer's encoder is part of the graph.
    """
    vision, spec = _without_memory(checkpoint.model.vision), checkpoint.picture
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
    if quantized:
        quantizer = checkpoint.model.vision_quantizer
        total += 2 * quantizer.in_proj.weight.numel() * features.shape[1] // quantizer.merge**2
    tokens, width = features.shape[1:]
    return Cost(
        gflop=(total - idle) / 1e9,
        largest_bytes=largest.bytes,
        tower_width=tower_features.shape[-1],
        tokens=tokens,
        width=width,
    )


def client_parameters(vision: VisionEncoder) -> int:
    """Parameters of tower and connector that the client graph needs."""
    return sum(one.numel() for name, one in vision.named_parameters() if not _idle(name, vision))


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


def _without_memory(vision: VisionEncoder) -> VisionEncoder:
    """A copy on PyTorch's meta device, made without copying weights on the way."""
    memo: dict[int, Any] = {id(one): nn.Parameter(one.to("meta")) for one in vision.parameters()}
    memo |= {id(one): one.to("meta") for one in vision.buffers()}
    return copy.deepcopy(vision, memo)


def _is_layer(name: str) -> bool:
    return _LAYERS in name and name.rpartition(_LAYERS)[2].isdigit()


def _idle(name: str, vision: VisionEncoder) -> bool:
    """Whether a parameter or layer of the tower is behind the last hidden state that is read."""
    before, found, rest = name.partition(_LAYERS)
    if not found or not before.startswith("tower."):
        return "post_layernorm" in name and not vision.settings.final_norm
    depth = int(vision.tower.config.num_hidden_layers)
    chosen = vision.settings.feature_layer
    layers = (chosen,) if isinstance(chosen, int) else chosen
    read = [layer if layer >= 0 else depth + 1 + layer for layer in layers]
    return int(rest.partition(".")[0]) >= max(read)
