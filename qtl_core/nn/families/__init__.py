"""Families of checkpoints: one file each, chosen by the checkpoint's own configuration.

A family reads its folder into ``base.Checkpoint``, and nothing downstream asks which one it was. To add one,
write its file and put its ``FAMILY`` into ``FAMILIES``.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from qtl_core.errors import CheckpointError
from qtl_core.nn.families import (
    digits,
    fitted,
    idefics3,
    llava,
    onevision,
    paligemma,
    quantized_tinyllava,
    tinyllava,
)
from qtl_core.nn.families.base import Family

FAMILIES: tuple[Family, ...] = (
    digits.FAMILY,
    llava.FAMILY,
    onevision.FAMILY,
    idefics3.IDEFICS3,
    idefics3.SMOLVLM,
    paligemma.FAMILY,
    quantized_tinyllava.FAMILY,
    tinyllava.FAMILY,
    fitted.FAMILY,
)
"""Asked in this order; the first that claims a folder reads it."""


def family_of(folder: Path, config: dict[str, Any]) -> Family:
    """The family of a checkpoint.

    Args:
        folder: the checkpoint.
        config: its ``config.json``.

    Raises:
        CheckpointError: none that is known here; the message lists these.
    """
    for family in FAMILIES:
        if family.claims(folder, config):
            return family
    known = dict.fromkeys(repr(family.model_type) for family in FAMILIES)
    raise CheckpointError(
        f"checkpoint {folder} is of the family {config.get('model_type')!r}; known here: {', '.join(known)}"
    )
