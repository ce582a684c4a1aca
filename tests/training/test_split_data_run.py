"""Both stages on LLaVA-format data, client and server as processes: the same weights as in one process."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from qtl_core.errors import RecipeError, SampleError
from qtl_training.digits.conversations import FILE, PICTURES, write_parts
from qtl_training.local import train
from qtl_training.recipe import override, read_recipe
from tests.training.test_split_run import RECIPE, running, weights

DATA = """
[stages.data]
rows = 3
max_tokens = 256
max_pictures = 2
cache_mib = {cache}
"""


def write(folder: Path, *, steps: int, bits: int, cache: int) -> Path:
    said = RECIPE.format(steps=steps, bits=bits, every=0.0)
    lines = [
        line for line in said.splitlines() if not line.startswith(("scenes =", "pictures =", "questions ="))
    ]
    first, second = "\n".join(lines).split("[[stages]]")[1:]
    head = "\n".join(lines).split("[[stages]]")[0]
    data = DATA.format(cache=cache)
    file = folder / f"own-{cache}.toml"
    file.write_text(f"{head}[[stages]]{first}{data}\n[[stages]]{second}{data}")
    return file


@pytest.mark.slow
@pytest.mark.parametrize(("bits", "killed"), [(32, ()), (4, (("serve", 3), ("client", 6)))])
def test_conversations_end_in_the_weights_of_one_process(
    tmp_path: Path, source_env: dict[str, str], bits: int, killed: tuple[tuple[str, int], ...]
) -> None:
    write_parts(tmp_path / "data", 22, 1, progress=False)
    folder = tmp_path / "data" / "train"
    (folder / PICTURES / "000004.png").write_bytes(b"no picture")
    data = [
        "--data", str(folder / FILE), "--pictures", str(folder / PICTURES), "--on-bad-sample", "skip"
    ]  # fmt: skip
    # The client keeps no features in memory, one process keeps all: that is no business of the server's.
    recipe, kept = (write(tmp_path, steps=5, bits=bits, cache=cache) for cache in (0, 64))
    local = [sys.executable, "-m", "qtl_training.train_cli", "local", str(kept), "--json"]
    local += ["--run", str(tmp_path / "local"), "--threads", "1", *data]
    done = subprocess.run(local, env=source_env, check=True, capture_output=True, text=True, timeout=240)
    assert json.loads(done.stdout)["samples_left_out"] == 2  # in each of two stages
    assert "left out 1 of 22 samples" in done.stderr and "000004.png is no PNG" in done.stderr
    with running(recipe, tmp_path, source_env) as run:
        run.start("serve")
        run.start("client", *data)
        for side, steps in killed:
            run.wait_for(lambda steps=steps: run.steps() >= steps, f"step {steps}")
            run.kill(side)
            run.start(side, *(data if side == "client" else ()))
        client, server = run.result("client"), run.result("serve")
    assert weights(tmp_path / "serve" / "checkpoint") == weights(tmp_path / "local" / "checkpoint")
    assert server["finished"] and client["samples_left_out"] == 2
    if not killed:
        ours, theirs = ((tmp_path / side / "log.jsonl").read_text() for side in ("client", "local"))
        assert ours == theirs and ours.count("\n") == 10


def test_what_is_said_about_data_that_is_not_there(tmp_path: Path) -> None:
    write_parts(tmp_path / "data", 4, 1, progress=False)
    data = tmp_path / "data" / "train"
    (data / PICTURES / "000000.png").unlink()
    recipe = read_recipe(write(tmp_path, steps=5, bits=32, cache=0))
    with pytest.raises(RecipeError, match="names no file of conversations: give one with --data FILE"):
        train(recipe, tmp_path / "run", progress=False)
    named = override(recipe, data=data / FILE, pictures=data / PICTURES)
    with pytest.raises(SampleError, match=r"sample 0 \(id 'train-0'\): there is no picture '000000.png'"):
        train(named, tmp_path / "run", progress=False)
