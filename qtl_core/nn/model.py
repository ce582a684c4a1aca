"""A vision-language model cut after its connector, with a quantizer for each modality at the cut."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from qtl_core.errors import CheckpointError
from qtl_core.nn.decoder import PictureDecoder
from qtl_core.nn.quantizer import Quantizer


@dataclass(frozen=True, kw_only=True)
class TowerSettings:
    """How a picture becomes the connector's input.

    Attributes:
        mean, std: per-channel normalisation of values in 0..1.
        feature_layer: which hidden state of the tower the connector reads; of several, side by side.
        feature_select: "full", or "default" to drop the first token (a class token).
        final_norm: whether the last hidden state is read behind the tower's last norm.
    """

    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    feature_layer: int | tuple[int, ...]
    feature_select: str
    final_norm: bool = False


_MISSING = {
    "vision_quantizer": "this checkpoint has no vision quantizer, and codes need one: fit one to pictures "
    "with qtl-export --calibrate DIR, or export it unquantized with --bits 16",
    "language_quantizer": "this checkpoint has no language quantizer, and questions as codes need one: "
    "let questions cross as text (--text plain)",
}


class VisionEncoder(nn.Module):
    """Vision tower and connector: picture in, features at the cut out.

    Args:
        tower: a transformers vision model.
        connector: the module after it.
        settings: normalisation and choice of layer.
    """

    pixel_mean: Tensor
    pixel_std: Tensor

    def __init__(self, tower: PreTrainedModel, connector: nn.Module, settings: TowerSettings) -> None:
        super().__init__()
        self.tower, self.connector, self.settings = tower, connector, settings
        self.register_buffer("pixel_mean", torch.tensor(settings.mean)[:, None, None] * 255, persistent=False)
        self.register_buffer("pixel_std", torch.tensor(settings.std)[:, None, None] * 255, persistent=False)

    def tower_features(self, picture: Tensor) -> Tensor:
        """Hidden states the connector reads, [batch, tokens, tower width], of uint8 [batch, h, w, 3]."""
        pixels = (picture.permute(0, 3, 1, 2).to(self.pixel_mean.dtype) - self.pixel_mean) / self.pixel_std
        layer = self.settings.feature_layer
        chosen: Tensor
        if self.settings.final_norm:
            chosen = self.tower(pixel_values=pixels).last_hidden_state
        else:
            states = self.tower(pixel_values=pixels, output_hidden_states=True).hidden_states
            chosen = (
                states[layer] if isinstance(layer, int) else torch.cat([states[one] for one in layer], dim=-1)
            )
        return chosen[:, 1:] if self.settings.feature_select == "default" else chosen

    def forward(self, picture: Tensor) -> Tensor:
        """Features at the cut, [batch, picture tokens, width], of uint8 [batch, h, w, 3]."""
        features: Tensor = self.connector(self.tower_features(picture))
        return features


class SplitModel(nn.Module):
    """Both sides of the cut in one process: what is trained locally, and what is exported.

    Args:
        vision: tower and connector (the device's).
        vision_quantizer: at the cut, for picture features; None where the checkpoint has none (yet).
        decoder: the language model (the server's).
        language_quantizer: at the cut, for question embeddings (``text = "codes"``); None likewise.

    Asking for a quantizer that is not there raises ``CheckpointError``; setting one makes it there.
    """

    vision_quantizer: Quantizer
    language_quantizer: Quantizer

    def __init__(
        self,
        vision: VisionEncoder,
        vision_quantizer: Quantizer | None,
        decoder: PictureDecoder,
        language_quantizer: Quantizer | None,
    ) -> None:
        super().__init__()
        self.vision = vision
        if vision_quantizer is not None:
            self.vision_quantizer = vision_quantizer
        self.decoder = decoder
        if language_quantizer is not None:
            self.language_quantizer = language_quantizer

    @property
    def quantized(self) -> bool:
        """Whether there is a vision quantizer."""
        return "vision_quantizer" in self._modules

    def __getattr__(self, name: str) -> Any:
        # What nn.Module asks where a name is no plain attribute, so for every submodule.
        if name in _MISSING and name not in self._modules:
            raise CheckpointError(_MISSING[name])
        return super().__getattr__(name)

    def cross(self, features: Tensor, levels: int | None) -> tuple[Tensor, Tensor]:
        """What the server sees of picture features at ``levels`` (None: unquantized), and the distortion."""
        if levels is None:
            return features, features.new_zeros(())
        restored, loss = self.vision_quantizer(features, levels)
        return restored, loss
