"""qtl-train levels: entropy, rule, bytes and accuracy of each level count, on the tiny model."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from qtl_core import entropy, quantizer
from qtl_core.codes import packed_size
from qtl_core.errors import CheckpointError, InputError, StorageError
from qtl_core.level_selection import feature_entropy, recommend, standardise
from qtl_core.nn.calibration import cut_features
from qtl_core.nn.checkpoint import Checkpoint, load_checkpoint, save_checkpoint
from qtl_training.digits.dataset import question_set
from qtl_training.digits.scenes import Scenes, render
from qtl_training.levels import measuring
from qtl_training.levels.cli import levels as command
from qtl_training.levels.measuring import coded_sizes, measure_levels
from qtl_training.levels.report import markdown, renew, table, write_json

SCENES = 96
LEVELS = (2, 5, 16)
PNG = b"\x89PNG\r\n\x1a\n"


def few(split: str, *, each_type: int) -> Any:
    """The questions about the first scenes only: drawing all of them takes seconds."""
    data = question_set(split, each_type=each_type)
    first = Scenes(
        data.scenes.digits[:SCENES],
        data.scenes.colours[:SCENES],
        data.scenes.scans[:SCENES],
        data.scenes.split,
        data.scenes.seed,
    )
    return type(data)(first, tuple(q for q in data.questions if q.scene < SCENES))


@pytest.fixture(scope="module")
def fitted(tiny_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny model with a quantizer that has seen features."""
    loaded = load_checkpoint(tiny_folder)
    pictures = render(question_set("validation", each_type=20).scenes, slice(0, 64))
    with torch.no_grad():
        loaded.model.vision_quantizer.fit(loaded.model.vision(torch.from_numpy(pictures)))
    folder = tmp_path_factory.mktemp("fitted") / "checkpoint"
    save_checkpoint(folder, loaded.llava, loaded.model, loaded.settings, loaded.tokenizer, loaded.processor)
    return folder


@pytest.fixture(scope="module")
def files(fitted: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What one run of the command has written."""
    folder = tmp_path_factory.mktemp("levels")
    (folder / "page.md").write_text("# Before\n<!-- levels:start -->\nold\n<!-- levels:end -->\nAfter\n")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(measuring, "question_set", few)
        command.main(
            [str(fitted), "--data", "digits", "--each-type", "40", "--batches", "4"]
            + [word for count in LEVELS for word in ("--levels", str(count))]
            + ["--json", str(folder / "l.json"), "--plot", str(folder / "deep" / "l.png")]
            + ["--page", str(folder / "page.md")],
            standalone_mode=False,
        )
    return folder


@pytest.fixture(scope="module")
def result(files: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((files / "l.json").read_text())
    return found


@pytest.fixture(scope="module")
def features(fitted: Path) -> np.ndarray:
    pictures = render(few("validation", each_type=20).scenes, slice(0, SCENES))
    return cut_features(load_checkpoint(fitted).model.vision, pictures)


@pytest.fixture(scope="module")
def checkpoint(fitted: Path) -> Checkpoint:
    return load_checkpoint(fitted)


def test_keys_that_scripts_read(result: dict[str, Any]) -> None:
    assert set(result["entropy_bits"]) == {"mean", "sd"}
    assert result["batches"] == len(result["batch_entropy_bits"]) == 4
    for row in result["table"]:
        keys = {"levels", "bits", "code_entropy_bits", "fixed_bytes", "coded_bytes", "accuracy"}
        assert keys <= set(row)
        assert 0 <= row["accuracy"] <= 100
        assert row["accuracy"] == row["families"]["macro"]
    assert result["n"] > 13 and result["pictures"] == SCENES


def test_the_entropy_is_that_of_the_features_at_the_cut(
    result: dict[str, Any], features: np.ndarray, checkpoint: Checkpoint
) -> None:
    params = checkpoint.model.vision_quantizer.params()
    z = quantizer.project(features, params)
    assert params.mean is not None and params.std is not None
    by_hand = feature_entropy((z - params.mean) / params.std, 4)
    # The command keeps the tower's features in half precision.
    assert result["entropy_bits"]["mean"] == pytest.approx(by_hand.mean, abs=5e-3)
    assert result["entropy_bits"]["sd"] == pytest.approx(by_hand.sd, abs=5e-3)
    assert result["deviation"] == pytest.approx(by_hand.deviation, rel=1e-2)
    assert result["values"] + round(result["atoms"]["share"] * z.size) == z.size == SCENES * 9 * 8
    assert result["entropy_bits"]["mean"] == pytest.approx(np.mean(result["batch_entropy_bits"]))


def test_the_rules_choice_is_in_the_table(result: dict[str, Any]) -> None:
    chosen = result["recommended_levels"]
    assert chosen == recommend(result["entropy_bits"]["mean"])
    assert [row["levels"] for row in result["table"]] == sorted({*LEVELS, chosen})
    assert result["recommended_bits"] == math.ceil(math.log2(chosen))


def test_the_codes_are_the_quantizers(
    result: dict[str, Any], features: np.ndarray, checkpoint: Checkpoint
) -> None:
    for row in result["table"]:
        codes = quantizer.encode(features, checkpoint.model.vision_quantizer.params(row["levels"]))
        bits = []
        for channel in range(codes.shape[-1]):
            share = np.unique(codes[..., channel], return_counts=True)[1] / codes[..., channel].size
            bits.append(-(share * np.log2(share)).sum())
        assert row["code_entropy_bits"] == pytest.approx(np.mean(bits), abs=0.01)
        assert row["fixed_bytes"] == packed_size(codes[0].size, row["levels"])
        # Tables of the other half, and an end: a little over the entropy, or below it by conditioning.
        assert 0 < row["coded_bytes"] < 1.1 * row["code_entropy_bits"] * codes[0].size / 8 + 4


def test_accuracy_is_of_the_row_it_stands_in(fitted: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def answered(
        checkpoint: Checkpoint, tower: object, questions: tuple[object, ...], count: int | None
    ) -> list[bool]:
        return [{None: True, 3: True}.get(count, False)] * len(questions)

    monkeypatch.setattr(measuring, "answered_right", answered)
    monkeypatch.setattr(measuring, "question_set", few)
    found = measure_levels(fitted, (3, 7), each_type=20, batches=2, progress=False)
    assert {row["levels"]: row["accuracy"] for row in found["table"]} == {
        **dict.fromkeys((3, 7, found["recommended_levels"]), 0.0),
        3: 100.0,
    }
    assert found["unquantized"]["accuracy"] == 100.0
    assert found["unquantized"]["bytes"] == 2 * 36 * 16
    assert found["density"]["values"][200] == pytest.approx(_middle(fitted, found), rel=0.2)


def _middle(fitted: Path, found: dict[str, Any]) -> float:
    pictures = render(few("validation", each_type=20).scenes, slice(0, SCENES))
    loaded = load_checkpoint(fitted)
    z = standardise(cut_features(loaded.model.vision, pictures), loaded.model.vision_quantizer.params())
    near = np.abs(z / found["deviation"] - found["density"]["at"][200]) < 0.1
    return float(near.mean() / 0.2)


def test_each_picture_is_coded_under_tables_of_others() -> None:
    rng = np.random.default_rng(3)
    codes = rng.binomial(4, 0.3, (40, 9, 8)).astype(np.uint8)
    sizes = coded_sizes(codes, 5)
    for parity in (0, 1):
        tables = entropy.Tables.fit(codes[1 - parity :: 2], 5)
        assert sizes[parity::2] == [len(entropy.encode(picture, tables)) for picture in codes[parity::2]]
    # Its own half's tables would have known this picture.
    odd_one = codes.copy()
    odd_one[0] = 4
    changed = coded_sizes(odd_one, 5)
    assert changed[0] > sizes[0] and changed[2::2] == sizes[2::2]


def test_the_figure_and_the_page(files: Path, result: dict[str, Any]) -> None:
    assert (files / "deep" / "l.png").read_bytes().startswith(PNG)
    page = (files / "page.md").read_text()
    assert page == f"# Before\n<!-- levels:start -->\n{markdown(result)}\n<!-- levels:end -->\nAfter\n"
    for row in result["table"]:
        assert f"{row['accuracy']:.2f}" in page and f"{row['code_entropy_bits']:.3f}" in page


def test_the_text_marks_the_choice(result: dict[str, Any]) -> None:
    lines = table(result).splitlines()
    marked = [line for line in lines if "<- the rule's choice" in line]
    assert len(marked) == 1 and marked[0].split()[0] == str(result["recommended_levels"])
    assert result["because"] in lines


def test_the_curve_is_a_density(result: dict[str, Any]) -> None:
    at, values = np.array(result["density"]["at"]), np.array(result["density"]["values"])
    assert float(values.sum() * (at[1] - at[0])) == pytest.approx(1, abs=0.05)


def test_a_page_without_marks(result: dict[str, Any], tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text("nothing to renew")
    with pytest.raises(InputError, match="levels:start"):
        renew(result, page)
    assert page.read_text() == "nothing to renew"


def test_a_file_that_cannot_be_written(result: dict[str, Any], tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StorageError, match="name another file"):
        write_json(result, tmp_path / "file" / "l.json")


def test_damaged_weights(fitted: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    loaded = load_checkpoint(fitted)
    with torch.no_grad():
        loaded.model.vision_quantizer.in_proj.weight[0, 0] = torch.nan
    broken = tmp_path / "broken"
    save_checkpoint(broken, loaded.llava, loaded.model, loaded.settings, loaded.tokenizer, loaded.processor)
    monkeypatch.setattr(measuring, "question_set", few)
    with pytest.raises(InputError, match="NaN"):
        measure_levels(broken, LEVELS, each_type=20, progress=False)


def test_more_batches_than_the_pictures_hold(fitted: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(measuring, "question_set", few)
    # 72 features a picture: 500 take 7 of them.
    with pytest.raises(InputError, match=r"16 batches need 500 features each.*give 112 pictures"):
        measure_levels(fitted, LEVELS, each_type=20, batches=16, progress=False)


def test_no_checkpoint(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="no checkpoint"):
        measure_levels(tmp_path / "nowhere", progress=False)
