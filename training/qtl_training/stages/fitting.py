"""Fits a vision quantizer to features at the start of a stage."""

from __future__ import annotations

from functools import partial
from typing import Final, Literal

from torch import Tensor

from qtl_core.nn.quantizer import Quantizer
from qtl_training.stages.independence import independent

Rotation = Literal["random", "independent"]

PICTURES: Final = 3072
"""That a fit takes at most: with more it hardly changes."""


def fit(quantizer: Quantizer, features: Tensor, rotation: Rotation, seed: int) -> None:
    """Initialises a quantizer's projections and statistics in closed form.

    Args:
        quantizer: changed in place.
        features: at the cut, float [pictures, tokens, width].
        rotation: of the principal directions: "random" or "independent".
        seed: of the rotation.
    """
    chosen = {"rotate": partial(independent, seed=seed)} if rotation == "independent" else {}
    quantizer.fit(features, seed=seed, **chosen)
