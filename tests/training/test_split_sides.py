"""The two sides of split training: what they do together is what one graph does."""

from __future__ import annotations

from pathlib import Path

import msgspec
import numpy as np
import pytest
import torch
from safetensors.torch import save
from torch.nn import functional

from qtl_core import shipped
from qtl_core.errors import MalformedMessage, RecipeError
from qtl_core.nn.checkpoint import Checkpoint, load_checkpoint
from qtl_core.split_stage import Optimizer, SplitStage, levels_of
from qtl_training.features import tower_features
from qtl_training.packing import Turn, Vocabulary, embed, pack
from qtl_training.recipe import read_recipe
from qtl_training.split.client_side import ClientSide
from qtl_training.split.gradients import GradientCoder
from qtl_training.split.partition import server_tensors, take
from qtl_training.split.samples import DigitSamples
from qtl_training.split.server_side import ServerSide
from qtl_training.stages.split import SplitTraining

STAGE = SplitStage(
    steps=4,
    scenes=12,
    micro_batches=2,
    pictures=3,
    questions=2,
    levels=(4,),
    train=("connector", "decoder", "vision_quantizer"),
    optimizer=Optimizer(lr=1e-4),
)


@pytest.fixture
def checkpoint() -> Checkpoint:
    loaded = load_checkpoint(shipped.digits())
    loaded.model.train()
    loaded.model.vision.tower.eval()
    return loaded


def gradients(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    return {
        name: parameter.grad.clone()
        for name, parameter in model.named_parameters()
        if parameter.grad is not None
    }


def sides_gradients(checkpoint: Checkpoint, stage: SplitStage) -> tuple[dict[str, torch.Tensor], float]:
    samples = DigitSamples(stage, 3)
    features = tower_features(checkpoint.model.vision, samples.scenes, progress=False)
    client, server = ClientSide(checkpoint.model, stage), ServerSide(checkpoint, stage)
    levels, tokens = levels_of(stage, 3, 0), 0
    for number, micro in enumerate(samples.micro_batches(0)):
        crossed = client.forward(number, features[list(micro.pictures)], levels)
        result = server.run(crossed, levels, micro.rows)
        client.backward(number, result.gradient)
        tokens += result.tokens
    squared = client.squared_norm(tokens) + server.squared_norm(tokens)
    return gradients(checkpoint.model), squared


@pytest.mark.parametrize("levels", [4, 0])
def test_gradients_are_those_of_one_graph(checkpoint: Checkpoint, levels: int) -> None:
    stage = msgspec.structs.replace(STAGE, micro_batches=1, levels=(levels,))
    mean = checkpoint.model.vision_quantizer.mean.clone()
    found, squared = sides_gradients(checkpoint, stage)
    checkpoint.model.zero_grad()
    checkpoint.model.vision_quantizer.mean.copy_(mean)
    checkpoint.model.vision_quantizer.std.copy_(load_checkpoint(shipped.digits()).model.vision_quantizer.std)

    samples, words = DigitSamples(stage, 3), Vocabulary(checkpoint)
    (micro,) = samples.micro_batches(0)
    features = tower_features(checkpoint.model.vision, samples.scenes, progress=False)
    model = checkpoint.model
    model.train()
    at_cut = model.vision.connector(features[list(micro.pictures)].float())
    restored, loss = model.cross(at_cut, levels or None)
    rows = [[Turn(words.ids(q), (*words.ids(a), words.end)) for q, a in row.turns] for row in micro.rows]
    packed = pack(rows, words, model.decoder, restored.shape[1])
    embeddings, _ = embed(packed, restored, model.decoder, None, None)
    hidden, _ = model.decoder(embeddings, packed.allowed, packed.positions)
    row, place, target = packed.targets.T
    (functional.cross_entropy(model.decoder.logits(hidden[row, place]), target) + loss).backward()
    expected = {name: value for name, value in gradients(model).items() if name in found}
    assert set(expected) == set(found)
    assert any("connector" in name for name in found) and any("decoder" in name for name in found)
    # Half-precision features round what crosses, which one graph does not.
    limit = 1e-4 if levels else 2e-2
    for name, value in found.items():
        assert float((value - expected[name]).norm()) <= limit * float(expected[name].norm()) + 1e-7, name
    norm = sum(float(value.double().square().sum()) for value in found.values())
    assert squared == pytest.approx(norm, rel=1e-9)


def test_accumulating_is_one_large_batch(checkpoint: Checkpoint) -> None:
    checkpoint.model.vision_quantizer.eval()  # its statistics follow batches, not steps
    many, _ = sides_gradients(checkpoint, STAGE)
    checkpoint.model.zero_grad()
    samples = DigitSamples(STAGE, 3)
    first, second = samples.micro_batches(0)
    features = tower_features(checkpoint.model.vision, samples.scenes, progress=False)
    checkpoint.model.train()
    checkpoint.model.vision_quantizer.eval()
    stage = msgspec.structs.replace(STAGE, micro_batches=1, pictures=6)
    client, server = ClientSide(checkpoint.model, stage), ServerSide(checkpoint, stage)
    crossed = client.forward(0, features[[*first.pictures, *second.pictures]], 4)
    behind = [msgspec.structs.replace(row, pictures=(row.pictures[0] + 3,)) for row in second.rows]
    result = server.run(crossed, 4, [*first.rows, *behind])
    client.backward(0, result.gradient)
    client.squared_norm(result.tokens)
    server.squared_norm(result.tokens)
    one = gradients(checkpoint.model)
    for name, value in many.items():
        assert float((value - one[name]).norm()) <= 1e-4 * float(one[name].norm()) + 1e-7, name


def test_clipping_spans_both_partitions(checkpoint: Checkpoint) -> None:
    stage = msgspec.structs.replace(STAGE, optimizer=Optimizer(lr=1e-4, clip=1e-3))
    before = [parameter.detach().clone() for parameter in checkpoint.model.parameters()]
    training = SplitTraining(checkpoint, stage, 3, progress=False)
    assert training.run_step(0)["norm"] > 1e-3
    moments = training.state()
    total = sum(
        float((value / 0.1).double().square().sum())  # after one step of beta = 0.9
        for name, value in moments.items()
        if name.endswith("/exp_avg")
    )
    assert total == pytest.approx(1e-6, rel=1e-3)
    assert any(not torch.equal(a, b) for a, b in zip(before, checkpoint.model.parameters(), strict=True))


def test_steps_depend_on_their_number_only() -> None:
    first, second = DigitSamples(STAGE, 3), DigitSamples(STAGE, 3)
    assert first.micro_batches(2) == second.micro_batches(2) != first.micro_batches(1)
    drawn = [picture for micro in first.micro_batches(2) for picture in micro.pictures]
    assert len(set(drawn)) == len(drawn) == 6


def test_what_is_owed_survives_a_restart() -> None:
    values = np.random.default_rng(0).standard_normal((3, 9, 8)).astype(np.float32)
    straight, stopped, resumed = (GradientCoder(1, 2) for _ in range(3))
    for coder in (straight, stopped):
        coder.encode(0, 0, values)
    resumed.load(stopped.state())
    assert resumed.encode(1, 0, values)[0] == straight.encode(1, 0, values)[0]
    assert GradientCoder(1, 2).encode(1, 0, values)[0] != straight.encode(1, 0, values)[0]


@pytest.mark.parametrize(
    ("setting", "says"),
    [
        ("grad_bits = 3", "grad_bits is 3, it must be one of 32, 16, 8, 4, 2"),
        ("levels = []", "levels is empty"),
        ("levels = [300]", "levels 300 is not 0"),
        ("micro_batches = 0", "must each be at least 1"),
        ("pictures = 40", "a step takes 80 pictures, and there are 64 scenes"),
        ("[stages.data]\nrows = 0", "data needs rows of at least 1"),
        ("[stages.data]\nmax_tokens = 2", "max_tokens of at least 3"),
        ("[stages.data]\nrows = 256\nmax_pictures = 257", "more than the 65536 that a micro-batch may have"),
        ("[stages.data]\nimages = 'x'", "unknown field `images`"),
        ('train = ["tower"]', "cannot train tower; there are connector, decoder, vision_quantizer"),
    ],
)
def test_settings_that_cannot_be(tmp_path: Path, setting: str, says: str) -> None:
    file = tmp_path / "bad.toml"
    file.write_text(
        'name = "bad"\nstart = "shipped"\n[[stages]]\nkind = "split"\nsteps = 2\nscenes = 64\n'
        f"optimizer = {{ lr = 1e-3 }}\n{setting}\n"
    )
    with pytest.raises(RecipeError, match=says):
        read_recipe(file)


def test_a_fit_begins_the_quantizer_anew_on_both_sides(checkpoint: Checkpoint) -> None:
    stage = msgspec.structs.replace(STAGE, fit_quantizer=True, rotation="independent", scenes=48)
    client_only, server_only = checkpoint, load_checkpoint(shipped.digits())
    samples = DigitSamples(stage, 3)
    features = tower_features(client_only.model.vision, samples.scenes, progress=False)
    fitted = ClientSide(client_only.model, stage).fit(features, 3)
    take(
        save({name: value.contiguous() for name, value in fitted.items()}), server_tensors(server_only.model)
    )
    before = load_checkpoint(shipped.digits()).model.vision_quantizer
    client, server = client_only.model.vision_quantizer, server_only.model.vision_quantizer
    assert not torch.equal(client.in_proj.weight, before.in_proj.weight)
    assert torch.equal(client.out_proj.weight, server.out_proj.weight)
    assert torch.equal(server.in_proj.weight, before.in_proj.weight)
    with torch.inference_mode():
        at_cut = client_only.model.vision.connector(features.float())
        restored = server.decode(client.encode(at_cut, 4), 4)
    # What a fit to these very pictures loses of their variance at 2 bits.
    assert float((restored - at_cut).var() / at_cut.var()) < 0.3


@pytest.mark.parametrize("change", ["nothing", "shape", "more", "nan", "bytes"])
def test_weights_that_do_not_fit_change_nothing(checkpoint: Checkpoint, change: str) -> None:
    own = server_tensors(checkpoint.model)
    before = {name: value.clone() for name, value in own.items()}
    sent = {name: value.clone() + 1 for name, value in own.items()}
    name = "vision_quantizer.out_proj.bias"
    match change:
        case "nothing":
            sent.pop(name)
        case "shape":
            sent[name] = sent[name][:-1].clone()
        case "more":
            sent["decoder"] = sent[name].clone()
        case "nan":
            sent[name][0] = torch.nan
    data = save(sent)
    with pytest.raises(MalformedMessage, match="the client's weights"):
        take(data[:-1] if change == "bytes" else data, own)
    assert all(torch.equal(before[name], value) for name, value in own.items())


@pytest.mark.parametrize("train", [("decoder",), ("connector",), ("connector", "vision_quantizer")])
def test_one_side_may_have_nothing_to_train(checkpoint: Checkpoint, train: tuple[str, ...]) -> None:
    before = {name: value.clone() for name, value in checkpoint.model.state_dict().items()}
    training = SplitTraining(
        checkpoint, msgspec.structs.replace(STAGE, train=train, levels=(0,)), 3, progress=False
    )
    training.run_step(0)
    training.load(training.state())
    training.run_step(1)
    moved = {
        name for name, value in checkpoint.model.state_dict().items() if not torch.equal(value, before[name])
    }
    assert {name.removeprefix("vision.").partition(".")[0] for name in moved} == {*train} - {
        "vision_quantizer"
    }
