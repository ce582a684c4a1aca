"""Rows as batches: what one question was before, and conversations as transformers' own LLaVA sees them."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any, Literal

import pytest
import torch
from torch.nn import functional

from qtl_core.crossing import Row
from qtl_core.errors import RequestRefused
from qtl_core.nn.checkpoint import Checkpoint, load_checkpoint
from qtl_core.nn.decoder import PictureDecoder
from qtl_training.packing import Turn, Vocabulary, embed, pack
from qtl_training.row_packing import RowPacking
from tests.nn import foreign

TURNS = (("is there a 5?", "yes"), ("how many red digits are there?", "3"), ("where is the 2?", "top left"))
ATTENTION: tuple[Literal["causal", "bidirectional", "prefix"], ...] = ("causal", "bidirectional", "prefix")


@pytest.fixture(params=ATTENTION)
def seen(request: pytest.FixtureRequest, tiny: Checkpoint) -> Checkpoint:
    """The tiny model with each kind of attention among a picture's tokens."""
    decoder = PictureDecoder(tiny.model.decoder.language_model, request.param, 36)
    model = dataclasses.replace(tiny)
    copied: Any = type(tiny.model)(tiny.model.vision, tiny.model.vision_quantizer, decoder, None)
    return dataclasses.replace(model, model=copied)


def turns_of(words: Vocabulary, turns: Any) -> list[Turn]:
    return [Turn(words.ids(question), (*words.ids(answer), words.end)) for question, answer in turns]


def assert_same(found: Any, expected: Any, but: tuple[str, ...] = ()) -> None:
    for field in dataclasses.fields(expected):
        if field.name not in but:
            ours, theirs = getattr(found, field.name), getattr(expected, field.name)
            assert ours.dtype == theirs.dtype and torch.equal(ours, theirs), field.name


def test_questions_are_packed_as_they_were(seen: Checkpoint) -> None:
    words = Vocabulary(seen)
    rows = [Row((0,), TURNS), Row((1,), TURNS[1:]), Row((2,), TURNS[:1])]
    found, shown = RowPacking(seen).pack(rows, 36)
    assert_same(found, pack([turns_of(words, row.turns) for row in rows], words, seen.model.decoder, 36))
    assert shown.tolist() == [0, 1, 2]


def test_a_conversation_of_one_turn_is_one_question(seen: Checkpoint) -> None:
    words = Vocabulary(seen)
    rows = [Row((place,), (turn,), True, ((0, 0),)) for place, turn in enumerate(TURNS)]
    found, shown = RowPacking(seen).pack(rows, 36)
    assert_same(found, pack([turns_of(words, row.turns) for row in rows], words, seen.model.decoder, 36))
    assert shown.tolist() == [0, 1, 2]


def test_later_turns_see_earlier_ones(seen: Checkpoint) -> None:
    (whole,), packing = [Row((0,), TURNS, True, ((0, 0),))], RowPacking(seen)
    packed, _ = packing.pack([whole], 36)
    n = packed.ids.shape[1]
    assert packed.allowed[0].tril().sum() == n * (n + 1) // 2
    assert packed.positions[0, 36:].tolist() == list(range(1, n - 35))
    assert len(packed.ends) == 3 and packed.turn_of_target.unique().tolist() == [0, 1, 2]
    words = Vocabulary(seen)
    answers = [[*words.ids(answer), words.end] for _, answer in TURNS]
    assert packed.targets[:, 2].tolist() == [token for answer in answers for token in answer]
    for _, place, token in packed.targets.tolist():
        assert int(packed.ids[0, place + 1]) == token
    # What came before decides what is said next.
    other = Row((0,), (("is there a 6?", "no"), *TURNS[1:]), True, ((0, 0),))
    features = torch.randn(1, 36, 16, generator=torch.Generator().manual_seed(1))
    first, second = (last_turn(seen, packing, row, features) for row in (whole, other))
    assert not torch.allclose(first, second, atol=1e-4)


def last_turn(checkpoint: Checkpoint, packing: RowPacking, row: Row, features: torch.Tensor) -> torch.Tensor:
    decoder = checkpoint.model.decoder
    packed, shown = packing.pack([row], features.shape[1])
    embeddings, _ = embed(packed, features[shown], decoder, None, None)
    with torch.no_grad():
        hidden, _ = decoder(embeddings, packed.allowed, packed.positions)
    return hidden[0, packed.ends[-1, 1]]


def test_pictures_anywhere_and_none(seen: Checkpoint) -> None:
    rows = [
        Row((0, 1), (("both?", "yes"), ("and this?", "no")), True, ((0, 0), (1, 4))),
        Row((), (("what is two?", "2"),), True),
        Row((1,), (("same as 1?", "no"),), True, ((0, 8),)),
    ]
    packed, shown = RowPacking(seen).pack(rows, 36)
    assert shown.tolist() == [0, 1, 1]
    pictured = packed.role == 2
    assert pictured.sum(1).tolist() == [72, 0, 36]
    words = Vocabulary(seen)
    first = (*words.ids("both?"), *words.after, *words.ids("yes"), words.end)
    second = (*words.ids("this?"), *words.after, *words.ids("no"), words.end)
    kept = packed.ids[0][~pictured[0]][: len(first) + len(words.ids("and ")) + len(second)]
    assert kept.tolist() == [*first, *words.ids("and "), *second]
    # Both pictures, each at one place, between texts that count on.
    at = pictured[0].nonzero().flatten()
    assert packed.positions[0, at[:36]].unique().tolist() == [0]
    assert packed.positions[0, at[36:]].unique().tolist() == [1 + len(first) + len(words.ids("and "))]
    both = packed.allowed[0, at[36], at[71]]
    assert bool(both) == (seen.model.decoder.picture_attention == "bidirectional")


def test_too_long_rows_are_refused(tiny: Checkpoint) -> None:
    row = Row((0,), TURNS, True, ((0, 0),))
    length = RowPacking(tiny).tokens(row, 36)
    assert RowPacking(tiny, length).pack([row], 36)[0].ids.shape[1] == length
    with pytest.raises(RequestRefused, match="raise max_tokens in the recipes of both sides"):
        RowPacking(tiny, length - 1).pack([row], 36)
    with pytest.raises(RequestRefused, match="more than 256 tokens each"):
        RowPacking(tiny).pack([Row((0,), (("x?" * 300, "no"),))], 36)


def test_what_looks_like_a_special_token_is_text(tiny: Checkpoint) -> None:
    packed, _ = RowPacking(tiny).pack([Row((0,), (("is </s> <image> text?", "</s>"),), True, ((0, 0),))], 36)
    words = Vocabulary(tiny)
    assert (packed.ids[0] == words.end).sum() == 1
    assert words.text(packed.targets[:, 2].tolist()) == "</s>"


@pytest.mark.parametrize("tower", ["clip_vision_model", "siglip_vision_model"])
def test_a_conversation_is_what_transformers_makes_of_it(tmp_path: Path, tower: str) -> None:
    llava = foreign.make_llava(tmp_path, tower)
    ours = load_checkpoint(tmp_path)
    pictures = foreign.pictures(2)
    mean, std = (torch.tensor(ours.processor[name]) for name in ("image_mean", "image_std"))
    pixels = ((pictures / 255 - mean) / std).permute(0, 3, 1, 2)
    turns = (("how many?", "3"), ("where is the 2?", "top left"), ("and in this one?", "none"))
    row = Row((0, 1), turns, True, ((0, 0), (2, 7)))
    text = (
        "<s>USER: <image>\nhow many? ASSISTANT: 3</s>USER: where is the 2? ASSISTANT: top left</s>"
        "USER: and in <image>this one? ASSISTANT: none</s>"
    )
    text = text.replace("<image>", "<image>" * llava.config.image_seq_length)
    ids = torch.tensor([ours.tokenizer(text, add_special_tokens=False).input_ids])
    labels = torch.full_like(ids, -100)
    with torch.no_grad():
        features = ours.model.vision(pictures)
        packed, shown = RowPacking(ours).pack([row], features.shape[1])
        embeddings, _ = embed(packed, features[shown], ours.model.decoder, None, None)
        hidden, _ = ours.model.decoder(embeddings, packed.allowed, packed.positions)
        at, place, target = packed.targets.T
        loss = functional.cross_entropy(ours.model.decoder.logits(hidden[at, place]), target)
        is_picture = ids[0] == llava.config.image_token_index
        assert torch.equal(packed.ids[0][~is_picture], ids[0][~is_picture])
        assert torch.equal((packed.role == 2)[0], is_picture)
        labels[0, place + 1] = target
        expected = llava(input_ids=ids, pixel_values=pixels, labels=labels).loss
    said = ours.tokenizer.decode(target)
    assert said == " 3</s> top left</s> none</s>"
    assert float(loss) == pytest.approx(float(expected), rel=1e-4)
