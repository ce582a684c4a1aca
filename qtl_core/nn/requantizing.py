"""A checkpoint with another vision quantizer, to be trained."""

from __future__ import annotations

import dataclasses

import msgspec
import torch

from qtl_core.nn.checkpoint import Checkpoint, QuantizerSettings


def requantized(checkpoint: Checkpoint, vision: QuantizerSettings, seed: int) -> Checkpoint:
    """The checkpoint with another vision quantizer in place of its own, and no further ones.

    Of the same geometry it begins with the weights of the one before, and with its k at the new L.
    """
    torch.manual_seed(seed)
    before = checkpoint.model.vision_quantizer
    quantizer = vision.build(before.width)
    if (quantizer.code_dim, quantizer.merge) == (before.code_dim, before.merge):
        kept = {name: value for name, value in before.state_dict().items() if not name.startswith("k")}
        quantizer.load_state_dict(kept, strict=False)
        quantizer.k.data.copy_(before.k_for(vision.levels).detach().expand_as(quantizer.k))
    checkpoint.model.vision_quantizer = quantizer
    settings = msgspec.structs.replace(checkpoint.settings, vision=vision)
    return dataclasses.replace(checkpoint, settings=settings, further={})
