"""`qtl-train quantizer` on miniatures with random weights: what it makes, goes on with, and refuses."""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from PIL import Image
from safetensors.torch import load_file, save_file

from qtl_core.entropy_file import read_tables, tables_name
from qtl_core.errors import (
    CheckpointError,
    CodeError,
    HostError,
    InputError,
    PictureError,
    QtlError,
    QuestionError,
)
from qtl_core.nn.checkpoint import load_checkpoint
from qtl_core.nn.families.digits import WEIGHTS_FILE
from qtl_export.post_training import PostTraining
from qtl_export.progress import Progress
from qtl_training.distillation.feature_cache import FeatureCache
from qtl_training.distillation.rows import Asking
from qtl_training.distillation.run import train_quantizer
from qtl_training.distillation.settings import DistillSettings
from qtl_training.train_cli import cli
from tests.nn import foreign
from tests.nn.test_family_tinyllava import FINISHED, stage_quantized

PICTURES = 24


@pytest.fixture(scope="module")
def llava(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A LLaVA of Hugging Face, and pictures beside it."""
    folder = tmp_path_factory.mktemp("llava")
    foreign.make_llava(folder / "llava")
    (folder / "pictures").mkdir()
    rng = np.random.default_rng(5)
    for index in range(PICTURES):
        small = Image.fromarray(rng.integers(0, 256, (4, 4, 3), dtype=np.uint8))
        large = small.resize((40, 32), Image.Resampling.BICUBIC)
        large.save(folder / "pictures" / f"{index:03}.png")
    return folder


def settings_of(llava: Path, output: Path, **more: Any) -> DistillSettings:
    usual: dict[str, Any] = {"levels": 4, "code_dim": 8, "steps": 4, "batch": 4, "answer_tokens": 4}
    return DistillSettings(
        checkpoint=llava / "llava", pictures=llava / "pictures", output=output, **(usual | more)
    )


def weights(output: Path) -> bytes:
    return (output / WEIGHTS_FILE).read_bytes()


def test_steps_bring_features_and_next_tokens_back(llava: Path, tmp_path: Path) -> None:
    before = {path.name: path.read_bytes() for path in (llava / "llava").iterdir()}
    said = train_quantizer(settings_of(llava, tmp_path / "q", steps=60, lr=3e-3), progress=False)
    assert (said.pictures, said.pictures_aside, said.tokens, said.width) == (20, 4, 16, foreign.WIDTH)
    assert said.tuned.kl.mean < 0.9 * said.fitted.kl.mean
    assert 0 <= said.fitted.kl.same_tokens <= 1
    # The checkpoint stays as it was, and is not copied.
    assert {path.name: path.read_bytes() for path in (llava / "llava").iterdir()} == before
    assert sum(path.stat().st_size for path in (tmp_path / "q").iterdir() if path.is_file()) < 50_000
    made = load_checkpoint(tmp_path / "q")
    assert (made.family, made.path.resolve(), made.fitted) == ("llava", llava / "llava", tmp_path / "q")
    assert (made.settings.vision.code_dim, made.settings.vision.levels) == (8, 4)
    assert read_tables(tmp_path / "q" / tables_name(4)).channels == 8
    assert not list((tmp_path / "q").rglob("*.f16"))
    log = [json.loads(line) for line in (tmp_path / "q/run/log.jsonl").read_text().splitlines()]
    assert log[-1]["step"] == 59 and {"loss", "distance", "direction", "kl"} <= log[-1].keys()
    # Without weights, as `qtl-export inspect` reads it.
    assert load_checkpoint(tmp_path / "q", weights=False).model.vision_quantizer.code_dim == 8


@pytest.mark.parametrize("family", ["qtl", "tinyllava", "quantized-tinyllava"])
def test_checkpoints_of_other_families(llava: Path, tmp_path: Path, tiny_folder: Path, family: str) -> None:
    folders = {
        "qtl": lambda: tiny_folder,
        "tinyllava": lambda: FINISHED,
        "quantized-tinyllava": lambda: stage_quantized(tmp_path / "staged"),
    }
    folder = folders[family]()
    settings = settings_of(llava, tmp_path / "q", levels=3, steps=2, code_dim=4)
    said = train_quantizer(dataclasses.replace(settings, checkpoint=folder), progress=False)
    assert said.family == family
    made = load_checkpoint(tmp_path / "q")
    assert (made.family, made.settings.vision.levels) == (family, 3)
    # In place of the checkpoint's own, whose further ones it leaves behind.
    assert made.model.vision_quantizer.code_dim == 4 and not made.further
    assert made.settings.language == load_checkpoint(folder).settings.language


def test_without_steps_it_is_what_calibrate_fits(llava: Path, tmp_path: Path) -> None:
    said = train_quantizer(settings_of(llava, tmp_path / "q", steps=0), progress=False)
    assert said.fitted == said.tuned
    made = load_checkpoint(tmp_path / "q").model
    other, fitted = PostTraining(load_checkpoint(llava / "llava"), llava / "pictures", 8, Progress()).fitted(
        4
    )
    assert fitted.k == said.fitted.k and abs(fitted.snr_db - said.fitted.snr_db) < 0.1
    with torch.no_grad():
        features = made.vision(foreign.pictures(8))
        codes, theirs = made.vision_quantizer.encode(features), other.model.vision_quantizer.encode(features)
    # Its features went through half precision on the way.
    assert (codes == theirs).float().mean() > 0.98


class Killed(BaseException):
    """Stands for a kill: nothing catches it."""


def killed_at(step: int) -> Callable[[], float]:
    """A clock by which a snapshot is due after every step, and that ends the run at one of them."""
    asked = iter(range(10**6))

    def clock() -> float:
        now = next(asked)
        if now == 2 * step:
            raise Killed
        return float(now)

    return clock


def test_a_run_goes_on_where_it_was_ended(llava: Path, tmp_path: Path) -> None:
    straight = train_quantizer(settings_of(llava, tmp_path / "straight", save_every=0.0), progress=False)
    settings = settings_of(llava, tmp_path / "killed", save_every=0.0)
    with pytest.raises(Killed):
        train_quantizer(settings, progress=False, clock=killed_at(2))
    assert list((tmp_path / "killed/run").glob("000000-000000[12]"))
    # The kill came while the tower's features were being written, too.
    (cached,) = (tmp_path / "killed/run").glob("features-*.f16")
    whole = cached.read_bytes()
    cached.write_bytes(whole[: len(whole) - 1000])
    resumed = train_quantizer(settings, progress=False)
    assert weights(tmp_path / "killed") == weights(tmp_path / "straight")
    assert (resumed.fitted, resumed.tuned) == (straight.fitted, straight.tuned)
    # Given again, the command has nothing left to do.
    stamp = (tmp_path / "killed" / WEIGHTS_FILE).stat().st_mtime_ns
    assert train_quantizer(settings, progress=False) == resumed
    assert (tmp_path / "killed" / WEIGHTS_FILE).stat().st_mtime_ns == stamp
    other = dataclasses.replace(settings, steps=6)
    with pytest.raises(InputError, match=r"begun with other settings \(steps\)"):
        train_quantizer(other, progress=False)
    train_quantizer(other, fresh=True, progress=False)
    assert weights(tmp_path / "killed") != weights(tmp_path / "straight")


@pytest.mark.slow
def test_killed_for_real_it_ends_in_the_same_weights(
    llava: Path, tmp_path: Path, source_env: dict[str, str]
) -> None:
    def command(name: str) -> list[str]:
        return [
            *(sys.executable, "-m", "qtl_training.train_cli", "quantizer", str(llava / "llava")),
            *("--pictures", str(llava / "pictures"), "-o", str(tmp_path / name), "--code-dim", "8"),
            *("--steps", "60", "--batch", "8", "--threads", "1"),
        ]

    subprocess.run(command("straight"), env=source_env, check=True, capture_output=True, timeout=300)
    log = tmp_path / "killed/run/log.jsonl"
    for lines in (1, 2):
        process = subprocess.Popen(
            command("killed"), env=source_env, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        while process.poll() is None and (not log.exists() or log.read_text().count("\n") < lines):
            time.sleep(0.01)
        assert process.poll() is None, "the run ended before it could be killed"
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
    subprocess.run(command("killed"), env=source_env, check=True, capture_output=True, timeout=300)
    assert weights(tmp_path / "killed") == weights(tmp_path / "straight")


def test_questions_are_measured_on(llava: Path, tmp_path: Path) -> None:
    asked = tmp_path / "asked.jsonl"
    lines = [{"image": f"{i:03}.png", "question": "why?", "answer": "never said"} for i in range(6)]
    asked.write_text("".join(json.dumps(line) + "\n" for line in lines))
    settings = settings_of(llava, tmp_path / "q", questions=asked, steps=1)
    said = train_quantizer(settings, progress=False)
    assert (said.questions, said.accuracy_16bit, said.fitted.accuracy, said.tuned.accuracy) == (6, 0, 0, 0)
    assert said.questions_about_known == 5  # of 24 pictures every sixth is kept aside, the first too
    assert "16 bit: 0.00% right" in said.as_text() and "5 of them about pictures it was" in said.as_text()
    # What the 16-bit model itself answers is right at 16 bit.
    checkpoint = load_checkpoint(llava / "llava")
    asking = Asking(checkpoint, 4)
    cache = FeatureCache(tmp_path, checkpoint, "", [llava / "pictures" / line["image"] for line in lines])
    cache.fill(progress=False)
    features = cache.cut(range(6)).half().float()
    answers, _ = asking.greedy(features, asking.rows([asking.prompt("why?")] * 6, cache.tokens))
    for line, answer in zip(lines, answers, strict=True):
        line["answer"] = asking.text(answer) or "-"
    asked.write_text("".join(json.dumps(line) + "\n" for line in lines))
    spoken = sum(line["answer"] != "-" for line in lines)
    again = train_quantizer(settings, fresh=True, progress=False)
    assert again.accuracy_16bit == spoken / 6 and spoken


def test_cached_features_serve_other_runs(llava: Path, tmp_path: Path) -> None:
    kept = {"cache": tmp_path / "cache", "steps": 0}
    train_quantizer(settings_of(llava, tmp_path / "a", **kept), progress=False)
    (file,) = (tmp_path / "cache").glob("*.f16")
    assert file.stat().st_size == 2 * PICTURES * 16 * 24
    stamp = file.stat().st_mtime_ns
    train_quantizer(settings_of(llava, tmp_path / "b", levels=16, **kept), progress=False)
    assert file.stat().st_mtime_ns == stamp and len(list((tmp_path / "cache").iterdir())) == 1


def test_the_checkpoint_must_be_where_and_what_it_was(llava: Path, tmp_path: Path) -> None:
    shutil.copytree(llava / "llava", tmp_path / "here/llava")
    settings = dataclasses.replace(
        settings_of(llava, tmp_path / "here/q", steps=0), checkpoint=tmp_path / "here/llava"
    )
    train_quantizer(settings, progress=False)
    # Moved together they still find each other.
    (tmp_path / "here").rename(tmp_path / "there")
    assert load_checkpoint(tmp_path / "there/q").model.quantized
    with pytest.raises(CheckpointError, match="is one quantizer and has no 'tiny'"):
        load_checkpoint(tmp_path / "there/q", quantizer="tiny")
    (tmp_path / "there/llava").rename(tmp_path / "there/other")
    with pytest.raises(CheckpointError, match=r"is for the checkpoint '\.\./llava', which cannot be read"):
        load_checkpoint(tmp_path / "there/q")
    foreign.make_llava(tmp_path / "there/llava", layer=-1)
    weights_file = tmp_path / "there/llava/model.safetensors"
    changed = load_file(weights_file)
    name = next(one for one in changed if "multi_modal_projector.linear_1.weight" in one)
    changed[name] = changed[name] + 1
    save_file(changed, weights_file, metadata={"format": "pt"})
    with pytest.raises(CheckpointError, match="fitted to another tower or connector"):
        load_checkpoint(tmp_path / "there/q")


@pytest.mark.parametrize(
    ("more", "error", "says"),
    [
        ({"code_dim": 64}, InputError, "give 1 to 32"),
        ({"max_pictures": 3, "code_dim": 32}, InputError, "3 pictures in .* are too few .* give at least 9"),
        ({"pictures": "EMPTY"}, PictureError, "there is no picture"),
        ({"pictures": "NONE"}, PictureError, "cannot read the folder"),
        ({"prompts": "EMPTY/prompts.txt"}, QuestionError, "cannot be read"),
        ({"questions": "EMPTY/asked.jsonl"}, QuestionError, "cannot be read"),
        ({"checkpoint": "NONE"}, CheckpointError, "no checkpoint at"),
        ({"device": "nowhere"}, HostError, "cannot compute on 'nowhere'"),
        ({"output": "CHECKPOINT"}, InputError, "holds a checkpoint that is no quantizer"),
    ],
)
def test_what_cannot_be_done(
    llava: Path, tmp_path: Path, more: dict[str, Any], error: type[QtlError], says: str
) -> None:
    (tmp_path / "EMPTY").mkdir()
    shutil.copytree(llava / "llava", tmp_path / "CHECKPOINT")
    paths: dict[str, Any] = {
        name: tmp_path / value if isinstance(value, str) and value.split("/")[0].isupper() else value
        for name, value in more.items()
    }
    settings = dataclasses.replace(settings_of(llava, tmp_path / "q"), **paths)
    with pytest.raises(error, match=says):
        train_quantizer(settings, progress=False)


@pytest.mark.parametrize(
    ("more", "says"),
    [
        ({"batch": 0}, "batch is 0"),
        ({"steps": -1}, "steps is -1"),
        ({"feature_weight": 0.0, "logit_weight": 0.0}, "nothing would be learnt"),
    ],
)
def test_settings_out_of_range(llava: Path, tmp_path: Path, more: dict[str, Any], says: str) -> None:
    with pytest.raises(InputError, match=says):
        settings_of(llava, tmp_path / "q", **more)
    with pytest.raises(CodeError):
        settings_of(llava, tmp_path / "q", levels=1)


def test_the_command(llava: Path, tmp_path: Path) -> None:
    arguments = ["quantizer", str(llava / "llava"), "--pictures", str(llava / "pictures")]
    arguments += [
        "-o",
        str(tmp_path / "q"),
        "--levels",
        "5",
        "--code-dim",
        "8",
        "--steps",
        "2",
        "--batch",
        "3",
    ]
    done = CliRunner().invoke(cli, [*arguments, "--json", str(tmp_path / "q.json")], standalone_mode=False)
    assert done.exception is None, done.output
    assert "fine-tuned" in done.output and f"qtl-export --levels 5 {tmp_path / 'q'}" in done.output
    said = json.loads((tmp_path / "q.json").read_text())
    assert (said["levels"], said["steps"], said["family"]) == (5, 2, "llava")
    both = CliRunner().invoke(cli, [*arguments, "--bits", "2"], standalone_mode=False)
    assert "give either --bits" in str(both.exception)
