"""What goes into the fingerprint of a training run, piece by piece, to say what two sides differ in."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Any, BinaryIO, Final

import msgspec

from qtl_core.errors import CheckpointError
from qtl_core.messages import Hello, Part
from qtl_core.run_agreement import FILES
from qtl_training.recipe import Recipe, agreed_stages
from qtl_training.split.agreement import start_folder

_SIZE: Final = 8
_CHUNK: Final = 1 << 22


def parts(recipe: Recipe) -> tuple[Part, ...]:
    """The seed, every stage's settings, what is built, and every file of the checkpoint to start from.

    Raises:
        CheckpointError: a file of the checkpoint cannot be read.
    """
    found = [Part("the seed", _digest(recipe.seed))]
    for number, stage in enumerate(agreed_stages(recipe), 1):
        found.append(Part(f"the settings of stage {number}", _digest(stage)))
    found.append(Part("the model's settings", _digest([recipe.vision, recipe.model])))
    start = start_folder(recipe)
    for path in [] if start is None else [start / name for name in FILES]:
        if not path.is_file():
            continue
        try:
            with path.open("rb") as file:
                digest = _hash(file)
        except OSError as error:
            raise CheckpointError(f"{path} cannot be read: {error.strerror}") from error
        found.append(Part(f"{path.name} to start from", digest))
    return tuple(found)


def differing(hello: Hello, fingerprint: bytes, ours: Sequence[Part]) -> str:
    """Why a client with another fingerprint cannot train here.

    Args:
        hello: the client's.
        fingerprint: the server's.
        ours: the server's parts.
    """
    there, here = ({part.name: part.digest for part in side} for side in (hello.parts, ours))
    names = [*here, *(name for name in there if name not in here)]
    wrong = [name for name in names if there.get(name) != here.get(name)]
    remedy = "both need the same stages, seed and checkpoint to start from"
    if hello.parts and wrong:
        return f"client and server differ in {', '.join(wrong[:8])}: {remedy}"
    theirs, own = hello.fingerprint.hex(), fingerprint.hex()
    return f"the client's run has fingerprint {theirs}, this server's {own}: {remedy}"


def _digest(value: Any) -> bytes:
    return hashlib.sha256(msgspec.json.encode(value, order="sorted")).digest()[:_SIZE]


def _hash(file: BinaryIO) -> bytes:
    state = hashlib.sha256()
    while chunk := file.read(_CHUNK):
        state.update(chunk)
    return state.digest()[:_SIZE]
