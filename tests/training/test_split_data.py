"""Split training on people's own data: what is drawn, what is kept, what is refused."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
import torch
from click.testing import CliRunner
from PIL import Image

from edge_runtime.training.conversations import read_conversations
from edge_runtime.training.sampling import ConversationSamples
from qtl_core.crossing import TEXTS, VALUES, Row, texts_up
from qtl_core.errors import InputError, RecipeError, SampleError
from qtl_core.messages import Begin, Error, Grads, Micro, Point, Start
from qtl_core.nn.checkpoint import load_checkpoint
from qtl_core.split_stage import ConversationData, Optimizer, SplitStage, levels_of
from qtl_core.wire import frame_codes
from qtl_training.digits import questions as q
from qtl_training.digits.cli import scenes as scenes_command
from qtl_training.digits.conversations import FILE, PICTURES, write_parts
from qtl_training.digits.scenes import render, sample
from qtl_training.local import stage_seed
from qtl_training.recipe import Recipe, override
from qtl_training.split.agreement import fingerprint
from qtl_training.split.data import left_out, record_of, stage_data
from qtl_training.split.serving import Serving
from qtl_training.stages.split import SplitTraining

SAMPLES, ROWS = 22, 2


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data")
    write_parts(folder, SAMPLES, 2, progress=False)
    return folder / "train"


def stage_on(data: Path, **more: Any) -> SplitStage:
    where = {"file": str(data / FILE), "pictures": str(data / PICTURES)}
    settings = {"rows": ROWS, "max_tokens": 256, "max_pictures": 2, **where, **more}
    return SplitStage(
        steps=20,
        micro_batches=2,
        levels=(4, 0),
        grad_bits=4,
        train=("connector", "decoder", "vision_quantizer"),
        data=msgspec.convert(settings, ConversationData),
        optimizer=Optimizer(lr=1e-3),
    )


def with_data(stage: SplitStage, **more: Any) -> SplitStage:
    assert stage.data is not None
    return msgspec.structs.replace(stage, data=msgspec.structs.replace(stage.data, **more))


def test_scenes_are_written_as_data(data: Path, tmp_path: Path) -> None:
    found = read_conversations(data / FILE, data / PICTURES)
    assert len(found.samples) == SAMPLES and {len(one.pictures) for one in found.samples} == {0, 1, 2}
    assert max(len(one.turns) for one in found.samples) == 3
    scenes = sample("train", len(found.pictures), 1)
    for one in found.samples:
        for (question, answer), about in zip(one.turns, shown(one.places, len(one.turns)), strict=True):
            if about is not None:
                scene = int(one.pictures[about].stem)
                assert q.answer(question, scenes.digits[scene], scenes.colours[scene]) == answer
    picture = np.asarray(Image.open(data / PICTURES / "000003.png"))
    assert np.array_equal(picture, render(scenes, slice(3, 4))[0])
    assert write_parts(tmp_path, SAMPLES, 2, progress=False)["train"] == len(found.pictures)
    again = read_conversations(tmp_path / "train" / FILE, tmp_path / "train" / PICTURES)
    assert again.digest == found.digest
    with pytest.raises(InputError, match="is there already"):
        write_parts(tmp_path, SAMPLES, 2, progress=False)


def test_the_command_that_writes_scenes(tmp_path: Path) -> None:
    done = CliRunner().invoke(
        scenes_command, [str(tmp_path / "new"), "--count", "9", "--turns", "1", "--json"]
    )
    assert done.exit_code == 0, done.output
    said = json.loads(done.output)
    assert said["samples"] == {"train": 9, "held-out": 1} and said["pictures"] == {"train": 9, "held-out": 1}
    for part, samples in said["samples"].items():
        folder = tmp_path / "new" / part
        found = read_conversations(folder / FILE, folder / PICTURES)
        assert (
            len(found.samples) == samples
            and len(list((folder / PICTURES).iterdir())) == said["pictures"][part]
        )


def shown(places: Sequence[tuple[int, int]], turns: int) -> list[int | None]:
    """Which picture was shown last when each turn asks."""
    return [sum(turn <= number for turn, _ in places) - 1 if places else None for number in range(turns)]


def test_an_epoch_takes_every_sample_once(data: Path) -> None:
    found = read_conversations(data / FILE, data / PICTURES)

    def rows(seed: int, steps: range) -> list[Row]:
        drawn = ConversationSamples(found, micro_batches=2, rows=3, seed=seed)
        return [row for step in steps for micro in drawn.micro_batches(step) for row in micro.rows]

    first = rows(1, range(11))[:SAMPLES]
    assert sorted(row.turns for row in first) == sorted(one.turns for one in found.samples)
    second = rows(1, range(11))[SAMPLES : 2 * SAMPLES]
    assert [row.turns for row in first] != [row.turns for row in second]
    assert sorted(row.turns for row in first) == sorted(row.turns for row in second)
    assert rows(1, range(7, 9)) == rows(1, range(9))[42:] != rows(2, range(7, 9))


def test_a_micro_batch_names_its_pictures_once(data: Path) -> None:
    found = read_conversations(data / FILE, data / PICTURES)
    drawn = ConversationSamples(found, micro_batches=3, rows=SAMPLES, seed=1)
    for micro in drawn.micro_batches(0):
        assert sorted(micro.pictures) == list(range(len(found.pictures)))
        named = [place for row in micro.rows for place in row.pictures]
        assert list(dict.fromkeys(named)) == list(range(len(micro.pictures)))


def test_what_is_kept_in_memory_changes_nothing(data: Path, tiny_folder: Path) -> None:
    trained = []
    for cache_mib in (64, 0):
        torch.manual_seed(1)
        checkpoint = load_checkpoint(tiny_folder)
        training = SplitTraining(checkpoint, stage_on(data, cache_mib=cache_mib), 5, progress=False)
        checkpoint.model.train()
        metrics = [training.run_step(step) for step in range(4)]
        assert all(np.isfinite(one["loss"]) for one in metrics)
        trained.append((metrics, checkpoint.model.state_dict()))
    assert trained[0][0] == trained[1][0]
    for name, value in trained[0][1].items():
        assert torch.equal(value, trained[1][1][name]), name


@pytest.mark.parametrize("levels", [4, 0])
@pytest.mark.parametrize("train", [("connector", "vision_quantizer"), ("connector", "decoder")])
def test_texts_alone_train_too(
    tmp_path: Path, tiny_folder: Path, levels: int, train: tuple[str, ...]
) -> None:
    said = [{"from": "human", "value": "what is 1 plus 2?"}, {"from": "gpt", "value": "3"}]
    (tmp_path / PICTURES).mkdir()
    (tmp_path / FILE).write_text(json.dumps([{"conversations": said}]))
    checkpoint = load_checkpoint(tiny_folder)
    before = {name: value.clone() for name, value in checkpoint.model.state_dict().items()}
    stage = msgspec.structs.replace(stage_on(tmp_path, max_pictures=0), levels=(levels,), train=train)
    training = SplitTraining(checkpoint, stage, 5, progress=False)
    checkpoint.model.train()
    loss = [training.run_step(step)["loss"] for step in range(3)]
    moved = {
        name for name, value in checkpoint.model.state_dict().items() if not torch.equal(before[name], value)
    }
    # Without a picture, nothing reaches the client, neither gradients nor statistics; weights may decay here.
    assert all(name.startswith(("decoder.", "vision_quantizer.out_proj.")) for name in moved)
    assert any(name.startswith("decoder.") for name in moved) == ("decoder" in train) == (loss[2] < loss[0])


def spoilt(data: Path, folder: Path, file: str, content: bytes) -> Path:
    """A copy of the data in which a picture is something else."""
    (folder / PICTURES).mkdir(parents=True)
    for path in (data / PICTURES).iterdir():
        (folder / PICTURES / path.name).write_bytes(content if path.name == file else path.read_bytes())
    (folder / FILE).write_bytes((data / FILE).read_bytes())
    return folder


@pytest.mark.parametrize("cache_mib", [64, 0])
def test_a_broken_picture_is_named_or_left_out(
    data: Path, tiny_folder: Path, tmp_path: Path, cache_mib: int
) -> None:
    whole = (data / PICTURES / "000001.png").read_bytes()
    stage = stage_on(spoilt(data, tmp_path / "bad", "000001.png", whole[:200]), cache_mib=cache_mib)
    checkpoint = load_checkpoint(tiny_folder)
    with pytest.raises(SampleError, match=r"sample 1 \(id 'train-1'\): .*000001.png is broken or truncated"):
        stage_data(checkpoint, stage, 1, progress=False)
    told: list[str] = []
    stage = with_data(stage, on_bad_sample="skip")
    record = record_of(tmp_path, 0)
    stage_data(checkpoint, stage, 1, record=record, progress=False, say=told.append)
    assert told[0].endswith(f"left out 1 of {SAMPLES} samples") and "000001.png is broken" in told[1]
    assert left_out(tmp_path) == 1 and "000001.png is broken" in record.read_text()
    # A run that was begun with these samples does not go on with others.
    with pytest.raises(RecipeError, match="holds other samples than those this run was begun with"):
        stage_data(checkpoint, stage_on(data), 1, record=record, progress=False)


def test_a_long_sample_is_refused_before_it_is_sent(data: Path, tiny_folder: Path) -> None:
    checkpoint = load_checkpoint(tiny_folder)
    with pytest.raises(
        SampleError, match=r"sample 1 .*it has [0-9]+ tokens, which is longer .*max_tokens, 90"
    ):
        stage_data(checkpoint, stage_on(data, max_tokens=90), 1, progress=False)
    found = stage_data(
        checkpoint, stage_on(data, max_tokens=90, on_bad_sample="skip"), 1, progress=False, say=lambda _: None
    )
    rows = [row for step in range(20) for micro in found.samples.micro_batches(step) for row in micro.rows]
    assert max(len(row.pictures) for row in rows) == 1


def recipe_on(data: Path, tiny_folder: Path) -> Recipe:
    return Recipe(name="own", start=str(tiny_folder), stages=(stage_on(data),))


def test_where_data_lies_is_the_clients_own_affair(data: Path, tiny_folder: Path) -> None:
    recipe = recipe_on(data, tiny_folder)
    elsewhere = override(recipe, data=Path("x.json"), pictures=Path("y"), on_bad_sample="skip")
    (stage,) = elsewhere.stages
    assert isinstance(stage, SplitStage) and stage.data is not None
    assert (stage.data.file, stage.data.pictures, stage.data.on_bad_sample) == ("x.json", "y", "skip")
    assert fingerprint(elsewhere) == fingerprint(recipe)
    other = msgspec.structs.replace(recipe, stages=(with_data(stage, max_tokens=9),))
    assert fingerprint(other) != fingerprint(recipe)
    digits = msgspec.structs.replace(recipe, stages=(msgspec.structs.replace(stage, data=None, scenes=64),))
    with pytest.raises(RecipeError, match="has a stage on digit scenes"):
        override(digits, data=Path("x.json"))


GOOD = Row((0,), (("what?", "this"),), True, ((0, 0),))
TEXT = Row((), (("what?", "this"),), True)
HOSTILE: dict[str, tuple[list[Row], str, str]] = {
    "fewer": ([GOOD], "order", "has 2 conversations, this one 1"),
    "more": ([GOOD] * 3, "order", "has 2 conversations, this one 3"),
    "not-joined": ([GOOD, Row((0,), (("what?", "this"),))], "order", "has 2 conversations"),
    "three-pictures": (
        [Row((0, 1, 2), (("what?", "this"),), True, ((0, 0),) * 3), GOOD], "order", "shows 3 pictures"
    ),
    "unnamed": ([Row((1,), (("what?", "this"),), True, ((0, 0),)), TEXT], "order", "in the order"),
    "beyond": ([Row((4,), (("what?", "this"),), True, ((0, 0),)), TEXT], "malformed", "beyond"),
    "no-place": ([Row((0,), (("what?", "this"),), True), TEXT], "malformed", "at places"),
    "place-behind": ([Row((0,), (("what?", "this"),), True, ((0, 6),)), TEXT], "malformed", "at places"),
    "turn-behind": ([Row((0,), (("what?", "this"),), True, ((1, 0),)), TEXT], "malformed", "at places"),
    "unordered": (
        [Row((0, 1), (("what?", "this"),), True, ((0, 3), (0, 1))), TEXT], "malformed", "at places"
    ),
    "no-answer": ([Row((0,), (("what?", ""),), True, ((0, 0),)), TEXT], "malformed", "an answer in every"),
    "long": ([Row((), (("what?" * 99, "this"),), True), GOOD], "too_large", "tokens, which is longer"),
    "letters": ([Row((), (("x" * (64 * 256), "this"),), True), GOOD], "too_large", "with 1 turns, is longer"),
    "turns": ([Row((), (("a", "b"),) * 129, True), GOOD], "too_large", "with 129 turns, is longer"),
    "codes-missing": ([GOOD, Row((1,), GOOD.turns, True, ((0, 0),))], "codes", ""),
}  # fmt: skip


@pytest.fixture(scope="module")
def serving(data: Path, tiny_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Serving:
    recipe = override(recipe_on(data, tiny_folder), data=Path("not-here.json"))
    serving = Serving(recipe, tmp_path_factory.mktemp("serve"))
    ((start, _),) = serving.hear(Begin(1, (Point(0, 0),)), {})
    assert isinstance(start, Start)
    return serving


def micro(serving: Serving, about: int, rows: Sequence[Row], pictures: int, number: int) -> Any:
    levels = levels_of(serving.stages[0], stage_seed(serving.recipe, 0), 0)
    crossed = np.zeros((pictures, *serving.crossing.shape(levels)), np.uint8 if levels else np.float16)
    values, texts = serving.crossing.up(crossed, levels), texts_up(rows)
    message = Micro(about, (values[0], texts[0]), 0, number, levels)
    (reply,) = serving.hear(message, {VALUES: values[1], TEXTS: texts[1]})
    return reply


@pytest.mark.parametrize(("rows", "code", "says"), HOSTILE.values(), ids=HOSTILE.keys())
def test_hostile_rows_are_refused(serving: Serving, rows: list[Row], code: str, says: str) -> None:
    before = serving._sums.tokens
    reply, _ = micro(serving, 100, rows, 1, 0)
    assert isinstance(reply, Error) and reply.code == code and says in reply.message
    assert serving._sums.tokens == before and serving._next == 0


def test_after_hostile_rows_good_ones_are_computed(serving: Serving) -> None:
    reply, payloads = micro(serving, 200, [GOOD, TEXT], 1, 0)
    assert isinstance(reply, Grads) and reply.turns == 2 and len(payloads[0]) > 0
    reply, payloads = micro(serving, 201, [TEXT, TEXT], 0, 1)
    assert isinstance(reply, Grads) and payloads == [b""]
    assert frame_codes("g", b"").size == 0
