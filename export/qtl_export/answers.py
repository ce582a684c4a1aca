"""Answers from the device's payloads beside those from PyTorch's codes, through the exported server half."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import msgspec
import numpy as np
import numpy.typing as npt
import torch
from tokenizers import Tokenizer

from edge_runtime.text import TextEncoder
from qtl_core import codes as packing
from qtl_core.bundle import Cut, Text
from qtl_core.errors import QuestionError
from qtl_core.nn.checkpoint import Checkpoint, decoder_bytes
from qtl_core.nn.server_partition import ServerPartition
from qtl_core.payloads import read
from qtl_export.held_out import Question, Span
from qtl_export.progress import Progress
from qtl_export.validation import Compared

ALWAYS_ASKED: Final = 64 << 20
"""Bytes of a language model in float32 up to which answers are always compared."""


class Answers(msgspec.Struct, frozen=True, kw_only=True):
    """What the server half answered.

    Attributes:
        asked: how many questions; 0 where the language model was not loaded to ask it.
        differ: how many answers from the device's payload are not those from PyTorch's codes. Where both
            are the same bytes, so is the answer, and it is asked once.
        known: how many have a known answer.
        right: how many of these the device's payload got right; None where none is known.
        text_codes: codes of questions compared; 0 where questions cross as text.
        text_codes_differ: how many of them are not the same.
        why_not: why nothing was asked; empty where something was.
    """

    asked: int
    differ: int
    known: int
    right: int | None
    text_codes: int
    text_codes_differ: int
    why_not: str = ""

    @property
    def accuracy(self) -> float | None:
        """Share of right answers; None where none is known."""
        return None if self.right is None or not self.known else self.right / self.known


def reason_not_to_ask(checkpoint: Checkpoint, client: int, wanted: bool | None) -> str:
    """Why answers are not compared; empty where they are.

    Asking loads the language model. By default that is done where it takes no more memory than making the
    client graph did, or where it is small.

    Args:
        checkpoint: the model.
        client: bytes of the client partition.
        wanted: what the user said; None for nothing.
    """
    decoder = decoder_bytes(checkpoint)
    if wanted or (wanted is None and decoder <= max(client, ALWAYS_ASKED)):
        return ""
    if wanted is not None:
        return "--no-validate-answers"
    return (
        f"the language model takes {decoder / 1e6:,.0f} MB, the client partition {client / 1e6:,.0f} MB; "
        "--validate-answers loads it and compares"
    )


def compare_answers(
    server: ServerPartition | str,
    compared: Compared,
    questions: Sequence[Question],
    spans: Sequence[Span],
    cut: Cut,
    language: Language | None,
    progress: Progress,
) -> Answers:
    """Asks every question about what the device sent, and about what PyTorch would have sent.

    Args:
        server: the exported server half; or why it is not asked: then only codes of questions are compared.
        compared: payloads of both sides.
        questions: each about one of ``spans``.
        spans: which payloads are a picture's.
        cut: what crosses for a picture.
        language: codes of questions; None where questions cross as text.
        progress: where to show how far it is.
    """
    if isinstance(server, str) and language is None:
        questions = ()
    differ = known = right = text_codes = text_differ = 0
    what = "coding questions" if isinstance(server, str) else "asking the server half"
    bar = progress.bar(questions, what, len(questions), "questions")
    for question in bar:
        span = spans[question.picture]
        inputs = slice(span.first, span.first + span.tiles)
        device, ours = (b"".join(payloads[inputs]) for payloads in (compared.device, compared.pytorch))
        asked: npt.NDArray[np.uint8] | None = None
        asked_ours: npt.NDArray[np.uint8] | None = None
        unlike = 0
        if language is not None:
            asked, asked_ours = language.both(question.text)
            unlike = int((asked != asked_ours).sum())
            text_codes += asked.size
            text_differ += unlike
        if isinstance(server, str):
            continue
        answer = _ask(server, device, question.text, asked, cut, span)
        same = device == ours and not unlike
        differ += not same and answer != _ask(server, ours, question.text, asked_ours, cut, span)
        if question.answer is not None:
            known += 1
            right += answer.strip() == question.answer.strip()
    return Answers(
        asked=0 if isinstance(server, str) else len(questions),
        differ=differ,
        known=known,
        right=right if known else None,
        text_codes=text_codes,
        text_codes_differ=text_differ,
        why_not=server if isinstance(server, str) else "",
    )


class Language:
    """Codes of a question, by the device's code and by PyTorch.

    Args:
        device: over the exported client half.
        checkpoint: the model.
        text: how questions cross.
    """

    def __init__(self, device: TextEncoder, checkpoint: Checkpoint, text: Text) -> None:
        self._device, self._model, self._text = device, checkpoint.model, text
        self._tokenizer = Tokenizer.from_str(checkpoint.tokenizer.backend_tokenizer.to_str())
        self._tokenizer.encode_special_tokens = True

    def both(self, question: str) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.uint8]]:
        """uint8 [tokens, code_dim], the device's and PyTorch's."""
        coded = self._device.encode(question)
        ids = self._tokenizer.encode(question, add_special_tokens=False).ids
        if len(ids) != coded.tokens:
            raise QuestionError(
                f"{question!r} has {coded.tokens} tokens on the device and {len(ids)} in the checkpoint"
            )
        shape = (coded.tokens, self._text.code_dim)
        device = packing.unpack(coded.payload, self._text.levels, shape)
        with torch.inference_mode():
            embedded = self._model.decoder.embed(torch.tensor([ids]))
            ours = self._model.language_quantizer.encode(embedded, self._text.levels)[0]
        return device, ours.numpy()


def _ask(
    server: ServerPartition,
    payload: bytes,
    question: str,
    text_codes: npt.NDArray[np.uint8] | None,
    cut: Cut,
    span: Span,
) -> str:
    vision: npt.NDArray[np.uint8] | npt.NDArray[np.float16]
    if cut.quantized:
        vision = read(payload, cut, span.tiles)
    else:
        # As they are: of features that are not finite, validation itself speaks.
        vision = np.frombuffer(payload, dtype="<f2").reshape(span.tiles, cut.picture_tokens, cut.width)
        vision = vision.astype(np.float16)
    asked = "" if text_codes is not None else question
    return "".join(server.generate(vision, asked, text_codes, size=span.size))
