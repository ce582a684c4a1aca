"""The training step that is exported: gradients as autograd has them, and what cannot be exported."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from qtl_core import tensor_file, trainable
from qtl_core.bundle import open_half
from qtl_core.errors import CheckpointError, RecipeError
from qtl_core.nn.checkpoint import load_checkpoint
from qtl_core.nn.families.idefics3 import Connector as ShuffleConnector
from qtl_core.nn.families.llava import Connector
from qtl_core.nn.families.tinyllava_connectors import Resampler, build
from qtl_core.nn.quantizer import COMMITMENT_WEIGHT, Quantizer, distortion
from qtl_core.split_stage import Optimizer
from qtl_core.trainable import MEAN, STD, K, read_training
from qtl_export.config import ExportConfig
from qtl_export.exporter import export
from qtl_export.trainable.layers import layers_of
from qtl_export.trainable.recipe import read_split_recipe
from qtl_export.trainable.step import Backward, Forward, UnquantizedBackward, UnquantizedForward
from qtl_export.trainable.writing import BETAS, EPS
from qtl_training.recipe import read_recipe
from qtl_training.split.agreement import fingerprint
from qtl_training.split.partition import client_tensors
from qtl_training.stages.optimizing import ScheduledAdamW

WIDTH_IN, WIDTH, CODE_DIM, TOKENS = 10, 10, 6, 36


def tinyllava(kind: str) -> nn.Module:
    return build({"connector_type": kind}, WIDTH_IN, WIDTH, lambda name: None)


CONNECTORS = {
    "mlp2x_gelu": lambda: tinyllava("mlp2x_gelu"),
    "mlp1x_gelu": lambda: tinyllava("mlp1x_gelu"),
    "mlp3x_gelu": lambda: tinyllava("mlp3x_gelu"),
    "linear": lambda: tinyllava("linear"),
    "identity": lambda: tinyllava("identity"),
    "llava": lambda: Connector(WIDTH_IN, WIDTH, "gelu", True),
    "llava-tanh": lambda: Connector(WIDTH_IN, WIDTH, "gelu_pytorch_tanh", False),
    "norm": lambda: nn.Sequential(nn.LayerNorm(WIDTH_IN), nn.Linear(WIDTH_IN, WIDTH), nn.GELU("tanh")),
    "shuffle": lambda: ShuffleConnector(WIDTH_IN, WIDTH, 2, 1e-6),
}
QUANTIZERS: dict[str, dict[str, Any]] = {
    "frozen": {"scaling": "frozen", "k": 1.1},
    "frozen-channels": {"scaling": "frozen", "k": [0.5 + 0.2 * i for i in range(CODE_DIM)], "merge": 2},
    "frozen-levels": {"scaling": "frozen", "k": {2: 1.0, 16: 1.6, 256: 2.0}, "centre": "rare"},
    "frozen-both": {"scaling": "frozen", "k": {2: [1.1] * CODE_DIM, 16: [1.7] * CODE_DIM}},
    "frozen-median": {"scaling": "frozen", "k": 1.2, "centre": "median"},
    "image": {"scaling": "image", "k": 1.3, "merge": 3},
    "image-channels": {"scaling": "image", "k": [0.5 + 0.2 * i for i in range(CODE_DIM)]},
    "image-levels": {"scaling": "image", "k": {2: 1.0, 4: 1.2, 8: 2.0}},
}


def held_against_autograd(connector: nn.Module, quantizer: Quantizer, levels: int) -> None:
    from edge_runtime.training.levels import of

    torch.manual_seed(5)
    quantizer.std.uniform_(0.5, 1.5)
    quantizer.train()
    connector.requires_grad_()
    quantizer.requires_grad_()
    known = {f"connector.{name}": value for name, value in connector.named_parameters()}
    known |= {
        f"vision_quantizer.{name}": value
        for name, value in quantizer.named_parameters()
        if not name.startswith("out_proj")
    }
    given = {name: value.detach().clone() for name, value in known.items()}
    if quantizer.scaling == "frozen":
        given |= {MEAN: quantizer.mean.clone(), STD: quantizer.std.clone()}
    features = torch.randn(3, TOKENS, WIDTH_IN).half()
    scaled = quantizer.scale(quantizer.project(connector(features.float())), levels)
    codes = quantizer.to_codes(scaled, levels)
    loss = COMMITMENT_WEIGHT * distortion(scaled, quantizer.values(codes, levels))
    cotangent = torch.randn_like(scaled)
    names = list(known)
    wanted = [
        *torch.autograd.grad(scaled, list(known.values()), cotangent, retain_graph=True),
        *torch.autograd.grad(loss, list(known.values())),
    ]

    level = of(levels, quantizer.k_levels.tolist())
    numbers = [torch.from_numpy(one) for one in (level.half, level.offset, level.mix)]
    layers = layers_of(connector)
    forward = Forward(layers, quantizer, list(given))
    backward = Backward(layers, quantizer, list(given))
    with torch.no_grad():
        found, size, *moved = forward(features, list(given.values()), *numbers)
        assert torch.equal(found, codes.to(torch.uint8)) and bool(size.isfinite())
        for name, value in zip((MEAN, STD), moved, strict=False):
            given[name] = value
        if moved:
            torch.testing.assert_close(moved, [quantizer.mean, quantizer.std])
        made = backward(features, list(given.values()), *numbers, cotangent)
    order = [*backward.learns, *backward.learns]
    of_answers = len(backward.learns)
    for number, (name, gradient) in enumerate(zip(order, made, strict=True)):
        place = names.index(name) + (len(names) if number >= of_answers else 0)
        _close(gradient, wanted[place], name)


def _close(found: Tensor, wanted: Tensor, name: str) -> None:
    assert found.shape == wanted.shape, name
    assert float((found - wanted).norm()) <= 2e-4 * float(wanted.norm()) + 1e-6, name


@pytest.mark.parametrize("kind", CONNECTORS)
def test_gradients_of_connectors(kind: str) -> None:
    torch.manual_seed(1)
    held_against_autograd(CONNECTORS[kind](), Quantizer(WIDTH, CODE_DIM, 4, "frozen", 1.2), 4)


@pytest.mark.parametrize("levels", [2, 3, 5, 256])
@pytest.mark.parametrize("kind", QUANTIZERS)
def test_gradients_of_quantizers(kind: str, levels: int) -> None:
    torch.manual_seed(2)
    quantizer = Quantizer(WIDTH, CODE_DIM, 4, **QUANTIZERS[kind])
    held_against_autograd(nn.Linear(WIDTH_IN, WIDTH), quantizer, levels)


def test_gradients_of_features() -> None:
    torch.manual_seed(3)
    connector = CONNECTORS["llava"]()
    layers, names = layers_of(connector), [f"connector.{name}" for name, _ in connector.named_parameters()]
    tensors = [value.detach().clone() for value in connector.parameters()]
    features, cotangent = torch.randn(2, TOKENS, WIDTH_IN).half(), torch.randn(2, TOKENS, WIDTH)
    at_cut = connector(features.float())
    wanted = torch.autograd.grad(at_cut, list(connector.parameters()), cotangent)
    assert torch.equal(UnquantizedForward(layers, names)(features, tensors), at_cut.half())
    found = UnquantizedBackward(layers, names)(features, tensors, cotangent)
    for name, one, other in zip(names, found, wanted, strict=True):
        _close(one, other, name)


@pytest.mark.parametrize(
    ("connector", "named"),
    [
        (nn.Sequential(nn.Linear(3, 3), nn.ReLU()), "ReLU"),
        (Connector(3, 3, "silu", True), "SiLU"),
        (Resampler(8, 8, queries=2, depth=1), "Resampler"),
    ],
)
def test_connectors_that_are_not_known(connector: nn.Module, named: str) -> None:
    with pytest.raises(CheckpointError, match=f"has a {named}.*whose gradient --trainable cannot write"):
        layers_of(connector)


def test_adamw_is_the_recipes() -> None:
    parameter = nn.Parameter(torch.zeros(2, 2))
    adamw = ScheduledAdamW(Optimizer(lr=1.0), 1, [([("it", parameter)], 1.0)])._adamw
    assert (adamw.defaults["betas"], adamw.defaults["eps"]) == (BETAS, EPS)


RECIPE = """
name = "device"
seed = 5
start = "{start}"
[[stages]]
kind = "split"
steps = 3
levels = [{levels}]
optimizer = {{ lr = 1e-3 }}
{data}
"""
DATA = '[stages.data]\nrows = 2\nmax_tokens = 64\nfile = "mine.json"'


def write_recipe(folder: Path, start: Path | str, *, levels: str = "4, 0", data: str = DATA) -> Path:
    file = folder / "recipe.toml"
    file.write_text(RECIPE.format(start=start, levels=levels, data=data))
    return file


@pytest.fixture(scope="module")
def both(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path, Path]:
    """A plain bundle, one that can be trained, and its recipe."""
    folder = tmp_path_factory.mktemp("trainable")
    file = write_recipe(folder, checkpoint)
    export(ExportConfig(checkpoint=checkpoint, levels=4, output=folder / "plain", validate=0))
    config = ExportConfig(
        checkpoint=checkpoint, levels=4, output=folder / "more", validate=0, recipe=read_split_recipe(file)
    )
    exported = export(config)
    assert exported.training is not None and f"training {exported.training.fingerprint}"
    return folder / "plain", folder / "more", file


@pytest.mark.slow
def test_the_rest_of_the_bundle_is_the_plain_one(both: tuple[Path, Path, Path]) -> None:
    plain, more, _ = both
    for half in ("client", "server"):
        ours, theirs = (open_half(one, half).manifest for one in (more, plain))
        assert ours.fingerprint == theirs.fingerprint
        for name, entry in theirs.files.items():
            if name != "README.md":
                assert ours.files[name] == entry, name
        added = set(ours.files) - set(theirs.files)
        assert all(name.startswith("train/") for name in added) and bool(added) == (half == "client")


@pytest.mark.slow
def test_what_it_says_is_what_the_server_wants(both: tuple[Path, Path, Path], checkpoint: Path) -> None:
    _, more, file = both
    half = open_half(more, "client")
    training, recipe = read_training(half), read_recipe(file)
    assert bytes.fromhex(training.fingerprint) == fingerprint(recipe)
    assert training.seeds == (505,) and training.stages[0].steps == 3
    assert "mine.json" not in half.file(trainable.FILE).read_text()  # where data lies is the client's affair
    start = tensor_file.load(half.file(trainable.START).read_bytes(), "start")
    model = load_checkpoint(checkpoint).model
    wanted = client_tensors(model)
    assert set(start) == set(wanted)
    assert all(torch.equal(torch.from_numpy(start[name]), wanted[name]) for name in start)
    assert start[K].shape == tuple(model.vision_quantizer.k.shape)
    quantizer = model.vision_quantizer
    assert training.codes == (training.features[0] // quantizer.merge**2, quantizer.code_dim)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"data": ""}, "stage 1 trains on digit scenes, which a device cannot draw"),
        ({"data": f"fit_quantizer = true\n{DATA}"}, "needs PyTorch where the pictures are"),
        (
            {"data": f"labels = 'private'\n{DATA}"},
            "keeps labels private, which a client without PyTorch cannot",
        ),
        ({"data": f"train = ['decoder']\n{DATA}"}, "trains nothing on the client"),
        ({"start": ""}, "starts from no checkpoint"),
        ({"levels": ""}, "levels is empty"),
        ({"levels": '"four"'}, 'whose stages are all kind = "split"'),
    ],
)
def test_recipes_that_no_device_can_run(tmp_path: Path, change: dict[str, str], says: str) -> None:
    file = write_recipe(tmp_path, **{"start": "shipped", **change})
    with pytest.raises(RecipeError, match=says):
        read_split_recipe(file)
    with pytest.raises(RecipeError, match="cannot be read: No such file"):
        read_split_recipe(tmp_path / "no.toml")


@pytest.mark.slow
def test_the_command_takes_checkpoint_and_levels_from_the_recipe(
    checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from qtl_export.cli import main

    file, output = write_recipe(tmp_path, checkpoint, levels="3"), tmp_path / "bundle"
    assert main(["--trainable", str(file), "-o", str(output), "--validate", "0", "--json"]) == 0
    said = json.loads(capsys.readouterr().out)
    assert (said["levels"], said["training"]["steps"], said["training"]["recipe"]) == (3, [3], "device")
    assert main(["--trainable", str(file), "--quantizer", "small"]) == 2
    assert "--trainable goes with none of" in capsys.readouterr().err
