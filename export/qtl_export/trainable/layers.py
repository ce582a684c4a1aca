"""A connector as a chain of layers, each with its pullback written out.

Differentiating inside an exported graph is no work that onnxruntime does, so every layer says itself how a
gradient of its output becomes one of its input and of its tensors.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor, nn

from qtl_core.errors import CheckpointError
from qtl_core.nn.families.idefics3 import Connector as ShuffleConnector
from qtl_core.nn.quantizer import merge_tokens, split_tokens

Tensors = Mapping[str, Tensor]
Gradients = dict[str, Tensor]


class Layer(Protocol):
    """One step of a chain; ``tensors`` holds its parameters by name."""

    def forward(self, x: Tensor, tensors: Tensors) -> Tensor:
        """[batch, tokens, width in] to [batch, tokens, width out]."""
        ...

    def pull(self, x: Tensor, gradient: Tensor, tensors: Tensors, found: Gradients) -> Tensor:
        """The gradient of the input ``x`` from the output's; those of its tensors go into ``found``."""
        ...


@dataclass(frozen=True)
class Linear:
    """``y = W x + b``."""

    weight: str
    bias: str = ""

    def forward(self, x: Tensor, tensors: Tensors) -> Tensor:
        y = x @ tensors[self.weight].T
        return y + tensors[self.bias] if self.bias else y

    def pull(self, x: Tensor, gradient: Tensor, tensors: Tensors, found: Gradients) -> Tensor:
        rows = gradient.reshape(-1, gradient.shape[-1])
        found[self.weight] = rows.T @ x.reshape(-1, x.shape[-1])
        if self.bias:
            found[self.bias] = rows.sum(0)
        return gradient @ tensors[self.weight]


@dataclass(frozen=True)
class Norm:
    """Layer norm over the width: ``y = (x - mean) / sqrt(variance + eps) * w + b``."""

    weight: str
    bias: str
    eps: float

    def forward(self, x: Tensor, tensors: Tensors) -> Tensor:
        normal, _ = self._normal(x)
        y = normal * tensors[self.weight]
        return y + tensors[self.bias] if self.bias else y

    def pull(self, x: Tensor, gradient: Tensor, tensors: Tensors, found: Gradients) -> Tensor:
        normal, scale = self._normal(x)
        width = x.shape[-1]
        found[self.weight] = (gradient * normal).reshape(-1, width).sum(0)
        if self.bias:
            found[self.bias] = gradient.reshape(-1, width).sum(0)
        inner = gradient * tensors[self.weight]
        along = normal * (inner * normal).mean(-1, keepdim=True)
        return scale * (inner - inner.mean(-1, keepdim=True) - along)

    def _normal(self, x: Tensor) -> tuple[Tensor, Tensor]:
        centred = x - x.mean(-1, keepdim=True)
        scale = 1 / torch.sqrt((centred * centred).mean(-1, keepdim=True) + self.eps)
        return centred * scale, scale


@dataclass(frozen=True)
class Gelu:
    """``x * Phi(x)``, or its approximation by tanh."""

    tanh: bool = False

    def forward(self, x: Tensor, tensors: Tensors) -> Tensor:
        return x * self._share(x)

    def pull(self, x: Tensor, gradient: Tensor, tensors: Tensors, found: Gradients) -> Tensor:
        return gradient * (self._share(x) + x * self._slope(x))

    def _share(self, x: Tensor) -> Tensor:
        if self.tanh:
            return 0.5 * (1 + torch.tanh(self._bent(x)))
        return 0.5 * (1 + torch.erf(x * math.sqrt(0.5)))

    def _slope(self, x: Tensor) -> Tensor:
        """Derivative of ``_share``."""
        if self.tanh:
            tanh = torch.tanh(self._bent(x))
            return 0.5 * (1 - tanh * tanh) * math.sqrt(2 / math.pi) * (1 + 3 * 0.044715 * x * x)
        return torch.exp(-0.5 * x * x) * math.sqrt(0.5 / math.pi)

    def _bent(self, x: Tensor) -> Tensor:
        return math.sqrt(2 / math.pi) * (x + 0.044715 * x * x * x)


@dataclass(frozen=True)
class Merge:
    """Squares of neighbouring tokens side by side, as ``merge_tokens``."""

    side: int

    def forward(self, x: Tensor, tensors: Tensors) -> Tensor:
        return merge_tokens(x, self.side)

    def pull(self, x: Tensor, gradient: Tensor, tensors: Tensors, found: Gradients) -> Tensor:
        return split_tokens(gradient, self.side)


def layers_of(connector: nn.Module, prefix: str = "connector") -> list[Layer]:
    """The chain of a connector; empty for an identity.

    Args:
        connector: of any family.
        prefix: of its tensors' names.

    Raises:
        CheckpointError: a connector, or an activation in it, that no chain of known layers is.
    """
    if isinstance(connector, ShuffleConnector):
        norm = _layer(connector.norm, f"{prefix}.norm")
        return [*norm, Merge(connector.scale), *_layer(connector.proj, f"{prefix}.proj")]
    if not list(connector.children()):
        return _layer(connector, prefix)
    # An MLP, whatever its class is called: its children are run in the order in which they were registered.
    names = [name for name, _ in connector.named_children()]
    chain = names in (["linear_1", "act", "linear_2"], ["linear"]) or isinstance(connector, nn.Sequential)
    if not chain:
        raise _unknown(connector)
    return [
        layer for name, child in connector.named_children() for layer in _layer(child, f"{prefix}.{name}")
    ]


def forward(layers: Sequence[Layer], x: Tensor, tensors: Tensors) -> list[Tensor]:
    """What each layer takes, and what the last one makes."""
    states = [x]
    for layer in layers:
        states.append(layer.forward(states[-1], tensors))
    return states


def pull(layers: Sequence[Layer], states: Sequence[Tensor], gradient: Tensor, tensors: Tensors) -> Gradients:
    """Gradients of a chain's tensors from that of its output; ``states`` as ``forward`` returned them."""
    found: Gradients = {}
    for layer, x in zip(reversed(layers), reversed(states[:-1]), strict=True):
        gradient = layer.pull(x, gradient, tensors, found)
    return found


def _layer(module: nn.Module, name: str) -> list[Layer]:
    if isinstance(module, nn.Identity):
        return []
    bias = f"{name}.bias" if "bias" in dict(module.named_parameters()) else ""
    if isinstance(module, nn.Linear):
        return [Linear(f"{name}.weight", bias)]
    if isinstance(module, nn.LayerNorm) and module.elementwise_affine and len(module.normalized_shape) == 1:
        return [Norm(f"{name}.weight", bias, module.eps)]
    if isinstance(module, nn.GELU):
        return [Gelu(module.approximate == "tanh")]
    kind = type(module).__name__
    if kind == "GELUActivation":  # transformers' names
        return [Gelu()]
    if kind in ("GELUTanh", "PytorchGELUTanh"):
        return [Gelu(tanh=True)]
    raise _unknown(module)


def _unknown(module: nn.Module) -> CheckpointError:
    return CheckpointError(
        f"this checkpoint's connector has a {type(module).__name__}, whose gradient --trainable cannot write "
        "as a graph: it knows linear layers, layer norms, GELU and pixel shuffle; train the client partition "
        "with qtl-train client"
    )
