"""Mixed precision and recomputed layers on the server's side of a split run."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from qtl_core import shipped
from qtl_core.errors import HostError, RecipeError
from qtl_core.nn.checkpoint import load_checkpoint
from qtl_core.split_stage import Optimizer, SplitStage
from qtl_training.features import tower_features
from qtl_training.recipe import read_recipe
from qtl_training.split.client_side import ClientSide
from qtl_training.split.precision import LossScale
from qtl_training.split.running import serve_run
from qtl_training.split.samples import DigitSamples
from qtl_training.split.server_side import MicroResult, ServerSide
from tests.training.split_pair import across, in_one, log, recipe_of, weights


def test_the_weights_are_those_of_one_process(tmp_path: Path) -> None:
    recipe = recipe_of(tmp_path, 'precision = "bf16"\ncheckpointing = true', 'precision = "fp16"', steps=2)
    across(recipe, tmp_path)
    mixed = in_one(recipe, tmp_path / "local")
    assert weights(mixed) == weights(tmp_path / "server" / "checkpoint")
    plain = in_one(recipe_of(tmp_path, "", "", steps=2), tmp_path / "plain")
    assert weights(plain) != weights(mixed)
    losses = [[line["loss"] for line in log(tmp_path / name)] for name in ("local", "plain")]
    assert losses[0] == pytest.approx(losses[1], rel=0.02)


def step(**settings: object) -> tuple[MicroResult, dict[str, Tensor], list[torch.dtype]]:
    """One micro-batch of the shipped model: what came of it, the decoder's gradients, its layers' types."""
    torch.set_num_threads(1)
    checkpoint = load_checkpoint(shipped.digits())
    checkpoint.model.train()
    stage = SplitStage(
        steps=1, scenes=4, micro_batches=1, pictures=4, questions=2, train=("decoder", "vision_quantizer"),
        optimizer=Optimizer(lr=1e-4), **settings,  # type: ignore[arg-type]
    )  # fmt: skip
    samples = DigitSamples(stage, 1)
    features = tower_features(checkpoint.model.vision, samples.scenes, progress=False)
    checkpoint.model.train()
    seen: list[torch.dtype] = []
    layer = next(m for n, m in checkpoint.model.decoder.named_modules() if n.endswith("up_proj"))
    layer.register_forward_hook(lambda module, given, out: seen.append(out.dtype))
    (micro,) = samples.micro_batches(0)
    crossed = ClientSide(checkpoint.model, stage).forward(0, features[list(micro.pictures)], 4)
    result = ServerSide(checkpoint, stage).run(crossed, 4, micro.rows)
    gradients = {
        name: parameter.grad
        for name, parameter in checkpoint.model.decoder.named_parameters()
        if parameter.grad is not None
    }
    return result, gradients, seen


def test_recomputed_layers_give_the_same_gradients() -> None:
    kept, gradients, once = step()
    recomputed, again, twice = step(checkpointing=True)
    assert (len(once), len(twice)) == (1, 2)
    assert kept.loss == recomputed.loss and (kept.gradient == recomputed.gradient).all()
    assert list(gradients) == list(again)
    assert all(torch.equal(value, again[name]) for name, value in gradients.items())


@pytest.mark.parametrize(("precision", "dtype"), [("bf16", torch.bfloat16), ("fp16", torch.float16)])
def test_half_precision_is_near_the_whole(precision: str, dtype: torch.dtype) -> None:
    whole, exact, _ = step()
    half, rounded, seen = step(precision=precision)
    assert seen == [dtype]
    assert half.loss == pytest.approx(whole.loss, rel=0.05)
    for name, value in exact.items():
        assert rounded[name].dtype == torch.float32
        assert float((rounded[name] - value).norm()) < 0.2 * float(value.norm()) + 1e-6, name


def test_an_overflow_is_computed_again_at_half_the_scale() -> None:
    parameter = nn.Parameter(torch.ones(2))
    parameter.grad = torch.tensor([1.0, 2.0])
    scale, tried = LossScale(), []

    def compute(value: float) -> tuple[Tensor, Tensor]:
        tried.append(value)
        crossed = torch.ones(2, requires_grad=True)
        loss = (parameter * crossed).sum()
        (loss * (torch.inf if value > 2.0**14 else value)).backward()
        return loss, crossed

    loss, gradient = scale.backward([parameter], compute)
    assert tried == [2.0**16, 2.0**15, 2.0**14]
    assert loss.item() == 2
    assert gradient.tolist() == [1, 1]
    assert parameter.grad.tolist() == [2, 3]
    again = LossScale()
    again.load(scale.state())
    assert again.value == 2.0**14
    for _ in range(1999):
        again.backward([parameter], compute)
    assert again.value == 2.0**15


def test_gradients_that_no_scale_saves_are_a_loss_that_is_no_number() -> None:
    parameter = nn.Parameter(torch.ones(1))

    def compute(value: float) -> tuple[Tensor, Tensor]:
        crossed = torch.ones(1, requires_grad=True)
        loss = (parameter * crossed).sum()
        (loss * torch.inf).backward()
        return loss, crossed

    assert LossScale().backward([parameter], compute)[0].isnan()


def test_a_precision_that_there_is_not(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match=r"Invalid enum value 'int8'"):
        recipe_of(tmp_path, 'precision = "int8"')


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_a_device_that_is_not_there(tmp_path: Path) -> None:
    recipe_of(tmp_path, "")
    with pytest.raises(HostError, match="no CUDA device is visible to PyTorch: use --device cpu"):
        serve_run(
            read_recipe(tmp_path / "pair.toml"), tmp_path / "run", bind="tcp://127.0.0.1:*", keys=None,
            insecure=False, fresh=False, ready_file=None, say=print, stop_on=(), progress=False,
            device="cuda",
        )  # fmt: skip
