"""Packed rows: a question among others is the question alone."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from qtl_core.nn.checkpoint import Checkpoint
from qtl_core.nn.quantizer import Quantizer
from qtl_training.answering import answered_right, answers
from qtl_training.digits.questions import Question
from qtl_training.packing import Turn, Vocabulary, embed, pack

TEXTS = ["is there a 5?", "how many red digits are there?", "where is the 2?"]


def hidden(
    tiny: Checkpoint, rows: list[list[Turn]], features: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    decoder = tiny.model.decoder
    packed = pack(rows, Vocabulary(tiny), decoder, features.shape[1])
    embeddings, _ = embed(packed, features, decoder, None, None)
    with torch.no_grad():
        out, _ = decoder(embeddings, packed.allowed, packed.positions)
    return out, packed.ends


def test_neighbours_change_nothing(tiny: Checkpoint) -> None:
    vocabulary = Vocabulary(tiny)
    turns = [Turn(vocabulary.ids(text), vocabulary.ids("yes")) for text in TEXTS]
    features = torch.randn(2, 36, 16)
    together, ends = hidden(tiny, [turns, turns[:1]], features)
    for number, turn in enumerate(turns):
        alone, end = hidden(tiny, [[turn]], features[:1])
        row, place = ends[number]
        assert torch.allclose(together[row, place], alone[end[0, 0], end[0, 1]], atol=1e-5)


def test_targets_are_the_answer_one_place_early(tiny: Checkpoint) -> None:
    vocabulary = Vocabulary(tiny)
    answer = (*vocabulary.ids("bottom centre"), vocabulary.end)
    packed = pack([[Turn(vocabulary.ids(TEXTS[0]), answer)]], vocabulary, tiny.model.decoder, 36)
    assert packed.targets[:, 2].tolist() == list(answer)
    places = packed.targets[:, 1].tolist()
    assert [int(packed.ids[0, place + 1]) for place in places[:-1]] == list(answer[:-1])
    assert vocabulary.text(answer) == "bottom centre"


@pytest.mark.parametrize("scaling", ["image", "frozen"])
def test_coded_questions_leave_the_answer_alone(tiny: Checkpoint, scaling: str) -> None:
    vocabulary = Vocabulary(tiny)
    quantizer = Quantizer(16, 16, 4, scaling).eval()  # type: ignore[arg-type]
    turns = [Turn(vocabulary.ids(text), vocabulary.ids("yes")) for text in TEXTS]
    packed = pack([turns, turns[1:]], vocabulary, tiny.model.decoder, 36)
    features = torch.zeros(2, 36, 16)
    plain, _ = embed(packed, features, tiny.model.decoder, None, None)
    coded, loss = embed(packed, features, tiny.model.decoder, quantizer, 4)
    changed = (plain != coded).any(-1)
    first = len(vocabulary.ids(TEXTS[0]))
    assert changed[0, 36 : 36 + first].all() and not changed[0, 36 + first : 38 + first].any()
    assert loss.item() > 0
    alone = quantizer(tiny.model.decoder.embed(torch.tensor([turns[0].question])), 4)[0]
    assert torch.allclose(coded[0, 36 : 36 + first], alone[0], atol=1e-5)


def test_right_answers_are_told_without_decoding(tiny: Checkpoint) -> None:
    features = torch.randn(3, 36, 16).half()  # of the tower
    asked = tuple(Question(scene, "x", text, "") for scene in range(3) for text in TEXTS)
    for levels in (None, 4):
        replies = answers(tiny, features, asked, levels, max_tokens=40)
        # What the model says is right by definition; another answer to every second question is not.
        said = tuple(
            replace(question, answer=reply if index % 2 else reply + "x")
            for index, (question, reply) in enumerate(zip(asked, replies, strict=True))
        )
        ended = [len(Vocabulary(tiny).ids(reply)) < 40 for reply in replies]
        right = answered_right(tiny, features, said, levels)
        assert [one for one, whole in zip(right, ended, strict=True) if whole] == [
            bool(index % 2) for index, whole in enumerate(ended) if whole
        ]
