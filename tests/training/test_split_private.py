"""Labels that stay with the client: the same gradients and weights, and no answer on the wire."""

from __future__ import annotations

import json
from pathlib import Path

import msgspec
import numpy as np
import pytest
import torch
from torch.nn import functional

from edge_runtime.training.labels import PrivateLabels, cross_entropy
from qtl_core import shipped
from qtl_core.crossing import GRADIENT, TEXTS, VALUES, Row, questions_of, read_texts, texts_up
from qtl_core.errors import InputError, MalformedMessage, RecipeError
from qtl_core.messages import Begin, Error, Grads, Judge, Micro, Norm, Outputs, Point, Start, Total
from qtl_core.nn.checkpoint import Checkpoint, load_checkpoint
from qtl_core.split_stage import Optimizer, SplitStage
from qtl_core.wire import frame_codes
from qtl_training.digits.questions import TYPES
from qtl_training.features import tower_features
from qtl_training.packing import Turn, Vocabulary, embed, pack
from qtl_training.recipe import read_recipe
from qtl_training.run_folder import write
from qtl_training.split.client_side import ClientSide
from qtl_training.split.private import HeldLabels, PrivateServerSide, head_of, put_head, scored_tokens, untie
from qtl_training.split.samples import DigitSamples
from qtl_training.split.serving import Serving
from qtl_training.stages.split import SplitTraining
from tests.nn.test_server_partition import AT_4_LEVELS, half
from tests.training.test_split_run import RECIPE, running, train_in_a_process, weights

SHORT = tuple(kind for kind in TYPES if kind != "locate")
ANSWERS = ("yes", "no", "none", "red", "green", "blue", "yellow", "purple", "white", *map(str, range(19)))
STAGE = SplitStage(
    steps=4,
    scenes=12,
    micro_batches=2,
    pictures=3,
    questions=2,
    levels=(4,),
    train=("connector", "decoder", "vision_quantizer"),
    optimizer=Optimizer(lr=1e-4),
    types=SHORT,
    labels="private",
)


@pytest.fixture
def checkpoint() -> Checkpoint:
    loaded = load_checkpoint(shipped.digits())
    loaded.model.train()
    loaded.model.vision.tower.eval()
    return loaded


def gradients(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("candidates", [(), ANSWERS], ids=["vocabulary", "candidates"])
@pytest.mark.parametrize("head", ["server", "client"])
def test_gradients_are_those_of_shared_labels(
    checkpoint: Checkpoint, head: str, candidates: tuple[str, ...]
) -> None:
    stage = msgspec.structs.replace(STAGE, micro_batches=1, head=head, candidates=candidates)
    model, words, samples = checkpoint.model, Vocabulary(checkpoint), DigitSamples(stage, 3)
    (micro,) = samples.micro_batches(0)
    features = tower_features(model.vision, samples.scenes, progress=False)[list(micro.pictures)]
    model.train()
    mean, std = model.vision_quantizer.mean.clone(), model.vision_quantizer.std.clone()
    held = HeldLabels(checkpoint, [stage], 0, 3, None)
    client, server = ClientSide(model, stage), PrivateServerSide(checkpoint, stage)
    crossed = client.forward(0, features, 4)
    outputs = server.forward(0, crossed, 4, questions_of(micro.rows))
    columns = len(candidates) or len(checkpoint.tokenizer)
    assert outputs.shape == (6, model.decoder.width if head == "client" else columns)
    judged = held.labels.judge(0, 0, outputs, micro.rows)
    client.backward(0, server.backward(0, judged.gradient))
    squared = client.squared_norm(judged.turns) + held.labels.squared_norm(judged.turns)
    squared += server.squared_norm(judged.turns)
    found = gradients(model)

    model.zero_grad()
    model.vision_quantizer.mean.copy_(mean)
    model.vision_quantizer.std.copy_(std)
    restored, distortion = model.cross(model.vision.connector(features.float()), 4)
    # Shared labels, one token each, no end token.
    rows = [[Turn(words.ids(q), words.ids(a)) for q, a in row.turns] for row in micro.rows]
    packed = pack(rows, words, model.decoder, restored.shape[1])
    embeddings, _ = embed(packed, restored, model.decoder, None, None)
    hidden, _ = model.decoder(embeddings, packed.allowed, packed.positions)
    row, place, target = packed.targets.T
    assert len(target) == 6
    tokens = scored_tokens(stage, checkpoint)
    scores = model.decoder.logits(hidden[row, place])[:, tokens]
    label = torch.tensor([tokens.index(int(one)) for one in target])
    loss = functional.cross_entropy(scores, label)
    (loss + distortion).backward()
    assert judged.loss / 6 == pytest.approx(loss.item(), rel=1e-5)
    expected = gradients(model)
    norm = sum(float(value.double().square().sum()) for value in expected.values())
    assert squared == pytest.approx(norm, rel=1e-4)
    assert any("connector" in name for name in found) and any("decoder" in name for name in found)
    for name, value in found.items():
        assert float((value - expected[name]).norm()) <= 1e-4 * float(expected[name].norm()) + 1e-7, name


def test_the_head_steps_as_torch_steps_it() -> None:
    stage = msgspec.structs.replace(STAGE, head="client", candidates=ANSWERS, head_lr=1e-2)
    random = np.random.default_rng(0)
    start = random.standard_normal((len(ANSWERS), 16)).astype(np.float32)
    labels = PrivateLabels(stage, 1, ANSWERS.index, 16, start)
    theirs = torch.nn.Parameter(torch.from_numpy(start.copy()))
    adamw = torch.optim.AdamW([theirs], lr=1e-2, betas=(0.9, 0.98), weight_decay=stage.optimizer.weight_decay)
    for step in range(4):
        outputs = random.standard_normal((6, 16)).astype(np.float32)
        rows = [Row((0,), tuple(("?", str(random.choice(ANSWERS))) for _ in range(6)))]
        judged = labels.judge(step, 0, outputs, rows)
        squared = labels.squared_norm(6)
        labels.apply(step, squared)
        target = torch.tensor([ANSWERS.index(answer) for _, answer in rows[0].turns])
        given = torch.from_numpy(outputs).requires_grad_()
        loss = functional.cross_entropy(given @ theirs.T, target, reduction="sum")
        adamw.zero_grad()
        loss.backward()
        assert theirs.grad is not None and given.grad is not None
        assert judged.loss == pytest.approx(loss.item(), rel=1e-5)
        np.testing.assert_allclose(judged.gradient, given.grad.numpy(), atol=1e-5)
        theirs.grad /= 6
        assert squared == pytest.approx(float(theirs.grad.square().sum()), rel=1e-5)
        theirs.grad *= min(1.0, stage.optimizer.clip / (squared**0.5 + 1e-6))
        adamw.param_groups[0]["lr"] = 1e-2 * [1.0, 1.0, 0.7525, 0.2575][step]
        adamw.step()
    assert labels.head is not None
    np.testing.assert_allclose(labels.head, theirs.detach().numpy(), atol=2e-6)


def test_cross_entropy_of_scores_without_bounds() -> None:
    loss, gradient = cross_entropy(np.array([[1e30, 0, -1e30]], np.float32), np.array([0]))
    assert loss == 0 and not gradient.any()
    _, gradient = cross_entropy(np.array([[1.0, 2.0], [3.0, 1.0]], np.float32), np.array([0, 1]))
    # What gives labels away where scores are the server's: the label's gradient alone is negative.
    assert ((gradient < 0) == [[True, False], [False, True]]).all()


def private(folder: Path, *, steps: int = 3, bits: int = 32, more: str = "") -> Path:
    text = RECIPE.format(steps=steps, bits=bits, every=0.0).replace("vocabulary = 300", "vocabulary = 385")
    first, second, third = text.split("[[stages]]")
    asked = f"types = {json.dumps(SHORT)}\nlabels = 'private'\ncandidates = {json.dumps(ANSWERS)}\n"
    second = second.replace("levels = [4, 0, 3]", "levels = [4, 0]")
    file = folder / "private.toml"
    client = f"{asked}head = 'client'\nhead_lr = 1e-2\n{more}\n"
    file.write_text("[[stages]]".join([first, second + asked, third + client, third + client]))
    return file


@pytest.mark.parametrize("bits", [32, pytest.param(4, marks=pytest.mark.slow)])
def test_the_weights_are_those_of_one_process(tmp_path: Path, source_env: dict[str, str], bits: int) -> None:
    recipe = private(tmp_path, bits=bits, more="return_head = true")
    local = train_in_a_process(recipe, tmp_path / "local", source_env)
    with running(recipe, tmp_path, source_env) as run:
        run.start("serve")
        run.start("client")
        run.result("client")
        run.result("serve")
    assert weights(tmp_path / "serve" / "checkpoint") == weights(local)
    ours = [json.loads(line) for line in (tmp_path / "client" / "log.jsonl").read_text().splitlines()]
    theirs = [json.loads(line) for line in (tmp_path / "local" / "log.jsonl").read_text().splitlines()]
    assert ours == theirs and len(ours) == 9 and all(one["loss"] > 0 for one in ours)
    finished = load_checkpoint(local)
    decoder = finished.model.decoder
    tokens = scored_tokens(msgspec.structs.replace(STAGE, candidates=ANSWERS), finished)
    hidden = torch.randn(2, decoder.width)
    # What answers questions is the head that was trained.
    expected = hidden @ torch.from_numpy(head_of(finished, tokens)).T
    torch.testing.assert_close(decoder.logits(hidden)[:, tokens], expected)
    embeddings = decoder.embed(torch.tensor(tokens))
    assert not torch.allclose(torch.from_numpy(head_of(finished, tokens)), embeddings, atol=1e-3)


@pytest.mark.slow
def test_a_head_that_stays_home_after_kills(tmp_path: Path, source_env: dict[str, str]) -> None:
    recipe = private(tmp_path, bits=8)
    secret = tmp_path / "secret.toml"
    secret.write_text(recipe.read_text().replace("seed = 4", "seed = 4\nhead_seed = 77", 1))
    local = train_in_a_process(secret, tmp_path / "local", source_env)
    with running(recipe, tmp_path, source_env) as run:
        run.start("serve")
        run.recipe = secret
        run.start("client")
        for side, done in (("serve", 2), ("client", 5), ("serve", 7)):
            run.wait_for(lambda done=done: run.steps() >= done, f"step {done}")
            assert run.processes["client"].poll() is None, run.processes["client"].communicate()
            run.kill(side)
            run.recipe = recipe if side == "serve" else secret
            run.start(side)
        run.result("client")
        run.result("serve")
    folders = (local, tmp_path / "serve/checkpoint", tmp_path / "client/checkpoint")
    one, server, client = (load_checkpoint(folder) for folder in folders)
    head = "decoder.language_model.lm_head.weight"
    states = [loaded.model.state_dict() for loaded in (one, server, client)]
    for name, value in states[0].items():
        if name != head:
            assert torch.equal(value, states[1][name]), name
    assert torch.equal(states[0][head], states[2][head])
    assert not torch.equal(states[0][head], states[1][head])
    assert server.model.decoder.language_model.config.tie_word_embeddings is False


def test_the_head_goes_to_the_exported_server_half(tmp_path: Path, tiny_folder: Path) -> None:
    checkpoint = load_checkpoint(tiny_folder)
    tokens = [3, 5, 8]
    untie(checkpoint)
    trained = np.random.default_rng(2).standard_normal((3, 16)).astype(np.float32)
    put_head(checkpoint, tokens, trained)
    write(tmp_path / "checkpoint", checkpoint)
    part = half(tmp_path / "server", load_checkpoint(tmp_path / "checkpoint"), AT_4_LEVELS)
    hidden = torch.randn(2, 16)
    scores = part.decoder.logits(hidden)[:, tokens]
    torch.testing.assert_close(scores, hidden @ torch.from_numpy(trained).T)
    embedded = part.decoder.embed(torch.tensor(tokens))
    torch.testing.assert_close(embedded, checkpoint.model.decoder.embed(torch.tensor(tokens)))


def test_what_the_server_hears(tmp_path: Path) -> None:
    file = private(tmp_path)
    file.write_text(file.read_text().replace("levels = [4, 0]", "levels = [4]"))
    recipe = read_recipe(file)
    serving = Serving(recipe, tmp_path / "run")
    ((start, _),) = serving.hear(Begin(1, (Point(0, 0),)), {})
    assert isinstance(start, Start)
    stage = recipe.stages[0]
    assert isinstance(stage, SplitStage)
    samples = DigitSamples(stage, 404)
    rows = samples.micro_batches(0)[0].rows
    codes = np.zeros((4, 9, 8), np.uint8)
    values, data = serving.crossing.up(codes, 4)

    def micro(about: int, number: int, said: tuple[Row, ...]) -> list[tuple[object, list[bytes]]]:
        texts, text_data = texts_up(said)
        sent = Micro(about, (values, texts), 0, number, 4)
        return list(serving.hear(sent, {VALUES: data, TEXTS: text_data}))

    ((told, _),) = micro(2, 0, rows)
    assert isinstance(told, Error) and "labels are private" in told.message

    def judge(about: int, number: int, gradient: bytes) -> list[object]:
        frame = frame_codes(GRADIENT, gradient)
        return [reply for reply, _ in serving.hear(Judge(about, (frame,), 0, number), {GRADIENT: gradient})]

    (early,) = judge(3, 0, b"")
    assert isinstance(early, Error) and early.code == "order"
    for number in range(3):
        ((outputs, found),) = micro(4 + number, number, questions_of(rows))
        assert isinstance(outputs, Outputs) and len(found[0]) == 4 * 8 * len(ANSWERS)
    good = np.full((8, len(ANSWERS)), 0.25, "<f4").tobytes()
    # Out of order they wait; what is no gradient is refused, and nothing learns from it.
    assert judge(10, 1, good) == []
    (refused,) = judge(11, 0, good[:-4])
    assert isinstance(refused, Error) and refused.code == "codes"
    ((early_norm, _),) = serving.hear(Norm(12, 0, 1.0), {})
    assert isinstance(early_norm, Error) and "0 of its 3" in early_norm.message
    first, second = judge(13, 0, good)
    (third,) = judge(14, 2, good)
    assert all(isinstance(one, Grads) and one.loss == 0 and one.turns == 8 for one in (first, second, third))
    assert judge(14, 2, good) == [third]  # sent again: told again, and not taken twice
    ((total, _),) = serving.hear(Norm(15, 0, 1.0), {})
    assert isinstance(total, Total)
    # Numbers that only overflow on their way back: nothing is learnt from them, and BEGIN goes on.
    for number in range(3):
        texts, text_data = texts_up(questions_of(rows))
        serving.hear(Micro(20 + number, (values, texts), 1, number, 4), {VALUES: data, TEXTS: text_data})
    huge = np.full((8, len(ANSWERS)), 3e38, "<f4").tobytes()
    ((told, _),) = serving.hear(Judge(30, (frame_codes(GRADIENT, huge),), 1, 0), {GRADIENT: huge})
    assert isinstance(told, Error) and told.code == "diverged" and "nothing was learnt" in told.message
    ((start, _),) = serving.hear(Begin(31, (Point(0, 1),)), {})
    assert isinstance(start, Start) and start.point == Point(0, 1)


def test_answers_do_not_cross() -> None:
    rows = (Row((0,), (("is there a 3?", "yes"), ("how many?", "4"))),)
    _, data = texts_up(questions_of(rows))
    assert read_texts(data, 1, private=True) == (Row((0,), (("is there a 3?", ""), ("how many?", ""))),)
    with pytest.raises(MalformedMessage, match="question and an answer"):
        read_texts(data, 1)
    _, data = texts_up(rows)
    with pytest.raises(MalformedMessage, match="labels are private"):
        read_texts(data, 1, private=True)


def test_answers_that_cannot_stay_home(checkpoint: Checkpoint) -> None:
    def training(**settings: object) -> SplitTraining:
        stage = msgspec.structs.replace(STAGE, **settings)
        held = HeldLabels(checkpoint, [stage], 0, 3, None)
        return SplitTraining(checkpoint, stage, 3, progress=False, held=held)

    with pytest.raises(InputError, match=r"type locate: the answer '\w+ \w+' has 2 tokens.*teacher forcing"):
        training(types=())
    with pytest.raises(InputError, match=r"type sum: the answer '.+' is none of the recipe's 2 candidates"):
        training(candidates=("yes", "no"), types=("exists_digit", "sum"))
    with pytest.raises(RecipeError, match="'top left' and 'top right' begin with the same token"):
        training(candidates=("top left", "top right"))


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ('head = "client"', 'need labels = "private"'),
        ('candidates = ["yes", "no"]', 'need labels = "private"'),
        ('labels = "private"\nreturn_head = true', 'return_head is for head = "client"'),
        ('labels = "private"\ncandidates = ["yes"]', "two or more answers"),
        ('labels = "secret"', "Invalid enum value 'secret'"),
        ('types = ["sum"]', 'must hold "exists_digit"'),
        ('types = ["what"]', "'what' is no question type"),
    ],
)
def test_settings_that_cannot_be(tmp_path: Path, settings: str, says: str) -> None:
    stage = '[[stages]]\nkind = "split"\nsteps = 2\nscenes = 64\noptimizer = { lr = 1e-3 }\n'
    file = tmp_path / "bad.toml"
    file.write_text(f'name = "bad"\nstart = "shipped"\n{stage}{settings}\n')
    with pytest.raises(RecipeError, match=says):
        read_recipe(file)


def test_a_head_that_left_does_not_come_back(tmp_path: Path) -> None:
    stage = '[[stages]]\nkind = "split"\nsteps = 2\nscenes = 64\noptimizer = { lr = 1e-3 }\n'
    file = tmp_path / "bad.toml"
    file.write_text(
        f'name = "bad"\nstart = "shipped"\n{stage}labels = "private"\nhead = "client"\n'
        f'{stage}labels = "private"\n'
    )
    with pytest.raises(RecipeError, match="stage 2: an earlier stage has its head on the client"):
        read_recipe(file)
