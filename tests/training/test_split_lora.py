"""Adapters of the decoder in a split run: exact across the cut, resumed, and gone from what comes out."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from qtl_core.errors import MissingExtra, RecipeError
from qtl_core.nn.checkpoint import load_checkpoint
from qtl_core.split_stage import SplitStage
from qtl_training.local import begun, stage_seed
from qtl_training.recipe import Recipe
from qtl_training.run_folder import RunFolder
from qtl_training.split import adapters
from qtl_training.stages.split import SplitTraining
from tests.training.split_pair import across, in_one, recipe_of, weights

LORA = 'lora = { rank = 2, dropout = 0.2, targets = ["q_proj", "up_proj"] }\noptimizer = { lr = 1e-2 }'
needs_peft = pytest.mark.skipif(find_spec("peft") is None, reason="peft is not installed")


def stage_of(recipe: Recipe) -> SplitStage:
    (stage,) = recipe.stages
    assert isinstance(stage, SplitStage)
    return stage


@needs_peft
def test_the_weights_are_those_of_one_process(tmp_path: Path) -> None:
    recipe = recipe_of(tmp_path, LORA, "grad_bits = 4", top="evaluate_every = 2\nevaluate_pictures = 6")
    across(recipe, tmp_path)
    local = in_one(recipe, tmp_path / "local")
    assert weights(local) == weights(tmp_path / "server" / "checkpoint")
    logs = [(tmp_path / side / "log.jsonl").read_text() for side in ("client", "local")]
    assert logs[0] == logs[1] and "evaluation" in logs[0]


@needs_peft
def test_only_the_named_layers_change(tmp_path: Path) -> None:
    recipe = recipe_of(tmp_path, LORA)
    run = RunFolder(tmp_path / "run", recipe)
    begun(run, recipe)
    before = load_file(tmp_path / "run" / "000000-0000000" / "checkpoint" / "model.safetensors")
    after = load_file(in_one(recipe, tmp_path / "run") / "model.safetensors")
    assert list(before) == list(after)
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    decoder = {name for name in changed if "language_model" in name or "lm_head" in name}
    assert {name.split(".")[-2] for name in decoder} == {"q_proj", "up_proj"} and len(decoder) == 4
    difference = next(after[name] - before[name] for name in decoder if "q_proj" in name)
    assert int(torch.linalg.matrix_rank(difference, rtol=1e-3)) == 2


@needs_peft
def test_resumed_is_undisturbed(tmp_path: Path) -> None:
    recipe = recipe_of(tmp_path, LORA, steps=4)
    straight = in_one(recipe, tmp_path / "straight")
    run = RunFolder(tmp_path / "stopped", recipe)
    checkpoint = begun(run, recipe).checkpoint
    checkpoint.model.train()
    torch.manual_seed(7)
    training = SplitTraining(checkpoint, stage_of(recipe), stage_seed(recipe, 0), progress=False)
    for step in range(2):
        training.run_step(step)
    run.save(checkpoint, 0, 2, training.state())
    kept = load_file(tmp_path / "stopped" / "000000-0000002" / "checkpoint" / "model.safetensors")
    assert not [name for name in kept if "lora" in name or "base_layer" in name]
    assert weights(in_one(recipe, tmp_path / "stopped")) == weights(straight)


@needs_peft
def test_all_linear_layers_by_default_and_merged_as_trained(tmp_path: Path) -> None:
    recipe = recipe_of(tmp_path, "lora = {}")
    run = RunFolder(tmp_path / "run", recipe)
    checkpoint = begun(run, recipe).checkpoint
    decoder = checkpoint.model.decoder
    names = list(decoder.state_dict())
    lora = stage_of(recipe).lora
    assert lora is not None
    made = adapters.Adapters(decoder, lora, 1)
    assert len(made.state()) == 2 * 2 * 7  # A and B of seven layers in each of two
    inputs = torch.randn(1, 5, decoder.width)
    allowed, positions = torch.ones(5, 5, dtype=torch.bool).tril()[None], torch.arange(5)[None]
    plain = decoder(inputs, allowed, positions)[0]
    for name, parameter in decoder.named_parameters():
        if adapters.is_adapter(name):
            torch.nn.init.normal_(parameter, std=0.2)
    adapted = decoder(inputs, allowed, positions)[0]
    with adapters.without_adapters(decoder):
        assert torch.equal(decoder(inputs, allowed, positions)[0], plain)
        assert list(decoder.state_dict()) == names
    made.merge()
    torch.testing.assert_close(decoder(inputs, allowed, positions)[0], adapted, atol=1e-5, rtol=1e-4)
    assert list(decoder.state_dict()) == names and not torch.equal(adapted, plain)


@needs_peft
def test_layers_that_are_not_there(tmp_path: Path) -> None:
    recipe = recipe_of(tmp_path, 'lora = { targets = ["c_attn"] }')
    with pytest.raises(RecipeError, match="no linear layer named c_attn; there are down_proj, gate_proj"):
        in_one(recipe, tmp_path / "run")


def test_without_peft(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(adapters, "find_spec", lambda name: None)
    with pytest.raises(MissingExtra, match=r"'peft' is not installed; .*pip install .*\[train\]"):
        in_one(recipe_of(tmp_path, "lora = { rank = 4 }"), tmp_path / "run")
    # The side that has the pictures needs none.
    assert load_checkpoint(tmp_path / "run" / "000000-0000000" / "checkpoint").model.quantized


@pytest.mark.parametrize(
    ("more", "says"),
    [
        ("lora = { rank = 0 }", "lora has rank 0, alpha 16 and dropout 0"),
        ("lora = { dropout = 1.0 }", "from 0 to below 1"),
        ('lora = {}\ntrain = ["connector"]', 'add "decoder" to `train`'),
    ],
)
def test_settings_that_cannot_be(tmp_path: Path, more: str, says: str) -> None:
    with pytest.raises(RecipeError, match=says):
        recipe_of(tmp_path, more)
