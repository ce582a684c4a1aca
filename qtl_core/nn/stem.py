"""A SigLIP tower with a convolutional stem, for towers too small to learn from raw patches.

transformers' ``SiglipVisionModel`` cuts the picture into patches with one strided convolution. At
two layers of 128 that is too little to read handwriting; this subclass puts a small residual
network (batch norm, ReLU) in its place and leaves everything after it untouched. The stem halves
the side once per entry of ``stem_widths`` and once more at the end, so ``patch_size`` must be
``2 ** (len(stem_widths) + 1)``.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from transformers import AutoConfig, AutoModel, SiglipVisionConfig, SiglipVisionModel


class SiglipStemVisionConfig(SiglipVisionConfig):
    """``SiglipVisionConfig`` and the stem's settings.

    Attributes:
        stem_widths: channels after each halving of the side.
        stem_blocks: residual blocks after each halving.
    """

    model_type = "siglip_stem_vision_model"

    stem_widths: list[int] | tuple[int, ...] = (24, 64, 128)
    stem_blocks: list[int] | tuple[int, ...] = (0, 1, 2)


class _Residual(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(width, width, 3, padding=1, bias=False),
            nn.BatchNorm2d(width),
            nn.ReLU(),
            nn.Conv2d(width, width, 3, padding=1, bias=False),
            nn.BatchNorm2d(width),
        )

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(x + self.body(x))


def _halve(width_in: int, width_out: int) -> list[nn.Module]:
    return [
        nn.Conv2d(width_in, width_out, 3, stride=2, padding=1, bias=False),
        nn.BatchNorm2d(width_out),
        nn.ReLU(),
    ]


class SiglipStemEmbeddings(nn.Module):
    """Picture [batch, channels, height, width] -> tokens [batch, tokens, hidden_size], positions added."""

    def __init__(self, config: SiglipStemVisionConfig) -> None:
        super().__init__()
        if config.patch_size != 2 ** (len(config.stem_widths) + 1):
            raise ValueError(
                f"patch_size {config.patch_size} does not fit {len(config.stem_widths)} stem widths: "
                f"it must be {2 ** (len(config.stem_widths) + 1)}"
            )
        layers: list[nn.Module] = []
        width = config.num_channels
        for width_out, blocks in zip(config.stem_widths, config.stem_blocks, strict=True):
            layers += _halve(width, width_out)
            layers += [_Residual(width_out) for _ in range(blocks)]
            width = width_out
        layers += _halve(width, config.hidden_size)
        self.stem = nn.Sequential(*layers)
        # transformers looks for this name when it asks a tower for its input layer.
        self.patch_embedding = nn.Conv2d(config.hidden_size, config.hidden_size, 1)
        tokens = (int(config.image_size) // int(config.patch_size)) ** 2  # type: ignore[arg-type]
        self.position_embedding = nn.Embedding(tokens, config.hidden_size)

    def forward(self, pixel_values: Tensor, interpolate_pos_encoding: bool | None = False) -> Tensor:
        if interpolate_pos_encoding:
            raise ValueError("this tower reads pictures of one size; interpolate_pos_encoding is not for it")
        tokens = self.patch_embedding(self.stem(pixel_values)).flatten(2).transpose(1, 2)
        out: Tensor = tokens + self.position_embedding.weight
        return out


class SiglipStemVisionModel(SiglipVisionModel):
    """``SiglipVisionModel`` whose patch embedding is a convolutional stem."""

    config_class = SiglipStemVisionConfig

    def __init__(self, config: SiglipStemVisionConfig) -> None:
        super().__init__(config)
        self.embeddings = SiglipStemEmbeddings(config)  # type: ignore[assignment]


def register() -> None:
    """Tells transformers' Auto classes about the stem tower; calling it again changes nothing."""
    AutoConfig.register(SiglipStemVisionConfig.model_type, SiglipStemVisionConfig, exist_ok=True)
    AutoModel.register(SiglipStemVisionConfig, SiglipStemVisionModel, exist_ok=True)
