"""`qtl-export --questions`: what quantizing costs, in text, JSON, manifest; a fitted quantizer's export."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from edge_runtime.picture_folder import pictures_in
from qtl_core.nn.checkpoint import load_checkpoint
from qtl_export.cli import main
from qtl_training.distillation.rows import Asking
from qtl_training.distillation.run import train_quantizer
from qtl_training.distillation.settings import DistillSettings
from tests.export.conftest import smooth
from tests.export.test_post_training import make_pictures
from tests.nn import foreign

ASKED = "how many digits are there?"
PICTURES = 10


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Pictures at the size of the tiny model, so that nothing is resized."""
    (tmp_path / "pictures").mkdir()
    for index, one in enumerate(smooth(PICTURES, 7)):
        Image.fromarray(one).save(tmp_path / "pictures" / f"{index}.png")
    return tmp_path / "pictures"


@pytest.mark.parametrize(
    ("line", "more", "code", "says"),
    [
        ("{", [], 3, "line 1 is no JSON"),
        ("", [], 3, "is empty"),
        ('{"image": "99.png", "question": "?", "answer": "a"}', [], 3, "not there: "),
        ('{"image": "0.png", "question": "%s", "answer": "a"}' % ("x " * 300), [], 3, "has more than"),
        ("{}", ["--validate", "0"], 2, "goes with neither --bits 16 nor --validate 0"),
    ],
)
def test_questions_that_cannot_be_asked(
    checkpoint: Path,
    folder: Path,
    capsys: pytest.CaptureFixture[str],
    line: str,
    more: list[str],
    code: int,
    says: str,
) -> None:
    file = folder.parent / "asked.jsonl"
    file.write_text(line)
    options = ["--bits", "2", str(checkpoint), "-o", str(folder.parent / "bundle"), "--pictures", str(folder)]
    assert main([*options, "--questions", str(file), *more]) == code
    assert says in capsys.readouterr().err
    assert not (folder.parent / "bundle").exists()


def test_a_fitted_quantizers_export_and_what_it_costs(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    foreign.make_llava(tmp_path / "llava")
    pictures = make_pictures(tmp_path / "pictures")
    more: dict[str, Any] = {"levels": 4, "code_dim": 8, "steps": 2, "batch": 4, "answer_tokens": 3}
    train_quantizer(
        DistillSettings(checkpoint=tmp_path / "llava", pictures=pictures, output=tmp_path / "q", **more),
        progress=False,
    )
    whole, coded = replies(tmp_path / "q", pictures)
    assert len(set(whole)) > 1 and whole != coded  # or there would be nothing to count
    # Half of the right answers are the 16-bit model's, half are those from codes.
    wanted = [*whole[: PICTURES // 2], *coded[PICTURES // 2 :]]
    lines = [
        {"image": f"{index:03}.png", "question": ASKED, "answer": answer}
        for index, answer in enumerate(wanted)
    ]
    asked = tmp_path / "asked.jsonl"
    asked.write_text("".join(json.dumps(line) + "\n" for line in lines))
    expected = [np.mean([a == b for a, b in zip(found, wanted, strict=True)]) for found in (whole, coded)]

    output = tmp_path / "bundle"
    options = ["--bits", "2", str(tmp_path / "q"), "-o", str(output), "--validate", "8"]
    assert main([*options, "--json", "--questions", str(asked), "--pictures", str(pictures)]) == 0
    said = json.loads(capsys.readouterr().out)
    assert (said["levels"], said["code_dim"], said["fitted"]) == (4, 8, None)
    validation = said["validation"]
    assert validation["passed"] and validation["codes"]["differ"] == 0
    questions = validation["questions"]
    assert (questions["questions"], questions["pictures"], questions["about_known"]) == (
        PICTURES,
        PICTURES,
        0,
    )
    assert [questions["at_16_bit"], questions["quantized"]] == expected
    assert questions["difference"] == pytest.approx(100 * (expected[1] - expected[0]))
    for half in ("client", "server"):
        manifest = json.loads((output / half / "manifest.json").read_text())
        assert manifest["validation"]["questions"] == questions
    card = (output / "client/README.md").read_text()
    assert f"right of {PICTURES} questions at 16 bit" in card and f"{questions['difference']:+.2f}" in card

    # Tables come with the quantizer; another fit takes its place, and says which questions it has seen.
    assert main([*options, "--json"]) == 0
    assert (
        json.loads(capsys.readouterr().out)["validation"]["entropy"]["tables"]
        == "entropy-4-levels.npz of the checkpoint"
    )
    options += ["--calibrate", str(pictures), "--code-dim", "8", "--questions", str(asked)]
    assert main(options) == 0
    text = capsys.readouterr().out
    assert "quantizer fitted to 20 pictures" in text and "8 about pictures it was fitted to" in text


def replies(checkpoint: Path, folder: Path) -> tuple[list[str], list[str]]:
    """What the model says of unquantized features, and of codes, about the first pictures of a folder."""
    loaded = load_checkpoint(checkpoint)
    pictures = torch.from_numpy(pictures_in(folder, loaded.picture, PICTURES))
    asking = Asking(loaded, 10**6)
    quantizer = loaded.model.vision_quantizer
    with torch.inference_mode():
        features = loaded.model.vision(pictures)
        restored = quantizer.decode(quantizer.encode(features))
        rows = asking.rows([asking.prompt(ASKED)] * PICTURES, features.shape[1])
        both = [asking.greedy(one, rows)[0] for one in (features.half().float(), restored)]
    whole, coded = ([asking.text(one).strip() for one in answers] for answers in both)
    return whole, coded


def test_a_fitted_quantizer_is_looked_at(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    foreign.make_llava(tmp_path / "llava")
    train_quantizer(
        DistillSettings(
            checkpoint=tmp_path / "llava",
            pictures=make_pictures(tmp_path / "pictures"),
            output=tmp_path / "q",
            code_dim=8,
            steps=0,
        ),
        progress=False,
    )
    assert main(["inspect", str(tmp_path / "q"), "--json"]) == 0
    looked = json.loads(capsys.readouterr().out)
    assert looked["family"] == "llava" and looked["quantizer"]["code_dim"] == 8
    file = tmp_path / "llava/model.safetensors"
    weights = load_file(file)
    name = next(one for one in weights if "multi_modal_projector.linear_2.bias" in one)
    save_file({**weights, name: weights[name] + 1}, file, metadata={"format": "pt"})
    assert main(["--bits", "2", str(tmp_path / "q"), "-o", str(tmp_path / "bundle")]) == 4
    assert "fitted to another tower or connector" in capsys.readouterr().err
