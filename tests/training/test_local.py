"""Local training: a killed run ends in the weights of one that was not."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from qtl_core.errors import RecipeError, StorageError
from qtl_core.nn.checkpoint import FurtherQuantizer, load_checkpoint, save_quantizer
from qtl_training.local import train
from qtl_training.recipe import read_recipe

RECIPE = """
name = "small"
seed = 5
checkpoint_every = 0.0
log_every = 1

[model]
image_size = 96
patch_size = 16
stem_widths = [4, 8, 8]
stem_blocks = [0, 0, 1]
tower_width = 16
tower_layers = 1
tower_heads = 2
tower_mlp = 16
width = 16
layers = 1
heads = 2
mlp = 16
vocabulary = 300
[model.vision]
code_dim = 8
scaling = "frozen"
merge = 2
k_levels = [2, 256]
[model.language]
code_dim = 16

[[stages]]
kind = "tower"
part = "tower"
steps = 5
batch = 4
optimizer = { lr = 1e-3 }

[[stages]]
kind = "language"
steps = 8
scenes = 12
scenes_a_step = 4
questions = 3
focus = ["read_cell", "locate"]
levels = [0, 2, 256]
text_codes = 0.5
fit_quantizers = true
train = ["connector", "decoder", "vision_quantizer", "language_quantizer"]
optimizer = { lr = 1e-3 }

[[stages]]
kind = "split"
steps = 5
scenes = 12
micro_batches = 2
pictures = 3
questions = 2
levels = [0, 4]
grad_bits = 4
train = ["connector", "decoder", "vision_quantizer"]
optimizer = { lr = 1e-3 }
"""


def weights(folder: Path) -> dict[str, bytes]:
    return {name: (folder / name).read_bytes() for name in ("model.safetensors", "qtl.safetensors")}


def steps_done(run: Path) -> list[tuple[int, int]]:
    log = run / "log.jsonl"
    if not log.exists():
        return []
    lines = [json.loads(line) for line in log.read_text().splitlines() if line.endswith("}")]
    return [(line["stage"], line["step"]) for line in lines]


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    file = tmp_path / "small.toml"
    file.write_text(RECIPE)
    return file


def command(recipe: Path, run: Path) -> list[str]:
    arguments = ["local", str(recipe), "--run", str(run), "--threads", "1"]
    return [sys.executable, "-m", "qtl_training.train_cli", *arguments]


def test_killed_and_resumed_ends_in_the_same_weights(
    recipe: Path, tmp_path: Path, source_env: dict[str, str]
) -> None:
    straight, killed = tmp_path / "straight", tmp_path / "killed"
    subprocess.run(command(recipe, straight), env=source_env, check=True, capture_output=True, timeout=300)
    for stop_at in ((0, 2), (1, 3), (2, 2)):
        process = subprocess.Popen(
            command(recipe, killed),
            env=source_env,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        while process.poll() is None and not any(done >= stop_at for done in steps_done(killed)):
            time.sleep(0.01)
        assert process.poll() is None, "the run ended before it could be killed"
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    assert not (killed / "checkpoint").exists()
    subprocess.run(command(recipe, killed), env=source_env, check=True, capture_output=True, timeout=300)
    assert weights(killed / "checkpoint") == weights(straight / "checkpoint")
    assert {(1, 7), (2, 4)} <= set(steps_done(killed))


def test_a_run_goes_on_only_with_its_own_settings(recipe: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    train(read_recipe(recipe), run, progress=False)
    before = weights(run / "checkpoint")
    train(read_recipe(recipe), run, progress=False)  # nothing left to do
    assert weights(run / "checkpoint") == before
    recipe.write_text(RECIPE.replace("lr = 1e-3", "lr = 2e-3", 1))
    with pytest.raises(RecipeError, match="begun with other settings"):
        train(read_recipe(recipe), run, progress=False)
    train(read_recipe(recipe), run, fresh=True, progress=False)
    assert weights(run / "checkpoint") != before


BESIDE = """
name = "beside"
start = "{start}"
[[stages]]
kind = "language"
steps = 4
scenes = 12
scenes_a_step = 4
questions = 3
beside = ["tiny"]
beside_share = {share}
train = {train}
optimizer = {{ lr = 1e-3 }}
"""


def test_a_decoder_learns_to_read_what_is_beside(recipe: Path, tmp_path: Path) -> None:
    start = train(read_recipe(recipe), tmp_path / "start", progress=False)
    other = load_checkpoint(start).model.vision_quantizer
    save_quantizer(start, "tiny", FurtherQuantizer(load_checkpoint(start).settings.vision, other))
    files = {name: tmp_path / f"{name}.toml" for name in ("all", "none", "without", "moved")}
    learns = ["decoder"]
    files["all"].write_text(BESIDE.format(start=start, share=1.0, train=learns))
    files["none"].write_text(BESIDE.format(start=start, share=0.0, train=learns))
    ends = {
        name: load_checkpoint(train(read_recipe(files[name]), tmp_path / name, progress=False))
        for name in ("all", "none")
    }
    # It went through the other quantizer, which stays as it was, with the checkpoint.
    layer = "model.layers.0.mlp.down_proj.weight"
    learnt = {name: end.model.decoder.language_model.state_dict()[layer] for name, end in ends.items()}
    assert not torch.equal(learnt["all"], learnt["none"])
    kept = ends["all"].further["tiny"].module.state_dict()
    assert all(torch.equal(kept[name], value) for name, value in other.state_dict().items())
    # What moves the connector leaves none behind that no longer fits.
    plain = BESIDE.replace('beside = ["tiny"]', "")
    files["moved"].write_text(plain.format(start=start, share=0.0, train=["connector", "decoder"]))
    assert not load_checkpoint(train(read_recipe(files["moved"]), tmp_path / "moved", progress=False)).further
    moved = tmp_path / "moved" / "checkpoint"
    files["without"].write_text(BESIDE.format(start=moved, share=0.0, train=learns))
    with pytest.raises(RecipeError, match=r"names the quantizer 'tiny', and .* has none"):
        train(read_recipe(files["without"]), tmp_path / "without", progress=False)


def test_a_folder_that_cannot_be_made(recipe: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StorageError, match="cannot be made"):
        train(read_recipe(recipe), tmp_path / "file" / "run", progress=False)
