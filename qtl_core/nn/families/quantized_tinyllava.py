"""Quantized-TinyLLaVA's staged folders (arXiv 2511.23402): TinyLLaVA Factory's and the quantizers.

    config.json                           as TinyLLaVA Factory's, and vq_type, discrete_size
    language_model/, vision_tower/, connector/
    VQ_VAE/                               both quantizers, of picture and text, in one file

The quantizer is the paper's: scaling over the whole picture, k = 3, ``discrete_size`` levels.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgspec

from qtl_core.codes import MAX_LEVELS, MIN_LEVELS
from qtl_core.errors import CheckpointError
from qtl_core.nn.families import tinyllava
from qtl_core.nn.families.base import Checkpoint, Family, QuantizerSettings
from qtl_core.nn.quantizer import Quantizer
from qtl_core.nn.weights import Weights, fill

NAME = "quantized-tinyllava"
FOLDER = "VQ_VAE"
_KIND = "FSQ"
_PREFIXES = {"quantizer_image.quantizer.": "vision", "quantizer_text.quantizer.": "language"}


def _claims(folder: Path, config: Mapping[str, Any]) -> bool:
    return tinyllava.claims(folder, config) and ("vq_type" in config or (folder / FOLDER).is_dir())


def _read(folder: Path, config: dict[str, Any], quantizer: str, load: bool) -> Checkpoint:
    kind, levels = config.get("vq_type"), config.get("discrete_size")
    if kind != _KIND:
        raise CheckpointError(f"checkpoint {folder}: vq_type {kind!r} is not supported; known here: {_KIND}")
    if not isinstance(levels, int) or not MIN_LEVELS <= levels <= MAX_LEVELS:
        raise CheckpointError(
            f"checkpoint {folder}: discrete_size {levels!r} is no number of levels from "
            f"{MIN_LEVELS} to {MAX_LEVELS}"
        )
    if not (folder / FOLDER).is_dir():
        raise CheckpointError(
            f"checkpoint {folder} has no {FOLDER}/, its quantizers; is the download complete?"
        )
    checkpoint = tinyllava.read(folder, config, quantizer, load, NAME)
    weights = Weights(folder / FOLDER)
    width = checkpoint.model.decoder.width
    settings = {part: _settings(weights, prefix, levels) for prefix, part in _PREFIXES.items()}
    modules = {part: one.build(width) for part, one in settings.items()}
    fill(_projections(modules), {FOLDER: weights}, {FOLDER: _place}, load=load)
    checkpoint.model.vision_quantizer = modules["vision"].eval()
    checkpoint.model.language_quantizer = modules["language"].eval()
    return dataclasses.replace(checkpoint, settings=msgspec.structs.replace(checkpoint.settings, **settings))


FAMILY = Family(NAME, "tinyllava", _claims, _read)
"""Quantized-TinyLLaVA."""


def _settings(weights: Weights, prefix: str, levels: int) -> QuantizerSettings:
    name = f"{prefix}in_proj.weight"
    if name not in weights:
        raise CheckpointError(f"checkpoint {weights.folder} lacks {name}; is the download complete?")
    return QuantizerSettings(code_dim=weights.shape(name)[0], levels=levels)


def _projections(modules: Mapping[str, Quantizer]) -> dict[str, Any]:
    """What the file holds of a quantizer; the rest are settings."""
    return {
        f"{part}.{name}": getattr(module, name)
        for part, module in modules.items()
        for name in ("in_proj", "out_proj")
    }


def _place(name: str) -> str | None:
    for prefix, part in _PREFIXES.items():
        if name.startswith(prefix):
            return f"{part}.{name.removeprefix(prefix)}"
    return None
