"""Prompts about pictures as rows of a batch, for any family's decoder: greedy answers, their likelihoods.

Rows differ in length, so shorter ones are padded at the left: then every row's next token is at the end, also
where layers look back over a window only. No token sees a pad.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional
from transformers import DynamicCache

from qtl_core.errors import QuestionError
from qtl_core.nn.checkpoint import Checkpoint
from qtl_core.nn.decoder import PictureDecoder
from qtl_core.nn.prompt_tokens import PromptTokens

NOTHING = -1
"""In place of a token behind the end of an answer."""


@dataclass(frozen=True)
class Rows:
    """Prompts about pictures, one a row.

    Attributes:
        ids: int64 [rows, n]; 0 where there is no token id.
        pictured: bool [rows, n], where the picture's features go.
        there: bool [rows, n], False for pads.
        allowed: bool [rows, n, n], which tokens each may see.
        positions: int64 [rows, n].
    """

    ids: Tensor
    pictured: Tensor
    there: Tensor
    allowed: Tensor
    positions: Tensor


class Asking:
    """Asks a checkpoint's decoder about picture features.

    Args:
        checkpoint: its decoder, in evaluation mode, on any device.
        limit: tokens of an answer at most, its end included; the model's own limit if that is smaller.
    """

    def __init__(self, checkpoint: Checkpoint, limit: int) -> None:
        self._decoder: PictureDecoder = checkpoint.model.decoder
        self._tokenizer = checkpoint.tokenizer
        backend = checkpoint.tokenizer.backend_tokenizer
        self._prompts = PromptTokens(backend, checkpoint.template, checkpoint.prompt)
        self._end = checkpoint.end_tokens
        self._longest = checkpoint.settings.max_question_tokens
        self.limit = min(limit, checkpoint.settings.max_answer_tokens)

    def prompt(self, text: str) -> tuple[int, ...]:
        """The ids behind the picture.

        Raises:
            QuestionError: longer than the model takes.
        """
        length = len(self._prompts.question(text))
        if length > self._longest:
            raise QuestionError(f"{text!r} has {length} tokens; the model takes {self._longest}")
        return tuple(self._prompts.after(text))

    def text(self, ids: Tensor) -> str:
        """The text of an answer [n], without its end."""
        kept = [int(one) for one in ids.tolist() if one != NOTHING and one not in self._end]
        return str(self._tokenizer.decode(kept, skip_special_tokens=True))

    def rows(self, prompts: Sequence[Sequence[int]], picture: int) -> Rows:
        """Rows of prompts, each the ids behind a picture of ``picture`` tokens."""
        before = self._prompts.before()
        head = len(before) + picture
        n = head + max(map(len, prompts))
        shape = len(prompts), n
        ids = torch.zeros(shape, dtype=torch.int64)
        pictured, there = torch.zeros(shape, dtype=torch.bool), torch.zeros(shape, dtype=torch.bool)
        # A pad sees itself: where a token sees nothing at all, attention has no defined value.
        allowed = torch.eye(n, dtype=torch.bool).repeat(len(prompts), 1, 1)
        positions = torch.zeros(shape, dtype=torch.int64)
        for row, prompt in enumerate(prompts):
            start = n - head - len(prompt)
            parts = len(before), picture, len(prompt)
            ids[row, start : start + len(before)] = torch.tensor(before, dtype=torch.int64)
            ids[row, n - len(prompt) :] = torch.tensor(prompt, dtype=torch.int64)
            pictured[row, start + len(before) : start + head] = True
            there[row, start:] = True
            allowed[row, start:, start:] = self._decoder.prompt_mask(*parts)
            positions[row, start:] = self._decoder.prompt_positions(*parts)
        device = next(self._decoder.parameters()).device
        return Rows(*(one.to(device) for one in (ids, pictured, there, allowed, positions)))

    @torch.no_grad()
    def greedy(self, features: Tensor, rows: Rows) -> tuple[Tensor, Tensor]:
        """The likeliest answers, and how likely each next token was.

        Args:
            features: float [rows, picture tokens, width].
            rows: the prompts.

        Returns:
            Answers int64 [rows, t], each with its end unless the limit cut it off, ``NOTHING`` after it; and
            log-probabilities float [rows, t, vocabulary] of what could stand at each place.
        """
        decoder = self._decoder
        cache: Any = DynamicCache()
        embeddings, allowed, positions = self._embed(features, rows), rows.allowed, rows.positions
        seen, going = rows.there, torch.ones(len(rows.ids), dtype=torch.bool, device=rows.ids.device)
        ends = torch.tensor(self._end, device=rows.ids.device)
        answers: list[Tensor] = []
        scores: list[Tensor] = []
        while len(answers) < self.limit and bool(going.any()):
            hidden, cache = decoder(embeddings, allowed, positions, cache)
            scores.append(functional.log_softmax(decoder.logits(hidden[:, -1]).float(), -1))
            token = scores[-1].argmax(-1)
            answers.append(torch.where(going, token, NOTHING))
            going = going & ~torch.isin(token, ends)
            embeddings = decoder.embed(token[:, None])
            seen = functional.pad(seen, (0, 1), value=True)
            allowed, positions = seen[:, None], positions[:, -1:] + 1
        return torch.stack(answers, 1), torch.stack(scores, 1)

    def likelihoods(self, features: Tensor, rows: Rows, answers: Tensor) -> Tensor:
        """Log-probabilities of what could stand at each place of given answers, so that gradients flow.

        Args:
            features: float [rows, picture tokens, width].
            rows: the prompts.
            answers: int64 [rows, t], as ``greedy`` returns them.

        Returns:
            Float [rows, t, vocabulary]; of no meaning where the answer has ``NOTHING``.
        """
        decoder, more = self._decoder, answers.shape[1] - 1
        known = decoder.embed(answers[:, :more].clamp_min(0))
        embeddings = torch.cat([self._embed(features, rows), known], 1)
        n = rows.ids.shape[1]
        allowed = functional.pad(rows.allowed, (0, more, 0, more))
        allowed[:, n:, :n] = rows.there[:, None]
        allowed[:, n:, n:] = torch.ones(more, more, dtype=torch.bool, device=allowed.device).tril()
        later = torch.arange(1, more + 1, device=allowed.device)
        positions = torch.cat([rows.positions, rows.positions[:, -1:] + later], 1)
        hidden, _ = decoder(embeddings, allowed, positions)
        return functional.log_softmax(decoder.logits(hidden[:, n - 1 :]).float(), -1)

    def _embed(self, features: Tensor, rows: Rows) -> Tensor:
        embeddings = self._decoder.embed(rows.ids)
        placed = self._decoder.place(features).to(embeddings.dtype)
        return embeddings.masked_scatter(rows.pictured[..., None], placed)


def divergence(original: Tensor, other: Tensor, answers: Tensor) -> Tensor:
    """Kullback-Leibler divergence from the original's next-token distributions, in nats, [rows].

    Args:
        original: log-probabilities [rows, t, vocabulary].
        other: the same of the model that is compared.
        answers: int64 [rows, t]; places with ``NOTHING`` do not count. Each row is the mean of its places.
    """
    counted = answers != NOTHING
    each = (original.exp() * (original - other)).sum(-1)
    return (each * counted).sum(-1) / counted.sum(-1)
