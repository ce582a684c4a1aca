"""Prompts about pictures in rows: each answer is the server's, and its likelihoods are its own."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from qtl_core.errors import QuestionError
from qtl_core.nn.checkpoint import Checkpoint, load_checkpoint
from qtl_training.distillation.prompts import PROMPTS, read_prompts
from qtl_training.distillation.rows import NOTHING, Asking, divergence
from tests.nn import foreign
from tests.nn.test_family_llava import served

ASKED = ("how many digits are there?", "why?", "is any digit red or blue?")


@pytest.mark.parametrize(
    "case",
    [
        {},
        {"tower": "siglip_vision_model", "decoder": "gemma2", "tied": True},  # windows
        {"tower": "siglip_vision_model", "decoder": "phi3", "layer": [0, 1, 2]},
    ],
    ids=["llama", "gemma2", "phi3"],
)
def test_answers_are_the_servers(tmp_path: Path, case: dict[str, Any]) -> None:
    foreign.make_llava(tmp_path / "llava", **case)
    checkpoint = load_checkpoint(tmp_path / "llava")
    with torch.no_grad():
        features = checkpoint.model.vision(foreign.pictures(len(ASKED)))
    asking = Asking(checkpoint, 6)
    rows = asking.rows([asking.prompt(text) for text in ASKED], features.shape[1])
    assert len({int(one) for one in rows.there.sum(1)}) > 1  # of several lengths
    answers, likely = asking.greedy(features, rows)
    part = served(tmp_path / "server", checkpoint, features.shape[1])
    for row, text in enumerate(ASKED):
        assert asking.text(answers[row]) == "".join(part.generate(features[row].numpy(), text, max_tokens=6))
    check_likelihoods(asking, features, rows, answers, likely)


def check_likelihoods(asking: Asking, features: Any, rows: Any, answers: Any, likely: Any) -> None:
    there = answers != NOTHING
    with torch.no_grad():
        again = asking.likelihoods(features, rows, answers)
    assert (again - likely)[there].abs().max() < 1e-4
    assert divergence(likely, again, answers).abs().max() < 1e-6
    moved = (features + 0.3 * torch.randn_like(features)).requires_grad_()
    kl = divergence(likely, asking.likelihoods(moved, rows, answers), answers)
    assert kl.shape == (len(ASKED),) and (kl > 0).all()
    kl[0].backward()
    # A row's answer depends on its own picture, and on no other.
    assert moved.grad is not None and moved.grad[0].abs().max() > 0 and not moved.grad[1:].any()


def test_our_own_decoder_with_places_and_bidirectional_pictures(tiny: Checkpoint) -> None:
    features = torch.randn(len(ASKED), 36, 16, generator=torch.Generator().manual_seed(2))
    asking = Asking(tiny, 5)
    rows = asking.rows([asking.prompt(text) for text in ASKED], 36)
    answers, likely = asking.greedy(features, rows)
    for row, text in enumerate(ASKED):
        alone = asking.rows([asking.prompt(text)], 36)
        found, scores = asking.greedy(features[row : row + 1], alone)
        kept = answers[row][answers[row] != NOTHING]
        assert found[0].tolist() == kept.tolist()
        assert (likely[row, : len(kept)] - scores[0]).abs().max() < 1e-4
    check_likelihoods(asking, features, rows, answers, likely)


def test_an_answer_stops_at_its_end(tiny: Checkpoint) -> None:
    features = torch.randn(2, 36, 16, generator=torch.Generator().manual_seed(3))
    asking = Asking(tiny, 4)
    rows = asking.rows([asking.prompt(ASKED[0])] * 2, 36)
    first = int(asking.greedy(features, rows)[0][0, 0])
    asking._end = (first,)  # what it says first ends the answer
    answers, _ = asking.greedy(features, rows)
    assert answers[0].tolist() == [first] + [NOTHING] * (answers.shape[1] - 1)
    assert asking.text(answers[0]) == ""


def test_prompts(tmp_path: Path, tiny: Checkpoint) -> None:
    assert read_prompts(None) == PROMPTS
    file = tmp_path / "prompts.txt"
    file.write_text("one?\n\n two? \none?\n", "utf-8")
    assert read_prompts(file) == ("one?", "two?")
    file.write_text("\n")
    with pytest.raises(QuestionError, match="no prompt in"):
        read_prompts(file)
    file.write_bytes(b"\xff\xfe")
    with pytest.raises(QuestionError, match="cannot be read"):
        read_prompts(file)
    with pytest.raises(QuestionError, match="the model takes 48"):
        Asking(tiny, 4).prompt("x" * 200)
