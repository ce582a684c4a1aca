"""Chooses among candidates on the validation split and writes the checkpoint to ship, with its model card."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from qtl_core.errors import CheckpointError, StorageError
from qtl_core.nn.checkpoint import (
    QUANTIZERS_FOLDER,
    Checkpoint,
    FurtherQuantizer,
    load_checkpoint,
    save_quantizer,
)
from qtl_training.digits import questions as q
from qtl_training.digits.scenes import Scenes, render, sample
from qtl_training.evaluating import evaluate_checkpoint
from qtl_training.model_card import model_card, row_at
from qtl_training.tables import add_tables

LEVELS = (2, 4, 8, 16, 32, 64, 128, 256, 0)  # 1 to 8 bits, and unquantized
_HELD_OUT_SEED = 77_077
_HELD_OUT_SCENES = 24
_EACH_SCENE = 10
_EXAMPLE_SCENE = 2


def publish(candidates: Sequence[Path], folder: Path, *, progress: bool = True) -> dict[str, Any]:
    """Evaluates candidates, copies the best and writes what belongs beside it.

    The choice is made on the validation split alone: the highest mean of the macro accuracy at 2
    bits and unquantized. The test split is measured for every candidate afterwards, for the spread.

    Args:
        candidates: checkpoint folders, one for each seed of the quantizer fine-tune.
        folder: where to write; a checkpoint that is there is replaced, its further quantizers included:
            those are trained for the weights that were chosen, and published after them.
        progress: whether to show bars.

    Returns:
        What ``card.json`` holds.

    Raises:
        CheckpointError: if a candidate cannot be read.
        StorageError: if the folder cannot be written.
    """
    choice = [evaluate_checkpoint(path, "validation", (4, 0), progress=progress) for path in candidates]
    best = int(np.argmax([_macro(result, 4) + _macro(result, 0) for result in choice]))
    validation = evaluate_checkpoint(candidates[best], "validation", LEVELS, progress=progress)
    test = [evaluate_checkpoint(path, "test", LEVELS, progress=progress) for path in candidates]
    coded_text = evaluate_checkpoint(candidates[best], "test", (4,), text_levels=4, progress=progress)
    card = {
        "chosen": best,
        "choice": choice,
        "validation": validation,
        "test": test,
        "test_coded_text": coded_text,
    }
    try:
        write_beside(candidates[best], folder)
        card["coded"] = _coded(folder, progress=progress)
        (folder / "card.json").write_text(json.dumps(_rounded(card), indent=1) + "\n", "utf-8")
        (folder / "README.md").write_text(model_card(card, folder), "utf-8")
    except OSError as error:
        raise StorageError(f"{folder} cannot be written: {error.strerror}") from error
    return card


def publish_quantizer(
    candidates: Sequence[Path], folder: Path, name: str, *, progress: bool = True
) -> dict[str, Any]:
    """Writes the best of several vision quantizers into a checkpoint, under a name.

    Args:
        candidates: checkpoint folders, one for each seed; each is ``folder`` but for its vision quantizer.
        folder: the checkpoint.
        name: of the quantizer; one that is there under it is replaced.
        progress: whether to show bars.

    Returns:
        What the quantizer's ``card.json`` holds.

    Raises:
        CheckpointError: if a candidate cannot be read, or was trained for other weights.
        StorageError: if the folder cannot be written.
    """
    ours = load_checkpoint(folder)
    for path in candidates:
        _check_same(ours, load_checkpoint(path))
    choice = [evaluate_checkpoint(path, "validation", (), progress=progress) for path in candidates]
    best = int(np.argmax([result["table"][0]["accuracy"]["macro"] for result in choice]))
    chosen = load_checkpoint(candidates[best])
    card = {
        "chosen": best,
        "choice": choice,
        "test": [evaluate_checkpoint(path, "test", (), progress=progress) for path in candidates],
    }
    try:
        save_quantizer(folder, name, FurtherQuantizer(chosen.settings.vision, chosen.model.vision_quantizer))
        beside = folder / QUANTIZERS_FOLDER / name
        card["coded"] = _coded(folder, name, progress=progress)
        (beside / "card.json").write_text(json.dumps(_rounded(card), indent=1) + "\n", "utf-8")
        whole = folder / "card.json"
        if whole.exists():  # a run's checkpoint has none yet
            text = model_card(json.loads(whole.read_text("utf-8")), folder)
            (folder / "README.md").write_text(text, "utf-8")
    except OSError as error:
        raise StorageError(f"{folder} cannot be written: {error.strerror}") from error
    return card


def _coded(folder: Path, quantizer: str = "", *, progress: bool) -> dict[str, float]:
    """Puts the entropy coder's tables into the folder; mean bytes of a coded picture by level count."""
    rows = add_tables(folder, quantizer=quantizer, progress=progress)
    return {str(row["levels"]): row["coded_bytes"] for row in rows}


def _check_same(ours: Checkpoint, theirs: Checkpoint) -> None:
    """All weights but the vision quantizer's must be the same."""
    mine, other = ours.model.state_dict(), theirs.model.state_dict()
    for key in sorted(mine.keys() | other.keys()):
        if key.startswith("vision_quantizer."):
            continue
        if key not in mine or key not in other or not torch.equal(mine[key], other[key]):
            raise CheckpointError(
                f"{theirs.path} was trained for other weights than {ours.path} has ({key} differs); "
                f"train its quantizer from there: qtl-train local RECIPE --start {ours.path}"
            )


def write_beside(checkpoint: Path, folder: Path) -> None:
    """Copies a checkpoint and adds held-out pictures with questions, and an example picture."""
    folder.mkdir(parents=True, exist_ok=True)
    # These fit the weights that go.
    shutil.rmtree(folder / QUANTIZERS_FOLDER, ignore_errors=True)
    for tables in folder.glob("entropy-*-levels.npz"):
        tables.unlink()
    for file in checkpoint.iterdir():
        if file.is_file():
            shutil.copyfile(file, folder / file.name)
    scenes = sample("validation", _HELD_OUT_SCENES, _HELD_OUT_SEED)
    pictures = render(scenes, slice(None))
    asked = _questions(scenes)
    np.savez_compressed(
        folder / "held_out.npz",
        pictures=pictures,
        scene=np.array([question.scene for question in asked], np.int64),
        questions=np.array([question.text for question in asked]),
        answers=np.array([question.answer for question in asked]),
    )
    Image.fromarray(pictures[_EXAMPLE_SCENE]).save(folder / "scene.png", optimize=True)


def _questions(scenes: Scenes) -> list[q.Question]:
    rng = np.random.default_rng(_HELD_OUT_SEED)
    asker = q.Asker(rng)
    asked: list[q.Question] = []
    for scene in range(len(scenes)):
        found: set[q.Question] = set()
        while len(found) < _EACH_SCENE:
            kind = q.TYPES[int(rng.integers(len(q.TYPES)))]
            question = asker.ask(scene, kind, scenes.digits[scene], scenes.colours[scene])
            if question is not None:
                found.add(question)
        asked += sorted(found, key=lambda question: question.text)
    return asked


def _macro(result: dict[str, Any], levels: int) -> float:
    return float(row_at(result, levels)["accuracy"]["macro"])


def _rounded(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _rounded(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_rounded(item) for item in value]
    return round(value, 3) if isinstance(value, float) else value
