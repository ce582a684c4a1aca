"""Evaluation on held-out data while a split run trains, and TensorBoard's files."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

from qtl_core.errors import MissingExtra, RecipeError
from qtl_training import event_files
from qtl_training.event_files import EventFiles
from tests.training.split_pair import across, in_one, log, recipe_of, weights

EVALUATED = "evaluate_every = 2\nevaluate_pictures = 8"


def test_training_does_not_notice(tmp_path: Path) -> None:
    stages = ("grad_bits = 4\nloose = 0.5", "")
    plain = in_one(recipe_of(tmp_path, *stages), tmp_path / "plain")
    recipe = recipe_of(tmp_path, *stages, top=EVALUATED)
    local = in_one(recipe, tmp_path / "local")
    done = across(recipe, tmp_path)
    assert weights(plain) == weights(local) == weights(tmp_path / "server" / "checkpoint")
    lines = log(tmp_path / "client")
    assert lines == log(tmp_path / "local")
    found = [(line["stage"], line["step"]) for line in lines if "evaluation" in line]
    assert found == [(0, 1), (0, 2), (1, 1), (1, 2)]
    (last,) = done.evaluation
    assert last == lines[-1]["evaluation"] and last["questions"] == 16 and last["levels"] == 4
    assert last["loss"] > 0 and 0 <= last["right"] <= 100
    assert done.evaluating.up > 0 and done.evaluating.down > 0
    # The server keeps a log too, without what only the client knows.
    theirs = [{k: v for k, v in line.items() if k != "levels"} for line in lines if "evaluation" not in line]
    assert log(tmp_path / "server") == theirs


def test_evaluation_follows_what_was_learnt(tmp_path: Path) -> None:
    recipe = recipe_of(tmp_path, "quantizer_lr = 0.01", top="evaluate_every = 10", steps=20)
    in_one(recipe, tmp_path / "run")
    losses = [line["evaluation"]["loss"] for line in log(tmp_path / "run") if "evaluation" in line]
    assert len(losses) == 2 and losses[1] < losses[0]


@pytest.mark.parametrize("setting", ["evaluate_every = -1", "evaluate_pictures = 0"])
def test_settings_that_cannot_be(tmp_path: Path, setting: str) -> None:
    with pytest.raises(RecipeError, match="must be at least 0 and 1"):
        recipe_of(tmp_path, "", top=setting)


def test_without_tensorboard(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(event_files, "find_spec", lambda name: None)
    with pytest.raises(MissingExtra, match=r"'tensorboard' is not installed; .*pip install .*\[train\]"):
        in_one(recipe_of(tmp_path, "", top="tensorboard = true"), tmp_path / "run")


@pytest.mark.skipif(find_spec("tensorboard") is None, reason="TensorBoard is not installed")
def test_event_files(tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    first: dict[str, Any] = {"stage": 1, "step": 0, "loss": 3.0}
    files = EventFiles(tmp_path, [5, 5])
    files.write({"stage": 0, "step": 4, "loss": 4.0})
    files.write(first)
    files.write({"stage": 1, "step": 1, "evaluation": {"levels": 4, "loss": 2.0, "questions": 9}})
    EventFiles(tmp_path, [5, 5]).write({**first, "loss": 2.5})  # went on from there after a kill
    found = EventAccumulator(str(tmp_path)).Reload()
    assert [(e.step, e.value) for e in found.Scalars("training/loss")] == [(4, 4.0), (5, 2.5)]
    assert found.Scalars("evaluation/4 levels/loss") == []
