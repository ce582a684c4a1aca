"""The alignment loss: low where picture tokens and place vectors say the right words."""

from __future__ import annotations

import numpy as np
import torch

from qtl_core.nn.checkpoint import Checkpoint
from qtl_training.digits.scenes import COLOURS
from qtl_training.packing import Vocabulary
from qtl_training.stages.alignment import Alignment


def scene() -> tuple[np.ndarray, np.ndarray]:
    digits = np.array([[5, -1, 3, 0, 9, 1, -1, 2, 7]], np.int8)
    colours = np.array([[0, -1, 2, 1, 5, 3, -1, 4, 0]], np.int8)
    return digits, colours


def test_tokens_that_say_the_words_cost_less_than_others(tiny: Checkpoint) -> None:
    decoder, vocabulary = tiny.model.decoder, Vocabulary(tiny)
    digits, colours = scene()
    said = torch.zeros(1, 36, decoder.width)
    for token in range(36):
        cell = token // 6 // 2 * 3 + token % 6 // 2  # 6 x 6 tokens, 3 x 3 cells
        if digits[0, cell] >= 0:
            words = (f" {digits[0, cell]}", f" {COLOURS[colours[0, cell]]}")
            said[0, token] = (
                sum(decoder.embed(torch.tensor(vocabulary.ids(word))).mean(0) for word in words) * 1e3
            )
    alignment = Alignment(vocabulary)
    right = alignment.loss(said, digits, colours, decoder)
    mirrored = alignment.loss(said.flip(1), digits, colours, decoder)
    assert right < mirrored


def test_empty_cells_ask_for_nothing(tiny: Checkpoint) -> None:
    decoder, alignment = tiny.model.decoder, Alignment(Vocabulary(tiny))
    digits, colours = scene()
    features = torch.randn(1, 36, decoder.width)
    changed = features.clone()
    changed[0, [2, 3, 8, 9]] += 5  # the tokens of the empty cell 1
    assert torch.equal(
        alignment.loss(features, digits, colours, decoder), alignment.loss(changed, digits, colours, decoder)
    )
