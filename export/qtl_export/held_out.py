"""Pictures and questions to validate on: the checkpoint's held-out ones, the user's own, or made-up ones."""

from __future__ import annotations

import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt
from PIL import Image

from edge_runtime import picture
from edge_runtime.picture import Pixels
from edge_runtime.picture_folder import pictures_in
from qtl_core import bundle
from qtl_core.errors import CheckpointError, PictureError

FILE: Final = "held_out.npz"
"""In a checkpoint: ``pictures`` uint8 [n, h, w, 3]; ``questions``, ``answers`` (fixed-length unicode) and
``scene`` (index of the picture), one of each per question."""
# Asked where no questions are known: the answers are compared, not judged.
_ASKED: Final = "what is in the picture?"
_ASKED_PICTURES: Final = 4


@dataclass(frozen=True)
class Question:
    """A question about ``pictures[picture]``, and its answer where that is known."""

    picture: int
    text: str
    answer: str | None


@dataclass(frozen=True, eq=False)
class HeldOut:
    """What to validate on.

    Attributes:
        pictures: uint8 [n, height, width, 3], as the graph takes them.
        questions: about some of them.
        originals: how many of the pictures are as they were found; the rest are variants of these.
        source: where they come from, for people.
    """

    pictures: Pixels
    questions: tuple[Question, ...]
    originals: int
    source: str


def gather(checkpoint: Path, folder: Path | None, spec: bundle.Picture, n: int, seed: int = 0) -> HeldOut:
    """Exactly ``n`` pictures, and at most ``n`` questions.

    Args:
        checkpoint: the checkpoint's folder, which may hold ``held_out.npz``.
        folder: the user's pictures; None for the checkpoint's.
        spec: what the graph takes.
        n: how many pictures.
        seed: of variants and made-up pictures.

    Raises:
        PictureError: ``folder`` holds no picture, or a broken one.
        CheckpointError: ``held_out.npz`` is damaged.
    """
    rng = np.random.default_rng(seed)
    real = _real(checkpoint, folder, spec, n)
    questions: Sequence[Question] = ()
    if real is None:
        found, source = _made_up(spec, n, rng), "made-up pictures (noise and soft blobs), no real ones"
    else:
        found, questions, source = real
    asked = [question for question in questions if question.picture < len(found)]
    if not asked:
        asked = [Question(index, _ASKED, None) for index in range(min(_ASKED_PICTURES, len(found)))]
    if len(asked) > n:
        # Evenly over the whole list, which may be sorted by picture or by kind.
        asked = [asked[index] for index in np.linspace(0, len(asked) - 1, n).astype(int)]
    pictures = _with_variants(found, n, rng)
    return HeldOut(pictures, tuple(asked), len(found), source)


def originals(
    checkpoint: Path, folder: Path | None, spec: bundle.Picture, n: int
) -> tuple[Pixels, str] | None:
    """At most ``n`` real pictures as they were found, and where; None if there are none.

    Args:
        checkpoint: the checkpoint's folder, which may hold ``held_out.npz``.
        folder: the user's pictures; None for the checkpoint's.
        spec: what the graph takes.
        n: how many pictures at most.

    Raises:
        PictureError: ``folder`` holds no picture, or a broken one.
        CheckpointError: ``held_out.npz`` is damaged.
    """
    real = _real(checkpoint, folder, spec, n)
    return None if real is None else (real[0], real[2])


def others(given: HeldOut, n: int, seed: int = 1) -> Pixels:
    """``n`` further variants of the given originals, none of which is among the given pictures."""
    found = given.pictures[: given.originals]
    return _with_variants(found, len(found) + n, np.random.default_rng(seed))[len(found) :]


def _real(
    checkpoint: Path, folder: Path | None, spec: bundle.Picture, n: int
) -> tuple[Pixels, Sequence[Question], str] | None:
    if folder is not None:
        return pictures_in(folder, spec, n), (), "pictures of the user"
    if (checkpoint / FILE).is_file():
        found, questions = _from_checkpoint(checkpoint / FILE, spec)
        return found[:n], questions, f"{FILE} of the checkpoint"
    return None


def _from_checkpoint(path: Path, spec: bundle.Picture) -> tuple[Pixels, list[Question]]:
    try:
        # Opened here: numpy leaves a damaged file open that it opened itself.
        with path.open("rb") as stream, np.load(stream, allow_pickle=False) as file:
            arrays: dict[str, npt.NDArray[Any]] = {name: np.asarray(file[name]) for name in file.files}
        pictures = np.stack([picture.prepare(one, spec) for one in arrays["pictures"]])
        columns = (arrays["scene"].tolist(), arrays["questions"].tolist(), arrays["answers"].tolist())
        questions = [
            Question(int(scene), str(text), str(answer)) for scene, text, answer in zip(*columns, strict=True)
        ]
    except (OSError, ValueError, KeyError, TypeError, EOFError, zipfile.BadZipFile, PictureError) as error:
        raise CheckpointError(
            f"{path} cannot be used ({error}); remove it, or validate on your own with --pictures"
        ) from error
    if any(not 0 <= question.picture < len(pictures) for question in questions):
        raise CheckpointError(f"{path} asks about pictures it does not hold; remove it, or use --pictures")
    return pictures, questions


def _made_up(spec: bundle.Picture, n: int, rng: np.random.Generator) -> Pixels:
    """Half noise, half soft blobs of colour."""
    pictures = rng.integers(0, 256, (n, spec.height, spec.width, 3), dtype=np.uint8)
    for index in range(0, n, 2):
        small = Image.fromarray(rng.integers(0, 256, (5, 5, 3), dtype=np.uint8))
        pictures[index] = np.asarray(small.resize((spec.width, spec.height), Image.Resampling.BICUBIC))
    return pictures


def _with_variants(originals: Pixels, n: int, rng: np.random.Generator) -> Pixels:
    """The originals, and flipped, moved, brighter and darker ones of them up to ``n``."""
    pictures = np.empty((n, *originals.shape[1:]), dtype=np.uint8)
    pictures[: len(originals)] = originals
    for index in range(len(originals), n):
        source = originals[index % len(originals)]
        moved = np.roll(source, rng.integers(-8, 9, 2), axis=(0, 1))
        flipped = moved[:, ::-1] if rng.random() < 0.5 else moved
        light = rng.uniform(0.7, 1.3) * flipped.astype(np.float32) + rng.uniform(-20, 20)
        pictures[index] = np.clip(light, 0, 255).astype(np.uint8)
    return pictures
