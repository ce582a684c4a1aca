"""Which rows a stage's micro-batches have: what a server takes, whatever a client sends."""

from __future__ import annotations

from collections.abc import Sequence

from qtl_core.crossing import Row
from qtl_core.errors import RequestRefused
from qtl_core.split_stage import ConversationData, SplitStage

_FEWEST = 2
"""Tokens of a turn: one of its answer, and the end."""
_LONGEST = 64
"""Characters of a token, on average over a conversation: what has more is not worth counting its tokens."""


def pictures_of(rows: Sequence[Row], stage: SplitStage) -> int:
    """How many pictures a micro-batch of these rows has.

    Args:
        rows: as ``read_texts`` returns them.
        stage: the recipe's settings.

    Raises:
        RequestRefused: rows that the stage's data does not have.
    """
    if stage.data is None:
        if any(row.joined for row in rows) or [row.pictures for row in rows] != [
            (place,) for place in range(stage.pictures)
        ]:
            raise RequestRefused("order", f"a micro-batch has a row for each of {stage.pictures} pictures")
        if max(len(row.turns) for row in rows) > stage.questions:
            raise RequestRefused("order", f"a picture has {stage.questions} questions: the recipes differ")
        return stage.pictures
    _check(rows, stage.data)
    shown = list(dict.fromkeys(place for row in rows for place in row.pictures))
    if shown != list(range(len(shown))):
        raise RequestRefused("order", "a micro-batch has its pictures in the order in which rows show them")
    return len(shown)


def _check(rows: Sequence[Row], data: ConversationData) -> None:
    if len(rows) != data.rows or not all(row.joined for row in rows):
        raise RequestRefused("order", f"a micro-batch has {data.rows} conversations, this one {len(rows)}")
    pictures = max(len(row.pictures) for row in rows)
    if pictures > data.max_pictures:
        raise RequestRefused(
            "order",
            f"a conversation shows {pictures} pictures, and the recipe's max_pictures is {data.max_pictures}",
        )
    for number, row in enumerate(rows):
        if beyond(row, data.max_tokens):
            what = f"conversation {number} of the micro-batch, with {len(row.turns)} turns,"
            raise RequestRefused("too_large", too_long(what, data.max_tokens))


def beyond(row: Row, max_tokens: int) -> bool:
    """Whether a conversation has more than ``max_tokens`` tokens by any tokenizer: told at a glance."""
    characters = sum(len(text) for turn in row.turns for text in turn)
    return _FEWEST * len(row.turns) > max_tokens or characters > _LONGEST * max_tokens


def too_long(what: str, limit: int) -> str:
    """What is said about a conversation with more tokens than the recipe's ``max_tokens``."""
    return (
        f"{what} is longer than the recipe's max_tokens, {limit}; shorten it, or raise max_tokens in the "
        "recipes of both sides"
    )
