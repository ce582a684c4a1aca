"""A quantizer for a checkpoint that lies elsewhere: what ``qtl-train quantizer`` writes, whatever the family.

    config.json                           model_type qtl-quantizer; where the checkpoint is, and which one
    qtl.json, qtl.safetensors             the vision quantizer: its settings and weights
    entropy-L-levels.npz                  the entropy coder's tables for its codes
    card.json                             what it was made of, and its numbers

The checkpoint itself is neither changed nor copied: its decoder may be a thousand times as large. Its tower
and connector must be those whose features the quantizer was fitted to; the decoder may be another one.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgspec
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor

from qtl_core.errors import CheckpointError
from qtl_core.nn.families.base import (
    CONFIG_FILE,
    Checkpoint,
    Family,
    FurtherQuantizer,
    QuantizerSettings,
)
from qtl_core.nn.families.digits import SETTINGS_FILE, WEIGHTS_FILE
from qtl_core.nn.model import VisionEncoder
from qtl_core.nn.reading import first_line, read_json

MODEL_TYPE = "qtl-quantizer"


class Reference(msgspec.Struct, frozen=True, kw_only=True):
    """``config.json``.

    Attributes:
        model_type: ``MODEL_TYPE``.
        checkpoint: folder of the checkpoint, from this folder on or absolute, or a name that
            ``load_checkpoint`` knows.
        client: ``client_sha`` of its tower and connector.
    """

    model_type: str
    checkpoint: str
    client: str


def client_sha(vision: VisionEncoder) -> str:
    """SHA-256 of the weights of tower and connector; their order and names do not matter."""
    each = sorted(_sha(tensor) for tensor in vision.state_dict().values())
    return hashlib.sha256("".join(each).encode()).hexdigest()


def save_fitted(folder: Path, checkpoint: str | Path, base: Checkpoint, quantizer: FurtherQuantizer) -> None:
    """Writes a quantizer as ``load_checkpoint`` reads it; ``config.json`` comes last.

    Args:
        folder: there already.
        checkpoint: as the user named it.
        base: the checkpoint loaded.
        quantizer: fitted to features of it.
    """
    local = Path(checkpoint).is_dir()
    where = os.path.relpath(base.path.resolve(), folder.resolve()) if local else str(checkpoint)
    reference = Reference(model_type=MODEL_TYPE, checkpoint=where, client=client_sha(base.model.vision))
    state = {name: value.detach().cpu().contiguous() for name, value in quantizer.module.state_dict().items()}
    (folder / WEIGHTS_FILE).write_bytes(save(state))
    (folder / SETTINGS_FILE).write_bytes(_formatted(quantizer.settings))
    (folder / CONFIG_FILE).write_bytes(_formatted(reference))


def check_client(checkpoint: Checkpoint) -> None:
    """Makes sure that tower and connector are those that the checkpoint's quantizer was fitted to.

    ``load_checkpoint`` does so itself; this is for one that was read without weights and then got them.

    Raises:
        CheckpointError: they are others.
    """
    if checkpoint.fitted is not None:
        config = read_json(checkpoint.fitted / CONFIG_FILE)
        _check(checkpoint.fitted, msgspec.convert(config, Reference), checkpoint)


def _check(folder: Path, reference: Reference, base: Checkpoint) -> None:
    if client_sha(base.model.vision) != reference.client:
        raise CheckpointError(
            f"quantizer {folder} was fitted to another tower or connector than {base.path} has; "
            "make it again with qtl-train quantizer"
        )


def _claims(folder: Path, config: Mapping[str, Any]) -> bool:
    return config.get("model_type") == MODEL_TYPE


def _read(folder: Path, config: dict[str, Any], quantizer: str, load: bool) -> Checkpoint:
    # Imported here: checkpoints are read through the families, of which this is one.
    from qtl_core.nn.checkpoint import load_checkpoint

    if quantizer:
        raise CheckpointError(
            f"{folder} is one quantizer and has no {quantizer!r}; name the checkpoint it is for"
        )
    try:
        reference = msgspec.convert(config, Reference)
        settings = msgspec.json.decode((folder / SETTINGS_FILE).read_bytes(), type=QuantizerSettings)
        weights = load_file(folder / WEIGHTS_FILE)
    except (OSError, msgspec.MsgspecError, SafetensorError) as error:
        raise CheckpointError(
            f"quantizer {folder} cannot be read: {first_line(error)}; make it again"
        ) from error
    local = folder / reference.checkpoint
    try:
        base = load_checkpoint(local if local.is_dir() else reference.checkpoint, weights=load)
    except CheckpointError as error:
        raise CheckpointError(
            f"quantizer {folder} is for the checkpoint {reference.checkpoint!r}, which cannot be read "
            f"({error}); put it there, or its place into {folder / CONFIG_FILE}"
        ) from error
    if load:
        _check(folder, reference, base)
    base.model.vision_quantizer = _built(folder, settings, weights, base.model.decoder.width)
    return dataclasses.replace(
        base,
        settings=msgspec.structs.replace(base.settings, vision=settings),
        further={},
        fitted=folder,
    )


FAMILY = Family("fitted quantizer", MODEL_TYPE, _claims, _read)
"""A quantizer beside a checkpoint of any other family."""


def _built(folder: Path, settings: QuantizerSettings, weights: Mapping[str, Tensor], width: int) -> Any:
    module = settings.build(width)
    try:
        module.load_state_dict(dict(weights))
    except RuntimeError as error:
        raise CheckpointError(
            f"{folder / WEIGHTS_FILE} does not fit {SETTINGS_FILE} and features of width {width}: "
            f"{' '.join(str(error).split())}"
        ) from error
    return module.eval()


def _sha(tensor: Tensor) -> str:
    data = tensor.detach().cpu().contiguous()
    return hashlib.sha256(data.numpy().data).hexdigest()


def _formatted(value: msgspec.Struct) -> bytes:
    return json.dumps(msgspec.to_builtins(value), indent=2).encode() + b"\n"
