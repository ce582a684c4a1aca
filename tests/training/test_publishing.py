"""Further quantizers: trained alone, published under a name, refused where they do not belong."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
import torch

from qtl_core.entropy_file import tables_name
from qtl_core.errors import CheckpointError, RecipeError
from qtl_core.nn.checkpoint import load_checkpoint
from qtl_training import evaluating, publishing, tables
from qtl_training.digits.dataset import QuestionSet, question_only, question_set
from qtl_training.digits.scenes import Scenes
from qtl_training.local import train
from qtl_training.publishing import publish_quantizer
from qtl_training.recipe import read_recipe

RECIPE = """
name = "few"
seed = 2
start = "START"
[vision]
code_dim = 4
levels = 3
scaling = "frozen"
merge = 3
k_levels = [3]
k_channels = true
[[stages]]
kind = "language"
steps = 3
scenes = 8
scenes_a_step = 4
questions = 2
levels = [3]
fit_quantizers = true
rate_weight = 0.01
train = TRAIN
optimizer = { lr = 1e-2 }
"""


def run(tmp_path: Path, start: Path, train_: str = '["vision_quantizer"]', seed: int = 2) -> Path:
    file = tmp_path / "few.toml"
    text = RECIPE.replace("START", str(start)).replace("TRAIN", train_).replace("seed = 2", f"seed = {seed}")
    file.write_text(text)
    return train(read_recipe(file), tmp_path / f"run-{seed}-{len(train_)}", progress=False)


@pytest.fixture
def few_questions(monkeypatch: pytest.MonkeyPatch) -> None:
    def few(split: str) -> QuestionSet:
        whole = question_set(split, each_type=4)
        used = sorted({each.scene for each in whole.questions})
        drawn = whole.scenes
        asked = tuple(replace(each, scene=used.index(each.scene)) for each in whole.questions)
        kept = Scenes(drawn.digits[used], drawn.colours[used], drawn.scans[used], split, drawn.seed)
        return QuestionSet(kept, asked)

    monkeypatch.setattr(evaluating, "question_set", few)
    monkeypatch.setattr(evaluating, "question_only", partial(question_only, scenes=40))


def test_only_the_quantizer_is_trained(tiny_folder: Path, tmp_path: Path) -> None:
    before, after = load_checkpoint(tiny_folder), load_checkpoint(run(tmp_path, tiny_folder))
    theirs = after.model.state_dict()
    for name, tensor in before.model.state_dict().items():
        if not name.startswith("vision_quantizer."):
            assert torch.equal(tensor, theirs[name]), name
    assert after.settings.vision.code_dim == 4
    assert not torch.equal(after.model.vision_quantizer.k, torch.full((1, 4), 3.0))


@pytest.mark.usefixtures("few_questions")
def test_the_best_of_the_candidates_is_published_by_name(
    tiny_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "target"
    shutil.copytree(tiny_folder, folder)
    (folder / "card.json").write_text(
        json.dumps(_card(evaluating.evaluate_checkpoint(folder, "test", (4, 0))))
    )
    monkeypatch.setattr(publishing, "add_tables", partial(tables.add_tables, scenes=40))
    candidates = [run(tmp_path, folder, seed=seed) for seed in (2, 3)]
    card = publish_quantizer(candidates, folder, "few", progress=False)
    macro = [result["table"][0]["accuracy"]["macro"] for result in card["choice"]]
    assert card["chosen"] == macro.index(max(macro))
    published = load_checkpoint(folder, quantizer="few")
    chosen = load_checkpoint(candidates[card["chosen"]])
    assert torch.equal(
        published.model.vision_quantizer.out_proj.weight, chosen.model.vision_quantizer.out_proj.weight
    )
    assert "| `few` | 4 x 4 | 3 |" in (folder / "README.md").read_text()
    assert (folder / "quantizers" / "few" / tables_name(3)).is_file()
    result = evaluating.evaluate_checkpoint(folder, "test", (), quantizer="few", progress=False)
    assert result["quantizer"] == "few" and result["table"][0]["levels"] == 3


@pytest.mark.usefixtures("few_questions")
def test_a_run_s_checkpoint_takes_a_quantizer_without_a_model_card(
    tiny_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "target"
    shutil.copytree(tiny_folder, folder)
    (folder / "card.json").unlink(missing_ok=True)
    (folder / "README.md").unlink(missing_ok=True)
    monkeypatch.setattr(publishing, "add_tables", partial(tables.add_tables, scenes=40))
    publish_quantizer([run(tmp_path, folder)], folder, "few", progress=False)
    assert load_checkpoint(folder).quantizers == ("few",)
    assert (folder / "quantizers" / "few" / "card.json").is_file()
    assert not (folder / "README.md").exists()


def test_a_quantizer_for_other_weights_is_refused(tiny_folder: Path, tmp_path: Path) -> None:
    other = run(tmp_path, tiny_folder, '["decoder", "vision_quantizer"]')
    with pytest.raises(CheckpointError, match=r"was trained for other weights .* \(decoder"):
        publish_quantizer([other], tiny_folder, "few", progress=False)


def test_a_run_that_began_with_another_quantizer_is_not_resumed(tiny_folder: Path, tmp_path: Path) -> None:
    run(tmp_path, tiny_folder)
    file = tmp_path / "few.toml"
    file.write_text(file.read_text().replace("code_dim = 4", "code_dim = 6"))
    with pytest.raises(RecipeError, match="begun with other settings"):
        train(read_recipe(file), tmp_path / "run-2-20", progress=False)


def _card(result: dict[str, object]) -> dict[str, object]:
    return {
        "chosen": 0,
        "test": [result],
        "validation": result,
        "test_coded_text": result,
        "coded": {"4": 9.5},
    }


def test_a_quantizer_of_the_same_geometry_begins_with_the_weights_of_the_one_before(
    tiny_folder: Path, tmp_path: Path
) -> None:
    file = tmp_path / "same.toml"
    text = RECIPE.replace("START", str(tiny_folder)).replace("TRAIN", '["vision_quantizer"]')
    text = text.replace("code_dim = 4", "code_dim = 8").replace("merge = 3", "merge = 2")
    text = text.replace("fit_quantizers = true\n", "quantizer_lr = 0.0\nk_lr = 0.0\n")
    file.write_text(text)
    after = load_checkpoint(train(read_recipe(file), tmp_path / "same", progress=False))
    before = load_checkpoint(tiny_folder).model.vision_quantizer
    quantizer = after.model.vision_quantizer
    assert torch.equal(quantizer.in_proj.weight, before.in_proj.weight)
    assert torch.equal(quantizer.k, before.k_for(3).expand(1, 8)) and quantizer.levels == 3
