"""Which weights are whose, and taking over those that come from the other side."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from safetensors import SafetensorError
from safetensors.torch import load
from torch import Tensor

from qtl_core.errors import MalformedMessage
from qtl_core.nn.model import SplitModel

_OF_CLIENT = ("in_proj.", "k", "mean", "std")


def client_tensors(model: SplitModel) -> dict[str, Tensor]:
    """What the client trains or follows, by name: connector, and the quantizer's encoder with its statistics.

    The tensors share their memory with the model. The tower is not among them: it does not learn.
    """
    found = {f"connector.{name}": value for name, value in model.vision.connector.state_dict().items()}
    for name, value in model.vision_quantizer.state_dict().items():
        if name != "k_levels" and name.startswith(_OF_CLIENT):
            found[f"vision_quantizer.{name}"] = value
    return found


def server_tensors(model: SplitModel) -> dict[str, Tensor]:
    """The decoder half of the vision quantizer, by name; they share their memory with the model."""
    return {
        f"vision_quantizer.{name}": value
        for name, value in model.vision_quantizer.state_dict().items()
        if name.startswith("out_proj.")
    }


def take(data: bytes, into: Mapping[str, Tensor]) -> None:
    """Copies a peer's tensors over those of the model.

    Args:
        data: safetensors.
        into: the model's tensors by name: all that must come.

    Raises:
        MalformedMessage: no safetensors, other names or shapes, or a number that is not finite.
    """
    try:
        tensors = load(data)
    except SafetensorError as error:
        raise MalformedMessage(f"the client's weights are no safetensors: {error}") from error
    wrong = [
        name
        for name in sorted({*into, *tensors})
        if name not in into or name not in tensors or into[name].shape != tensors[name].shape
    ]
    if wrong or not all(torch.isfinite(value).all() for value in tensors.values()):
        raise MalformedMessage(
            f"the client's weights do not fit this model: {', '.join(wrong[:5]) or 'not finite'}"
        )
    with torch.no_grad():
        for name, tensor in into.items():
            tensor.copy_(tensors[name])
