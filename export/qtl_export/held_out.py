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

from edge_runtime import picture, tiles
from edge_runtime.picture import Pixels, Source
from edge_runtime.picture_folder import inputs_of, paths_in
from edge_runtime.tiles import Tiled
from qtl_core import bundle
from qtl_core.errors import CheckpointError, PictureError

FILE: Final = "held_out.npz"
"""In a checkpoint: ``pictures`` uint8 [n, h, w, 3]; ``questions``, ``answers`` (fixed-length unicode) and
``scene`` (index of the picture), one of each per question."""

# Asked where no questions are known: the answers are compared, not judged.
_ASKED: Final = "what is in the picture?"
_ASKED_PICTURES: Final = 4


# Sides of made-up pictures that are cut into tiles, in tiles.
_SHAPES: Final = ((1.0, 1.0), (2.5, 1.7), (1.3, 3.0), (0.6, 0.9))


@dataclass(frozen=True)
class Span:
    """Where a whole picture is among the graph's inputs.

    Attributes:
        first: its first input.
        tiles: how many it has.
        size: its width and height in pixels, where pictures are cut into tiles.
    """

    first: int
    tiles: int = 1
    size: tuple[int, int] | None = None


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
        pictures: uint8 [n, height, width, 3], as the graph takes them; tiles, where pictures are cut.
        questions: about some of them.
        originals: how many of the pictures are as they were found; the rest are variants of these.
        source: where they come from, for people.
        spans: whole pictures, which questions count.
    """

    pictures: Pixels
    questions: tuple[Question, ...]
    originals: int
    source: str
    spans: tuple[Span, ...]


def gather(checkpoint: Path, folder: Path | None, spec: bundle.Picture, n: int, seed: int = 0) -> HeldOut:
    """Exactly ``n`` pictures, and at most ``n`` questions.

    Of pictures that are cut into tiles there are no variants, and so fewer where fewer are found.

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
    real = _real(checkpoint, folder, spec)
    questions: Sequence[Question] = ()
    sources: Sequence[Source]
    if real is None:
        sources, source = _made_up(spec, n, rng), "made-up pictures (noise and soft blobs), no real ones"
    else:
        sources, questions, source = real
    seen = [tiles.prepare(one, spec) for one in sources[:n]]
    spans = _spans(seen, spec)
    found = np.concatenate([one.tiles for one in seen])
    asked = [question for question in questions if question.picture < len(spans)]
    if not asked:
        asked = [Question(index, _ASKED, None) for index in range(min(_ASKED_PICTURES, len(spans)))]
    if len(asked) > n:
        # Evenly over the whole list, which may be sorted by picture or by kind.
        asked = [asked[index] for index in np.linspace(0, len(asked) - 1, n).astype(int)]
    if spec.tiled:
        return HeldOut(found, tuple(asked), len(found), source, spans)
    pictures = _with_variants(found, n, rng)
    return HeldOut(pictures, tuple(asked), len(found), source, tuple(Span(at) for at in range(n)))


def originals(
    checkpoint: Path, folder: Path | None, spec: bundle.Picture, n: int
) -> tuple[Pixels, str] | None:
    """At most ``n`` inputs of the graph from real pictures as they were found; None if there are none.

    They are as many pictures, or tiles of at most as many, the same number of each.

    Args:
        checkpoint: the checkpoint's folder, which may hold ``held_out.npz``.
        folder: the user's pictures; None for the checkpoint's.
        spec: what the graph takes.
        n: how many inputs at most.

    Returns:
        uint8 [inputs, height, width, 3], and where they are from.

    Raises:
        PictureError: ``folder`` holds no picture, or a broken one.
        CheckpointError: ``held_out.npz`` is damaged.
    """
    real = _real(checkpoint, folder, spec)
    return None if real is None else (inputs_of(real[0], spec, n), real[2])


def others(given: HeldOut, n: int, seed: int = 1) -> Pixels:
    """``n`` further variants of the given originals, none of which is among the given pictures."""
    found = given.pictures[: given.originals]
    return _with_variants(found, len(found) + n, np.random.default_rng(seed))[len(found) :]


def _spans(seen: Sequence[Tiled], spec: bundle.Picture) -> tuple[Span, ...]:
    starts = np.cumsum([0, *(len(one.tiles) for one in seen)]).tolist()
    sizes = [one.size if spec.tiled else None for one in seen]
    return tuple(
        Span(start, len(one.tiles), size) for start, one, size in zip(starts, seen, sizes, strict=False)
    )


def _real(
    checkpoint: Path, folder: Path | None, spec: bundle.Picture
) -> tuple[Sequence[Source], Sequence[Question], str] | None:
    if folder is not None:
        return paths_in(folder), (), "pictures of the user"
    if (checkpoint / FILE).is_file():
        found, questions = _from_checkpoint(checkpoint / FILE, spec)
        return found, questions, f"{FILE} of the checkpoint"
    return None


def _from_checkpoint(path: Path, spec: bundle.Picture) -> tuple[list[Source], list[Question]]:
    try:
        # Opened here: numpy leaves a damaged file open that it opened itself.
        with path.open("rb") as stream, np.load(stream, allow_pickle=False) as file:
            arrays: dict[str, npt.NDArray[Any]] = {name: np.asarray(file[name]) for name in file.files}
        pictures: list[Source] = [picture.decode(one, spec.max_pixels) for one in arrays["pictures"]]
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


def _made_up(spec: bundle.Picture, n: int, rng: np.random.Generator) -> list[Source]:
    """Half noise, half soft blobs of colour; of several shapes where pictures are cut into tiles."""
    made: list[Source] = []
    if spec.tiled:
        for index in range(n):
            across, down = _SHAPES[index % len(_SHAPES)]
            two = _noise_and_blobs(round(across * spec.width), round(down * spec.height), 2, rng)
            made.append(two[index // len(_SHAPES) % 2])
        return made
    return list(_noise_and_blobs(spec.width, spec.height, n, rng))


def _noise_and_blobs(width: int, height: int, n: int, rng: np.random.Generator) -> Pixels:
    pictures = rng.integers(0, 256, (n, height, width, 3), dtype=np.uint8)
    for index in range(0, n, 2):
        small = Image.fromarray(rng.integers(0, 256, (5, 5, 3), dtype=np.uint8))
        pictures[index] = np.asarray(small.resize((width, height), Image.Resampling.BICUBIC))
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
