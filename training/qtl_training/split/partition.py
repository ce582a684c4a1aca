"""Which weights are the client's."""

from __future__ import annotations

from torch import Tensor

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
