"""Attackers on toys: they find what is there, and nothing where nothing is."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from qtl_core.nn.quantizer import merge_tokens
from qtl_training.audit.attributes import probe
from qtl_training.audit.cells import Cells
from qtl_training.audit.inversion import as_bytes, invert, mean_picture
from qtl_training.audit.networks import Adapter, Draft
from qtl_training.audit.settings import QUICK
from qtl_training.audit.similarity import psnr
from qtl_training.digits.scenes import sample

EFFORT = replace(QUICK, batch=16, inversion_steps=4, attribute_steps=60)


def colours_of_patches(n: int, rng: np.random.Generator) -> tuple[torch.Tensor, np.ndarray]:
    """Nine tokens of three values each, and pictures whose cells have just these colours."""
    values = rng.uniform(-1, 1, (n, 9, 3)).astype(np.float32)
    cells = (127.5 * (1 + values)).reshape(n, 3, 3, 3)
    pictures = cells.repeat(32, axis=1).repeat(32, axis=2)
    return torch.from_numpy(values), as_bytes(pictures)


def test_inversion_recovers_a_linear_toy_and_starts_at_the_mean() -> None:
    rng = np.random.default_rng(1)
    seen, pixels = colours_of_patches(96, rng)
    seen_test, truth = colours_of_patches(24, rng)
    mean = np.repeat(as_bytes(mean_picture(pixels))[None], len(truth), axis=0)
    untrained = invert(seen, seen_test, pixels, 9, replace(EFFORT, inversion_steps=0), 1, progress=False)
    assert (untrained == mean).all()
    drawn = invert(seen, seen_test, pixels, 9, EFFORT, 1, progress=False)
    assert psnr(drawn, truth).mean() > psnr(mean, truth).mean() + 10
    again = invert(seen, seen_test, pixels, 9, EFFORT, 1, progress=False)
    assert (drawn == again).all()


def one_hot_cells(n: int, seed: int) -> tuple[torch.Tensor, Cells]:
    """Nine tokens, each with its cell's digit and colour written out."""
    scenes = sample("train", n, seed)
    digits = np.eye(11, dtype=np.float32)[scenes.digits]
    colours = np.eye(7, dtype=np.float32)[scenes.colours]
    return torch.from_numpy(np.concatenate([digits, colours], -1)), Cells.of(scenes)


def test_probe_reads_what_is_written_and_only_chance_off_noise() -> None:
    seen, learnt = one_hot_cells(600, 1)
    seen_test, truth = one_hot_cells(100, 2)
    read = probe(seen, seen_test, learnt, truth, 9, EFFORT, 1, progress=False)
    chance = truth.chance(learnt)
    assert read["digits"] > 90 and read["colours"] > 90 and read["positions"] > 95
    noise, noise_test = torch.randn(600, 9, 18), torch.randn(100, 9, 18)
    deaf = probe(noise, noise_test, learnt, truth, 9, EFFORT, 1, progress=False)
    assert abs(deaf["digits"] - chance["digits"]) < 6
    assert deaf["scenes"] == 0


def test_cells_count_by_hand() -> None:
    digits, colours = torch.full((2, 9), -1), torch.full((2, 9), -1)
    digits[0, :2], colours[0, :2] = torch.tensor([3, 7]), torch.tensor([1, 1])
    cells = Cells(digits, colours)
    named_digit, named_colour = torch.full((2, 9), 3), torch.full((2, 9), 1)
    there = digits >= 0
    right = cells.named_right(named_digit, named_colour, there)
    # One of two digits, both colours, every cell, and the empty scene only.
    assert right == {"digits": 50.0, "colours": 100.0, "positions": 100.0, "scenes": 50.0}
    nothing = cells.named_right(named_digit, named_colour, torch.zeros(2, 9, dtype=torch.bool))
    assert nothing["positions"] == pytest.approx(100 * 16 / 18)


def test_adapter_whitens_and_spreads_tokens_over_the_grid() -> None:
    torch.manual_seed(0)
    seen = torch.randn(500, 4, 3) * torch.tensor([100.0, 1.0, 0.01]) + 5
    adapter = Adapter(seen, 4, 8)
    white = (seen - adapter.centre) @ adapter.whitening
    assert torch.allclose(white.reshape(-1, 3).std(0).sort().values[1:], torch.ones(2), atol=0.06)
    assert adapter(seen[:2]).shape == (2, 16, 8)
    constant = Adapter(torch.ones(10, 4, 3), 2, 8)
    assert torch.isfinite(constant(torch.ones(1, 4, 3))).all()
    with pytest.raises(ValueError, match="do not spread"):
        Adapter(seen, 3, 8)


@pytest.mark.parametrize(("tokens", "channels"), [(36, 2), (4, 5)])
def test_draft_draws_what_depends_on_a_square_alone(tokens: int, channels: int) -> None:
    torch.manual_seed(0)
    seen = torch.randn(300, tokens, channels)
    draft = Draft(Adapter(seen, round(tokens**0.5), 8), seen)
    across = {36: 3, 4: 1}[tokens]
    of_square = merge_tokens(seen, round(tokens**0.5) // across).tanh()[..., 0]
    grid = of_square.reshape(-1, 1, across, across).repeat_interleave(96 // across, 2)
    pictures = grid.repeat_interleave(96 // across, 3).expand(-1, 3, -1, -1)
    assert not draft(seen[:2]).any()
    draft.fit(seen[:240], lambda part: pictures[:240][part])
    error = (draft(seen[240:]) - pictures[240:]).pow(2).mean()
    assert error < 0.2 * pictures[240:].var()
