"""Decoder layers whose insides are computed a second time for the gradients, instead of being kept."""

from __future__ import annotations

from typing import Any

from qtl_core.errors import RecipeError
from qtl_core.nn.decoder import PictureDecoder

# transformers 5 calls activation checkpointing what was gradient checkpointing before.
_NAMES = ("activation_checkpointing", "gradient_checkpointing")


def recompute(decoder: PictureDecoder, on: bool) -> None:
    """Begins or ends checkpointing (``torch.utils.checkpoint``) of the decoder's layers.

    Raises:
        RecipeError: the language model's class cannot do it.
    """
    model: Any = decoder.language_model
    name = next(name for name in _NAMES if hasattr(model, f"{name}_enable"))
    if not on:
        getattr(model, f"{name}_disable")()
        return
    try:
        getattr(model, f"{name}_enable")({"use_reentrant": False})
    except ValueError as error:
        kind = type(model).__name__
        raise RecipeError(f"checkpointing: {kind} cannot do it; remove it from the recipe") from error
