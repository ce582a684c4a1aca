"""Checkpoints of every known family: a folder (or an id of the hub) in, one ``Checkpoint`` out."""

from __future__ import annotations

from pathlib import Path

from qtl_core.errors import CheckpointError
from qtl_core.nn.families import family_of
from qtl_core.nn.families.base import (
    CONFIG_FILE,
    Checkpoint,
    FurtherQuantizer,
    QuantizerSettings,
    Settings,
)
from qtl_core.nn.families.digits import (
    QUANTIZERS_FOLDER,
    SETTINGS_FILE,
    WEIGHTS_FILE,
    assemble,
    save_checkpoint,
    save_quantizer,
)
from qtl_core.nn.hub import checkpoint_folder
from qtl_core.nn.prompts import IMAGE_TOKEN
from qtl_core.nn.reading import read_json
from qtl_core.nn.stored import load_weights

__all__ = [
    "Checkpoint",
    "FurtherQuantizer",
    "QuantizerSettings",
    "Settings",
    "load_checkpoint",
    "save_checkpoint",
    "save_quantizer",
    "assemble",
    "load_client",
    "decoder_bytes",
    "IMAGE_TOKEN",
    "QUANTIZERS_FOLDER",
    "SETTINGS_FILE",
    "WEIGHTS_FILE",
]


def load_checkpoint(path: str | Path, *, quantizer: str = "", weights: bool = True) -> Checkpoint:
    """Reads a checkpoint folder.

    Args:
        path: the folder, of any family in ``qtl_core.nn.families``, or ``org/name`` or ``org/name@revision``
            on the Hugging Face hub (``qtl_core.nn.hub``).
        quantizer: name of one of its further vision quantizers, which then takes the place of the
            checkpoint's own.
        weights: whether to load them. Without, names and shapes are checked and most parameters stay
            without memory (on PyTorch's meta device), so that any size can be looked at; ``load_client``
            loads what the device needs.

    Raises:
        CheckpointError: if a file is missing or damaged, there is no quantizer of that name, the
            model is of another family, or the hub does not give it.
    """
    folder = checkpoint_folder(path)
    if not folder.is_dir():
        raise CheckpointError(f"no checkpoint at {folder}: it must be a folder with config.json in it")
    if not (folder / CONFIG_FILE).is_file():
        raise CheckpointError(f"checkpoint {folder} has no {CONFIG_FILE}; is the download complete?")
    config = read_json(folder / CONFIG_FILE)
    return family_of(folder, config).read(folder, config, quantizer, weights)


def load_client(checkpoint: Checkpoint) -> None:
    """Loads all weights but the language model's, which stay in their files, where none were loaded."""
    load_weights(checkpoint.model, but=checkpoint.model.decoder.language_model)


def decoder_bytes(checkpoint: Checkpoint) -> int:
    """Bytes of the language model in float32, whether it is loaded or not."""
    return sum(4 * tensor.numel() for tensor in checkpoint.model.decoder.language_model.parameters())
