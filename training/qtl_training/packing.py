"""Several questions about one picture in one row: the picture once, then each question on its own.

A question sees the picture's prefix and itself, never its neighbours, and its positions go on from
the prefix, so what the model computes for it is what it would compute for it alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields

import torch
from torch import Tensor

from qtl_core.bundle import Template
from qtl_core.nn.checkpoint import Checkpoint
from qtl_core.nn.decoder import PictureDecoder
from qtl_core.nn.quantizer import Quantizer

PAD, BEFORE, PICTURE, BETWEEN, QUESTION, REST = range(6)
"""What a place of a packed row is."""


@dataclass(frozen=True)
class Turn:
    """Token ids of one question and of what of its answer is known."""

    question: tuple[int, ...]
    answer: tuple[int, ...] = ()


class Vocabulary:
    """Token ids of texts, remembered: the same few hundred wordings come again and again.

    Args:
        checkpoint: whose tokenizer and template are used.
    """

    def __init__(self, checkpoint: Checkpoint) -> None:
        self._tokenizer = checkpoint.tokenizer
        self._known: dict[str, tuple[int, ...]] = {}
        template: Template = checkpoint.template
        self.before, self.between = self.ids(template.before_image), self.ids(template.between)
        self.after = self.ids(template.after_question)
        self.end = int(checkpoint.tokenizer.eos_token_id)

    def ids(self, text: str) -> tuple[int, ...]:
        """Token ids of ``text``, without special tokens round it."""
        if text not in self._known:
            self._known[text] = tuple(self._tokenizer.encode(text, add_special_tokens=False))
        return self._known[text]

    def text(self, ids: Sequence[int]) -> str:
        """The text of token ids."""
        return str(self._tokenizer.decode(list(ids), skip_special_tokens=True))


@dataclass(frozen=True)
class Packed:
    """A batch of rows.

    Attributes:
        ids: int64 [rows, n]; 0 where there is no token id.
        role: int64 [rows, n], what each place is.
        allowed: bool [rows, n, n].
        positions: int64 [rows, n].
        ends: int64 [turns, 2], row and place of the last token of each turn.
        targets: int64 [answer tokens, 3]: row, place, and the id that should follow it.
        turn_of_target: int64 [answer tokens], which turn each target belongs to.
    """

    ids: Tensor
    role: Tensor
    allowed: Tensor
    positions: Tensor
    ends: Tensor
    targets: Tensor
    turn_of_target: Tensor

    def to(self, device: torch.device) -> Packed:
        """The same on another device."""
        return Packed(*(getattr(self, field.name).to(device) for field in fields(self)))


def pack(
    rows: Sequence[Sequence[Turn]], vocabulary: Vocabulary, decoder: PictureDecoder, picture: int
) -> Packed:
    """Packs the turns of each row behind a picture of ``picture`` tokens."""
    v = vocabulary
    prefix = len(v.before) + picture + len(v.between)
    lengths = [prefix + sum(len(t.question) + len(v.after) + len(t.answer) for t in turns) for turns in rows]
    n = max(lengths)
    ids = torch.zeros(len(rows), n, dtype=torch.int64)
    role = torch.zeros(len(rows), n, dtype=torch.int64)
    segment = torch.full((len(rows), n), -1, dtype=torch.int64)
    positions = torch.zeros(len(rows), n, dtype=torch.int64)
    ids[:, : len(v.before)] = torch.tensor(v.before, dtype=torch.int64)
    ids[:, prefix - len(v.between) : prefix] = torch.tensor(v.between, dtype=torch.int64)
    roles = [BEFORE] * len(v.before) + [PICTURE] * picture + [BETWEEN] * len(v.between)
    role[:, :prefix] = torch.tensor(roles)
    segment[:, :prefix] = 0
    placed = decoder.prompt_positions(len(v.before), picture, len(v.between) + 1)
    positions[:, :prefix] = placed[:-1]
    first_position = int(placed[-1])
    ends: list[tuple[int, int]] = []
    targets: list[tuple[int, int, int]] = []
    turn_of_target: list[int] = []
    for row, turns in enumerate(rows):
        at = prefix
        for number, turn in enumerate(turns, 1):
            tokens = (*turn.question, *v.after, *turn.answer)
            stop = at + len(tokens)
            ids[row, at:stop] = torch.tensor(tokens)
            role[row, at:stop] = REST
            role[row, at : at + len(turn.question)] = QUESTION
            segment[row, at:stop] = number
            positions[row, at:stop] = torch.arange(first_position, first_position + len(tokens))
            first = stop - len(turn.answer) - 1
            for offset, token in enumerate(turn.answer):
                targets.append((row, first + offset, token))
                turn_of_target.append(len(ends))
            ends.append((row, stop - 1))
            at = stop
    same = segment[:, :, None] == segment[:, None, :]
    causal = torch.ones(n, n, dtype=torch.bool).tril()
    allowed = (same & causal) | ((segment[:, None, :] == 0) & (segment[:, :, None] > 0))
    allowed[:, :prefix, :prefix] = decoder.prompt_mask(len(v.before), picture, len(v.between))
    return Packed(
        ids,
        role,
        allowed,
        positions,
        torch.tensor(ends, dtype=torch.int64).reshape(-1, 2),
        torch.tensor(targets, dtype=torch.int64).reshape(-1, 3),
        torch.tensor(turn_of_target, dtype=torch.int64),
    )


def embed(
    packed: Packed, features: Tensor, decoder: PictureDecoder, quantizer: Quantizer | None, levels: int | None
) -> tuple[Tensor, Tensor]:
    """Embeddings of a packed batch.

    Args:
        packed: the batch.
        features: float [rows, picture tokens, width], as the server has them.
        decoder: the language model.
        quantizer: passes question embeddings through it at ``levels`` if given.
        levels: L of the language quantizer.

    Returns:
        Embeddings [rows, n, width] and the quantizer's distortion loss (0 without one).
    """
    embeddings = decoder.embed(packed.ids)
    loss = embeddings.new_zeros(())
    if quantizer is not None:
        asked = packed.role == QUESTION
        if quantizer.scaling == "frozen":
            restored, loss = quantizer(embeddings[asked][None], levels)
        else:  # each question is scaled by itself, so each passes by itself
            turns = torch.split(embeddings[asked], _runs(packed, asked))
            pairs = [quantizer(turn[None], levels) for turn in turns]
            restored = torch.cat([pair[0] for pair in pairs], dim=1)
            loss = torch.stack([pair[1] for pair in pairs]).mean()
        embeddings = embeddings.masked_scatter(asked[..., None], restored)
    pictured = (packed.role == PICTURE)[..., None]
    return embeddings.masked_scatter(pictured, decoder.place(features).to(embeddings.dtype)), loss


def turns_right(packed: Packed, scores: Tensor, target: Tensor) -> Tensor:
    """Whether every answer token of each turn is the likeliest, bool [turns]."""
    wrong = (scores.argmax(-1) != target).long()
    return torch.zeros(len(packed.ends), dtype=torch.int64).index_add(0, packed.turn_of_target, wrong) == 0


def _runs(packed: Packed, asked: Tensor) -> list[int]:
    """Lengths of the runs of question tokens, in order."""
    begins = asked & ~torch.nn.functional.pad(asked, (1, 0))[:, :-1]
    counts = torch.bincount(begins.flatten().cumsum(0)[asked.flatten()] - 1)
    return [int(count) for count in counts]
