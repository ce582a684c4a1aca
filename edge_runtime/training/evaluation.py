"""Held-out data through the server that is being trained: its answers are scored, and nothing learns."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from typing import Any, Final, Protocol

from edge_runtime.training.requests import Requests
from qtl_core.crossing import Crossed, Crossing, MicroBatch, texts_up
from qtl_core.messages import Grads, Micro
from qtl_core.split_stage import SplitStage

_IN_FLIGHT: Final = 2


class Evaluation(Protocol):
    """Held-out data, and the client partition that it passes."""

    def due(self, stage: int, done: int) -> bool:
        """Whether to evaluate after so many steps of a stage."""
        ...

    def micro_batches(self, stage: int) -> Sequence[MicroBatch]:
        """All of it."""
        ...

    def forward(self, stage: int, pictures: Sequence[int], levels: int) -> Crossed:
        """What crosses for some of its pictures; statistics that training keeps stay as they are."""
        ...


def evaluate(
    evaluation: Evaluation, stage: int, settings: SplitStage, crossing: Crossing, requests: Requests
) -> list[dict[str, Any]]:
    """How well held-out questions are answered, at each of the stage's level counts.

    Args:
        evaluation: the data.
        stage: its number.
        settings: its settings.
        crossing: how what crosses is coded.
        requests: to the server.

    Returns:
        For each level count ``levels``, ``loss`` (nats per answer token), ``right`` (percent) and
        ``questions``.
    """
    found = []
    for levels in dict.fromkeys(settings.levels):
        sent: deque[int] = deque()
        replies: list[Grads] = []
        for index, micro in enumerate(evaluation.micro_batches(stage)):
            values = crossing.up(evaluation.forward(stage, micro.pictures, levels), levels)
            texts = texts_up(micro.rows)
            message = Micro(requests.next_id(), (values[0], texts[0]), 0, index, levels, True)
            sent.append(requests.send(message, [values[1], texts[1]]))
            if len(sent) > _IN_FLIGHT:
                replies.append(requests.reply(sent.popleft(), Grads)[0])
        replies += [requests.reply(about, Grads)[0] for about in sent]
        found.append(
            scores(
                levels,
                sum(one.loss for one in replies),
                sum(one.tokens for one in replies),
                sum(one.right for one in replies),
                sum(one.turns for one in replies),
            )
        )
    return found


def scores(levels: int, loss: float, tokens: int, right: int, turns: int) -> dict[str, Any]:
    """One level count's line, from sums."""
    return {"levels": levels, "loss": loss / tokens, "right": 100 * right / turns, "questions": turns}
