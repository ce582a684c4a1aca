"""Text: quantized question embeddings back to tokens, by the nearest neighbour in the server's own table.

Only where ``text = "codes"``. The server has the embedding table and can send every row of it through
the language quantizer, so a question's codes need only be compared with the table's.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from qtl_core.nn.quantizer import Quantizer
from qtl_training.audit.target import Piece, Target
from qtl_training.digits.questions import every_wording

_ROUNDS = 3


class Text:
    """The attack on one target.

    Args:
        target: what is attacked. The language quantizer has no named variants, so only the level counts
            of the representations without a name are attacked.
    """

    def __init__(self, target: Target) -> None:
        self._target, self.key = target, "text"
        self.subjects = tuple(one.name for one in target.representations if not one.quantizer)

    def make(self, subject: str, seed: int) -> Piece:
        """Inverts a sample of the questions there are."""
        checkpoint = self._target.checkpoint
        questions = self._questions(seed)
        rows = len(checkpoint.tokenizer)
        table = checkpoint.model.decoder.embed(torch.arange(rows)).detach()
        levels = self._target.named(subject).levels
        found = invert(questions, table, checkpoint.model.language_quantizer, levels)
        return Piece({**found, "chance": chance(questions)})

    def _questions(self, seed: int) -> list[tuple[int, ...]]:
        texts = [text for text in dict.fromkeys(every_wording()) if text.endswith("?")]
        n = min(self._target.effort.questions, len(texts))
        chosen = np.random.default_rng([seed, 47]).choice(len(texts), n, replace=False)
        tokenizer = self._target.checkpoint.tokenizer
        return [tuple(tokenizer.encode(texts[index], add_special_tokens=False)) for index in chosen]


def invert(
    questions: Sequence[tuple[int, ...]], table: Tensor, quantizer: Quantizer, levels: int
) -> dict[str, float]:
    """Inverts questions that crossed as codes.

    Args:
        questions: token ids of each; the truth, which the attacker does not see.
        table: the server's embeddings, float [vocabulary, width].
        quantizer: the language quantizer, which the server knows.
        levels: L; 0 for half-precision embeddings.

    Returns:
        Percent: ``tokens`` and whole ``questions`` recovered through the quantizer, and
        ``nearest_embedding``, tokens recovered by comparing restored embeddings with the table as it is.
    """
    tokens, whole, plain, total = 0, 0, 0, 0
    for question in questions:
        ids = torch.tensor(question)
        found, near = _invert_one(table[ids], table, quantizer, levels)
        right = int((found == ids).sum())
        tokens += right
        whole += right == len(ids)
        plain += int((near == ids).sum())
        total += len(ids)
    return {
        "tokens": 100 * tokens / total,
        "questions": 100 * whole / len(questions),
        "nearest_embedding": 100 * plain / total,
    }


def chance(questions: Sequence[tuple[int, ...]]) -> float:
    """Percent of tokens that naming the most frequent one everywhere gets right."""
    counts = Counter(token for question in questions for token in question)
    return 100 * counts.most_common(1)[0][1] / counts.total()


@torch.no_grad()
def _invert_one(embedded: Tensor, table: Tensor, quantizer: Quantizer, levels: int) -> tuple[Tensor, Tensor]:
    """Tokens found through the quantizer, and by the restored embeddings alone."""
    if not levels:
        near = _nearest(embedded.half().float(), table)
        return near, near
    codes = quantizer.encode(embedded[None], levels)[0]  # all that crosses
    near = _nearest(quantizer.decode(codes, levels), table)
    received, z = quantizer.values(codes, levels), quantizer.project(table)

    def among(scaled: Tensor) -> Tensor:
        return _nearest(received, quantizer.values(quantizer.to_codes(scaled, levels), levels))

    if quantizer.scaling == "frozen":
        return among(quantizer.scale(z, levels)), near
    # A question is scaled by its own mean and deviation, which its tokens tell: guess, scale, guess again.
    found, k = near, quantizer.k_for(levels)
    for _ in range(_ROUNDS):
        guessed = z[found]
        found = among(((z - guessed.mean()) / (k * guessed.std())).clamp(-1, 1))
    return found, near


def _nearest(found: Tensor, table: Tensor) -> Tensor:
    """Index of the nearest row of ``table`` [rows, width] to each of ``found`` [n, width]."""
    return torch.cdist(found, table).argmin(-1)
