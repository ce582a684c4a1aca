"""What is asked in a micro-batch as one batch of token ids: questions side by side, or whole conversations.

A row of questions is ``packing``'s: the picture once, and each question as if it were alone. A conversation
is a sequence, pictures anywhere in it, in which every token sees those before it; a picture's tokens see each
other where the decoder has it so. What is learnt is the answers, their ends included.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from qtl_core.crossing import Row
from qtl_core.errors import RequestRefused
from qtl_core.nn.checkpoint import Checkpoint
from qtl_core.nn.conversation_tokens import ConversationTokens
from qtl_core.rows import too_long
from qtl_training.packing import BEFORE, BETWEEN, PICTURE, QUESTION, REST, Packed, Vocabulary

_LONGEST = 256
"""Tokens of a question that stands alone, with its answer, on average over a row at most."""
_ROLES = {"template": REST, "question": QUESTION, "answer": REST}


@dataclass
class _Laid:
    """A row under way: a token a place; ``segment`` 0 is seen by all that follow, others by themselves."""

    ids: list[int] = field(default_factory=list)
    role: list[int] = field(default_factory=list)
    segment: list[int] = field(default_factory=list)
    positions: list[int] = field(default_factory=list)
    pictures: list[tuple[int, int]] = field(default_factory=list)
    front: int = 0
    ends: list[int] = field(default_factory=list)
    targets: list[tuple[int, int, int]] = field(default_factory=list)

    def text(self, ids: Sequence[int], role: int, segment: int, position: int) -> int:
        """Appends tokens; the position that follows them."""
        self.ids += ids
        self.role += [role] * len(ids)
        self.segment += [segment] * len(ids)
        self.positions += range(position, position + len(ids))
        return position + len(ids)

    def picture(self, tokens: int, shared: bool, position: int) -> int:
        """Appends a picture's places, which may share one position."""
        start = len(self.ids)
        self.ids += [0] * tokens
        self.role += [PICTURE] * tokens
        self.segment += [0] * tokens
        self.positions += [position] * tokens if shared else range(position, position + tokens)
        self.pictures.append((start, start + tokens))
        return position + (1 if shared else tokens)

    def answer(self, ids: Sequence[int], segment: int, position: int) -> int:
        """Appends an answer, each of whose tokens is to follow from what is before it."""
        first = len(self.ids) - 1
        self.targets += [(first + offset, token, len(self.ends)) for offset, token in enumerate(ids)]
        position = self.text(ids, REST, segment, position)
        self.ends.append(len(self.ids) - 1)
        return position


class RowPacking:
    """Packs the rows of a checkpoint's micro-batches.

    Args:
        checkpoint: whose tokenizer, template and decoder are meant.
        max_tokens: of a conversation; 0 for any number.
    """

    def __init__(self, checkpoint: Checkpoint, max_tokens: int = 0) -> None:
        self._decoder = checkpoint.model.decoder
        self._words = Vocabulary(checkpoint)
        self._tokens = ConversationTokens(checkpoint)
        self._max_tokens = max_tokens

    def tokens(self, row: Row, picture: int) -> int:
        """Tokens of a conversation whose pictures have ``picture`` of them each."""
        parts = self._tokens.parts(row.turns, row.places)
        return sum(picture if part.kind == "picture" else len(part.ids) for part in parts)

    def pack(self, rows: Sequence[Row], picture: int, *, answers: bool = True) -> tuple[Packed, Tensor]:
        """The batch.

        Args:
            rows: checked before.
            picture: tokens of one picture.
            answers: whether they are known; without, each turn ends where its answer would begin.

        Returns:
            The batch, and which of the micro-batch's pictures its places for pictures show, in order:
            int64 [shown].

        Raises:
            RequestRefused: a conversation of more than ``max_tokens`` tokens, or questions far too long.
        """
        laid = [
            self._conversation(row, picture, answers) if row.joined else self._alone(row, picture, answers)
            for row in rows
        ]
        n = max(len(one.ids) for one in laid)
        for number, (row, one) in enumerate(zip(rows, laid, strict=True)):
            # Attention takes memory by the square of this.
            if row.joined and 0 < self._max_tokens < len(one.ids):
                what = f"conversation {number} of the micro-batch has {len(one.ids)} tokens, which"
                raise RequestRefused("too_large", too_long(what, self._max_tokens))
            if not row.joined and len(one.ids) > one.front + _LONGEST * len(row.turns):
                raise RequestRefused("too_large", f"questions have more than {_LONGEST} tokens each")
        ids = _padded([one.ids for one in laid], n, 0)
        role = _padded([one.role for one in laid], n, 0)
        segment = _padded([one.segment for one in laid], n, -1)
        positions = _padded([one.positions for one in laid], n, 0)
        same = segment[:, :, None] == segment[:, None, :]
        causal = torch.ones(n, n, dtype=torch.bool).tril()
        allowed = (same & causal) | ((segment[:, None, :] == 0) & (segment[:, :, None] > 0))
        for number, one in enumerate(laid):
            for start, stop in self._both_ways(one):
                allowed[number, start:stop, start:stop] = True
        ends = [(number, place) for number, one in enumerate(laid) for place in one.ends]
        targets: list[tuple[int, int, int]] = []
        turn_of_target: list[int] = []
        turns = 0
        for number, one in enumerate(laid):
            targets += [(number, place, token) for place, token, _ in one.targets]
            turn_of_target += [turns + turn for _, _, turn in one.targets]
            turns += len(one.ends)
        packed = Packed(
            ids,
            role,
            allowed,
            positions,
            torch.tensor(ends, dtype=torch.int64).reshape(-1, 2),
            torch.tensor(targets, dtype=torch.int64).reshape(-1, 3),
            torch.tensor(turn_of_target, dtype=torch.int64),
        )
        return packed, torch.tensor([place for row in rows for place in row.pictures], dtype=torch.int64)

    def _both_ways(self, laid: _Laid) -> list[tuple[int, int]]:
        """Places that see each other in both directions."""
        if self._decoder.picture_attention == "prefix":
            return [(0, laid.front)]
        return laid.pictures if self._decoder.picture_attention == "bidirectional" else []

    def _shared(self) -> bool:
        return self._decoder.picture_places is not None

    def _alone(self, row: Row, picture: int, answers: bool) -> _Laid:
        """Questions side by side behind a picture."""
        words, laid = self._words, _Laid()
        position = laid.text(words.before, BEFORE, 0, 0)
        position = laid.picture(picture, self._shared(), position)
        position = laid.text(words.between, BETWEEN, 0, position)
        laid.front = len(laid.ids)
        for number, (question, answer) in enumerate(row.turns, 1):
            at = laid.text(words.ids(question), QUESTION, number, position)
            at = laid.text(words.after, REST, number, at)
            laid.answer((*words.ids(answer), words.end) if answers else (), number, at)
        return laid

    def _conversation(self, row: Row, picture: int, answers: bool) -> _Laid:
        """Turns one after the other, pictures where their questions have them."""
        laid, position, asked = _Laid(), 0, False
        for part in self._tokens.parts(row.turns, row.places):
            if part.kind == "picture":
                position = laid.picture(picture, self._shared(), position)
            elif part.kind == "answer":
                position = laid.answer(part.ids if answers else (), 0, position)
            else:
                role = _ROLES[part.kind]
                if part.kind == "template" and not asked:
                    role = BETWEEN if laid.pictures else BEFORE
                position = laid.text(part.ids, role, 0, position)
            if part.kind in ("question", "answer") and not asked:
                asked, laid.front = True, len(laid.ids) - len(part.ids)
        return laid


def _padded(rows: Sequence[Sequence[int]], n: int, pad: int) -> Tensor:
    return torch.tensor([[*row, *[pad] * (n - len(row))] for row in rows], dtype=torch.int64)
