"""One fine-tune of each kind on the tiny model, and what is measured of it."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

pytest.importorskip("vector_quantize_pytorch", reason="rivals need the extra [bench]")
pytest.importorskip("zstandard", reason="rivals need the extra [bench]")

from qtl_core import wire
from qtl_core.errors import RecipeError
from qtl_core.messages import Ask
from qtl_core.nn.checkpoint import Checkpoint, load_checkpoint
from qtl_training.answering import answered_right, right_given
from qtl_training.digits.dataset import QuestionSet, question_set
from qtl_training.digits.scenes import render
from qtl_training.features import tower_features
from qtl_training.rivals import traffic
from qtl_training.rivals.measuring import measure, measure_pictures
from qtl_training.rivals.methods import FP16, Setting, Variant
from qtl_training.rivals.pictures import PictureCodec
from qtl_training.rivals.trial import Conditions, prepare, recipe_of, train, training_scenes
from qtl_training.stages.language import LanguageTraining

RECIPES = Path(__file__).parents[2] / "training" / "recipes"
ONE_BIT = Variant(method="onebit", settings={"basis": "spread", "code_dim": 8, "merge": 2}, knobs=(2,))
JPEG = Variant(method="jpeg", kind="picture", knobs=(Setting(side=48, quality=20),))
PAPER = Variant(method="paper-2bit", kind="ours", settings={"recipe": "paper-2bit.toml", "fixed": True})
SHIPPED = Variant(method="shipped", name="fp16", kind="shipped", knobs=FP16)


@pytest.fixture(scope="module")
def conditions(tiny_folder: Path) -> Conditions:
    return Conditions(
        start=tiny_folder, recipes=RECIPES, steps=2, scenes=40, fit_pictures=20, calibration_pictures=40
    )


@pytest.fixture(scope="module")
def known(conditions: Conditions) -> Tensor:
    vision = load_checkpoint(conditions.start).model.vision
    return tower_features(vision, training_scenes(conditions, 1), progress=False)


@cache
def data() -> QuestionSet:
    return question_set("validation", each_type=1)


@cache
def seen(folder: Path) -> Tensor:
    """Tower features of the scenes that are asked about; zero elsewhere."""
    vision = load_checkpoint(folder).model.vision
    asked = sorted({question.scene for question in data().questions})
    with torch.no_grad():
        found = vision.tower_features(torch.from_numpy(render(data().scenes, torch.tensor(asked).numpy())))
    return found.new_zeros(len(data().scenes), *found.shape[1:]).index_copy(0, torch.tensor(asked), found)


def weights(checkpoint: Checkpoint) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in checkpoint.model.state_dict().items()}


def changed(before: dict[str, Tensor], after: dict[str, Tensor]) -> set[str]:
    """The parts of the model whose weights differ."""
    names = [name for name in before if not torch.equal(before[name], after[name])]
    return {".".join(name.split(".")[: 2 if name.startswith("vision.") else 1]) for name in names}


def test_a_rival_trains_connector_decoder_and_itself(conditions: Conditions, known: Tensor) -> None:
    before = weights(prepare(ONE_BIT, conditions, 1))
    first = train(ONE_BIT, conditions, 1, known)
    assert changed(before, weights(first)) == {"vision.connector", "decoder", "vision_quantizer"}
    again = train(ONE_BIT, conditions, 1, known)
    assert not changed(weights(first), weights(again))
    assert changed(weights(first), weights(train(ONE_BIT, conditions, 2, known)))


def test_a_picture_codec_trains_the_tower_too(conditions: Conditions) -> None:
    before = weights(prepare(JPEG, conditions, 1))
    trained = train(JPEG, conditions, 1, None)
    assert changed(before, weights(trained)) == {"vision.tower", "vision.connector", "decoder"}


def test_ours_take_their_recipe_with_everybodys_steps(conditions: Conditions, known: Tensor) -> None:
    recipe = recipe_of(PAPER, conditions)
    (stage,) = recipe.stages
    assert (stage.steps, getattr(stage, "scenes", 0)) == (2, 40)
    quantizer = prepare(PAPER, conditions, 1).model.vision_quantizer
    assert recipe.vision is not None
    assert (quantizer.code_dim, quantizer.merge) == (recipe.vision.code_dim, recipe.vision.merge)
    several = Variant(method="default", kind="ours", settings={"recipe": "digits.toml"})
    with pytest.raises(RecipeError, match="one language stage"):
        recipe_of(several, conditions)
    with pytest.raises(ValueError, match="none were given"):
        train(PAPER, conditions, 1, None)


def test_features_may_come_from_elsewhere(conditions: Conditions, known: Tensor) -> None:
    (stage,) = recipe_of(PAPER, conditions).stages
    states = []
    for features in (None, known):
        checkpoint = prepare(PAPER, conditions, 1)
        training = LanguageTraining(checkpoint, stage, 101, progress=False, features=features)  # type: ignore[arg-type]
        checkpoint.model.train()
        training.run_step(0)
        states.append(weights(checkpoint))
    assert not changed(*states)


def test_what_is_measured_of_codes(conditions: Conditions, known: Tensor) -> None:
    checkpoint = train(PAPER, conditions, 1, known)
    features = seen(conditions.start)
    fixed, coded = measure(PAPER, checkpoint, data(), features, known, (4,), conditions)
    codes = 36 * checkpoint.model.vision_quantizer.code_dim
    assert (fixed["row"], coded["row"]) == ("paper-2bit", "paper-2bit-coded")
    assert fixed["payload_bytes_mean"] == fixed["payload_bytes_p95"] == codes * 2 // 8
    assert coded["payload_bytes_mean"] < fixed["payload_bytes_mean"]
    assert fixed["accuracy"] == coded["accuracy"] and set(fixed["accuracy"]) >= {"counting", "macro"}
    right = answered_right(checkpoint, features, data().questions, 4)
    by_hand = 100 * sum(right) / len(right)
    assert abs(sum(fixed["types"].values()) / len(fixed["types"]) - by_hand) < 1e-6


def test_answers_come_from_what_the_bytes_hold(conditions: Conditions, known: Tensor) -> None:
    checkpoint = prepare(SHIPPED, conditions, 1)
    (row,) = measure(SHIPPED, checkpoint, data(), seen(conditions.start), known, FP16, conditions)
    assert (row["row"], row["payload_bytes_mean"]) == ("shipped-fp16", 2 * 36 * 16)
    rival: Any = checkpoint.model.vision_quantizer
    rival.restore_all = lambda payloads, levels: torch.zeros(len(payloads), 36, 16)
    (blind,) = measure(SHIPPED, checkpoint, data(), seen(conditions.start), known, FP16, conditions)
    nothing = right_given(checkpoint, lambda scenes: torch.zeros(len(scenes), 36, 16), data().questions)
    assert sum(blind["types"].values()) == pytest.approx(100 * sum(nothing))


def test_what_is_measured_of_pictures(conditions: Conditions) -> None:
    checkpoint, codec = prepare(JPEG, conditions, 1), PictureCodec("jpeg")
    setting = Setting(side=48, quality=20)
    asked = {question.scene for question in data().questions}
    encoded = [
        codec.encode(render(data().scenes, slice(scene, scene + 1))[0], setting) if scene in asked else b""
        for scene in range(len(data().scenes))
    ]

    def files() -> Iterator[tuple[Setting, list[bytes]]]:
        yield setting, encoded

    (row,) = measure_pictures(JPEG, checkpoint, data(), files(), fast=False)
    assert row["row"] == "jpeg-20@48" and row["knob"] == {"side": 48, "quality": 20, "chroma": "4:2:0"}
    assert row["net_bytes_mean"] == row["payload_bytes_mean"] - row["header_bytes"] > 0


def test_bytes_on_the_wire_are_the_wires_own() -> None:
    payloads = {question.scene: bytes(question.scene % 7 + 1) for question in data().questions}
    found = traffic.sizes(payloads, data())
    plain, curve = [], []
    for number, question in enumerate(data().questions, 1):
        payload = payloads[question.scene]
        frames = wire.join(Ask(number, (wire.frame_codes("v", payload),), question.text), [payload])
        plain.append(wire.wire_size(frames))
        curve.append(wire.wire_size(frames, curve=True))
    assert found["wire_bytes_mean"] == pytest.approx(sum(plain) / len(plain))
    assert found["wire_bytes_curve_mean"] == pytest.approx(sum(curve) / len(curve))
    assert found["payload_bytes_mean"] < found["wire_bytes_mean"] < found["wire_bytes_curve_mean"]
    assert 0 < found["overhead_bytes_max"] <= 64
