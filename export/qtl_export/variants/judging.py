"""A variant beside PyTorch in fp32: codes that differ, what that does to answers, and how fast it is."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import msgspec
import numpy as np

from edge_runtime.encoder import Encoder
from edge_runtime.golden import Bounds, Difference, difference
from edge_runtime.picture import Pixels
from qtl_core.bundle import Cut
from qtl_export.answers import Answers
from qtl_export.progress import Progress
from qtl_export.variants.bounds import answers_lost

_ROUNDS = 8
"""Pictures that are timed at least, in turns with the fp32 graph; more where that takes under a second."""
_MOST_ROUNDS = 50

Ask = Callable[[list[bytes]], Answers]
"""Answers to all questions from the payloads of all pictures."""


@dataclass(frozen=True, eq=False)
class Yardstick:
    """What variants are held against.

    Attributes:
        cut: what crosses.
        pictures: uint8 [n, height, width, 3].
        payloads: what PyTorch makes of each in fp32.
        full: the fp32 graph, to time beside.
        right: known answers that the fp32 graph's payloads get right; None where none is known.
        ask: asks the server half; None where there is nothing to ask it.
    """

    cut: Cut
    pictures: Pixels
    payloads: list[bytes]
    full: Encoder
    right: int | None
    ask: Ask | None


class Measured(msgspec.Struct, frozen=True, kw_only=True):
    """What one variant came to.

    Attributes:
        pictures: how many it encoded, one at a time (or by its fixed batch).
        compared: codes (or features) beside PyTorch's in fp32.
        differ: how many are not the same; of features, how many are off by more than ``FEATURE_BOUND``.
        share: of them.
        largest: the largest difference, in levels; of features, over the largest feature.
        ms: milliseconds of the fastest picture, on the exporting machine: the one that least else disturbed.
        full_ms: the fp32 graph's, in turns with it.
        bytes: of the graph and its weights.
        answers_asked: how many questions were asked of its payloads.
        answers_differ: how many answers are not those from PyTorch's codes.
        answers_known: how many have a known answer.
        right: of these, answered right from its payloads.
        full_right: of these, answered right from the fp32 graph's.
        faults: what is over its bound, each in a few words.
    """

    pictures: int
    compared: int
    differ: int
    share: float
    largest: float
    ms: float
    full_ms: float
    bytes: int
    answers_asked: int
    answers_differ: int
    answers_known: int
    right: int | None
    full_right: int | None
    faults: tuple[str, ...]

    @property
    def over_full(self) -> float:
        """Its time over the fp32 graph's."""
        return self.ms / self.full_ms


def judge(
    encoder: Encoder,
    yardstick: Yardstick,
    bounds: Bounds,
    *,
    name: str,
    batch: int,
    size: int,
    progress: Progress,
    clock: Callable[[], float] = time.perf_counter,
) -> Measured:
    """Encodes every picture and asks every question.

    Args:
        encoder: of the variant.
        yardstick: what to hold it against.
        bounds: how far codes may be.
        name: of the variant, for the progress bar.
        batch: pictures it takes at once.
        size: bytes of the graph and its weights.
        progress: where to show how far it is.
        clock: seconds.
    """
    pictures = yardstick.pictures
    ms, full_ms = _timed(encoder, yardstick, batch, clock)
    payloads: list[bytes] = []
    for start in progress.bar(
        range(0, len(pictures), batch), f"validating {name}", len(pictures), "pictures", batch
    ):
        payloads += encoder.run(np.ascontiguousarray(pictures[start : start + batch]))
    apart = difference(yardstick.cut, yardstick.payloads, payloads)
    answers = None if yardstick.ask is None else yardstick.ask(payloads)
    return Measured(
        pictures=len(pictures),
        compared=apart.compared,
        differ=apart.differ,
        share=apart.share,
        largest=apart.largest,
        ms=ms,
        full_ms=full_ms,
        bytes=size,
        answers_asked=0 if answers is None else answers.asked,
        answers_differ=0 if answers is None else answers.differ,
        answers_known=0 if answers is None else answers.known,
        right=None if answers is None else answers.right,
        full_right=yardstick.right,
        faults=tuple(_faults(apart, answers, yardstick, bounds)),
    )


def _timed(
    encoder: Encoder, yardstick: Yardstick, batch: int, clock: Callable[[], float]
) -> tuple[float, float]:
    """Milliseconds of the fastest picture of the variant and of fp32, in turns; each runs once before."""
    seconds: dict[Encoder, list[float]] = {encoder: [], yardstick.full: []}
    pictures = yardstick.pictures
    begun = clock()
    for number in range(-1, _MOST_ROUNDS):
        if number >= _ROUNDS and clock() - begun > 1:
            break
        part = np.repeat(pictures[max(number, 0) % len(pictures)][np.newaxis], batch, axis=0)
        for one, times in seconds.items():
            start = clock()
            one.run(part)
            if number >= 0:
                times.append(1000 * (clock() - start) / batch)
    return min(seconds[encoder]), min(seconds[yardstick.full])


def _faults(apart: Difference, answers: Answers | None, yardstick: Yardstick, bounds: Bounds) -> list[str]:
    found = apart.fault(yardstick.cut, bounds)
    faults = [found] if found else []
    if answers is not None and answers.right is not None and yardstick.right is not None:
        least = yardstick.right - answers_lost(answers.known)
        if answers.right < least:
            faults.append(
                f"{answers.right} of {answers.known} answers are right, {yardstick.right} are in fp32 and "
                f"{least} must be"
            )
    return faults


def as_measured(one: Measured) -> dict[str, Any]:
    """The numbers as the manifest has them."""
    found: dict[str, Any] = msgspec.to_builtins(one)
    return found
