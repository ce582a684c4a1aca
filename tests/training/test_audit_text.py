"""Inverting coded questions: codes of a token are compared with those of every token there is."""

from __future__ import annotations

import pytest
import torch

from qtl_core.nn.quantizer import Quantizer
from qtl_training.audit.text import chance, invert

VOCABULARY, WIDTH = 120, 16
QUESTIONS = [tuple(range(start, start + 9)) for start in range(0, 108, 9)]


@pytest.fixture(scope="module")
def table() -> torch.Tensor:
    return torch.randn(VOCABULARY, WIDTH, generator=torch.Generator().manual_seed(2))


def fitted(table: torch.Tensor, scaling: str, code_dim: int) -> Quantizer:
    torch.manual_seed(1)
    quantizer = Quantizer(WIDTH, code_dim, 256, "image" if scaling == "image" else "frozen")
    quantizer.fit(table[None])
    return quantizer.eval()


@pytest.mark.parametrize("scaling", ["image", "frozen"])
def test_eight_bits_hide_no_token(table: torch.Tensor, scaling: str) -> None:
    found = invert(QUESTIONS, table, fitted(table, scaling, WIDTH), 256)
    assert found["tokens"] == found["questions"] == 100


def test_two_codes_of_one_bit_cannot_name_a_hundred_tokens(table: torch.Tensor) -> None:
    found = invert(QUESTIONS, table, fitted(table, "frozen", 2), 2)
    assert found["tokens"] <= 100 * 4 / 108 + 1
    assert found["questions"] == 0


def test_statistics_of_each_question_are_found_out_with_it(table: torch.Tensor) -> None:
    found = invert(QUESTIONS, table, fitted(table, "image", WIDTH), 4)
    assert found["tokens"] > 95


def test_half_precision_embeddings_are_the_tokens(table: torch.Tensor) -> None:
    found = invert(QUESTIONS, table, fitted(table, "image", 4), 0)
    assert found["tokens"] == found["nearest_embedding"] == 100


def test_chance_is_the_most_frequent_token() -> None:
    assert chance([(5, 5, 6), (5,)]) == 75
