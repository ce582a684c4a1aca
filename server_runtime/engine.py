"""The seam between the front, which knows sockets, and whatever computes answers.

An engine takes what crossed the cut and returns text, piece by piece. It knows nothing of sessions, sockets
or bytes, so that it can be this process, another process or another machine. :class:`FakeEngine` lives
beside the interface: tests and protocol work need no model.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from qtl_core.bundle import Manifest


@dataclass(frozen=True, kw_only=True)
class Prompt:
    """One question as it arrived, checked: lengths, ranges and finiteness are right.

    Attributes:
        vision: Codes, uint8 [tokens, code_dim], each below the bundle's level count; or, where the bundle is
            not quantized, features, float16 [picture_tokens, width], all finite. Where pictures are cut into
            tiles, [tiles, ...] of either, as many as the picture's size asks for.
        question: The question's text; empty where the question came as codes.
        text_codes: The question's codes, uint8 [question tokens, code_dim], where the bundle's text mode is
            "codes".
        size: Width and height of the picture in pixels, where pictures are cut into tiles.
    """

    vision: npt.NDArray[Any]
    question: str = ""
    text_codes: npt.NDArray[np.uint8] | None = None
    size: tuple[int, int] | None = None


class Engine(Protocol):
    """What the server needs from a model. Only the server's engine thread calls its methods."""

    @property
    def manifest(self) -> Manifest:
        """The manifest of the server half that this engine loaded."""

    @property
    def longest_answer(self) -> int:
        """The most tokens that the model answers with."""

    def question_tokens(self, question: str) -> int:
        """How many tokens the model's tokenizer makes of ``question``, without the template around it."""

    def generate(self, prompt: Prompt, max_tokens: int) -> Iterator[str]:
        """Answer ``prompt``, one item per generated token, at most ``max_tokens`` of them.

        A token that only completes a character later may yield an empty string. Closing the iterator early
        stops the generation.
        """

    def close(self) -> None:
        """Free what the engine holds; it is not used afterwards."""


class FakeEngine:
    """An engine without a model: answers every question with the same pieces.

    Args:
        manifest: The manifest it claims to have loaded.
        pieces: The answer, one item per token; a function of the prompt where a test wants the answer to
            depend on it.
        before_piece: Called with each piece's index before it is yielded; tests hold the engine here.
    """

    def __init__(
        self,
        manifest: Manifest,
        pieces: Sequence[str] | Callable[[Prompt], Sequence[str]] = ("four",),
        *,
        before_piece: Callable[[int], None] | None = None,
    ) -> None:
        self._manifest = manifest
        self._pieces = pieces
        self._before_piece = before_piece
        self.prompts: list[Prompt] = []
        self.closed = False

    @property
    def manifest(self) -> Manifest:
        """The manifest given at construction."""
        return self._manifest

    @property
    def longest_answer(self) -> int:
        """Long enough for any test."""
        return 1_000

    def question_tokens(self, question: str) -> int:
        """Count words, one token each."""
        return len(question.split())

    def generate(self, prompt: Prompt, max_tokens: int) -> Iterator[str]:
        """Yield the pieces, and remember the prompt."""
        self.prompts.append(prompt)
        pieces = self._pieces(prompt) if callable(self._pieces) else self._pieces
        for index, piece in enumerate(pieces[:max_tokens]):
            if self._before_piece is not None:
                self._before_piece(index)
            yield piece

    def close(self) -> None:
        """Remember that it was closed."""
        self.closed = True
