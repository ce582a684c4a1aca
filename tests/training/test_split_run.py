"""Training across the cut with real processes: the same weights as in one, whatever is killed meanwhile."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from qtl_core.nn.checkpoint import load_checkpoint

RECIPE = """
name = "split"
seed = 4
checkpoint_every = {every}
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
[model.language]
code_dim = 16

[[stages]]
kind = "split"
steps = {steps}
scenes = 24
micro_batches = 3
pictures = 4
questions = 2
levels = [4, 0, 3]
grad_bits = {bits}
train = ["connector", "vision_quantizer"]
optimizer = {{ lr = 1e-3 }}

[[stages]]
kind = "split"
steps = {steps}
scenes = 24
micro_batches = 2
pictures = 4
questions = 2
grad_bits = {bits}
train = ["connector", "decoder", "vision_quantizer"]
optimizer = {{ lr = 1e-3, clip = 0.1 }}
"""


def weights(folder: Path) -> dict[str, bytes]:
    return {name: (folder / name).read_bytes() for name in ("model.safetensors", "qtl.safetensors")}


def write(folder: Path, *, steps: int = 4, bits: int = 32, every: float = 0.0, fit: bool = False) -> Path:
    file = folder / "split.toml"
    text = RECIPE.format(steps=steps, bits=bits, every=every)
    begin = "levels = [4, 0, 3]"
    file.write_text(text.replace(begin, f"{begin}\nfit_quantizer = true") if fit else text)
    return file


class Run:
    """A server and its client as processes, each started again as often as a test wants."""

    def __init__(self, recipe: Path, folder: Path, env: dict[str, str]) -> None:
        self.recipe, self.folder, self.env = recipe, folder, env
        self.address = folder / "address"
        self.processes: dict[str, subprocess.Popen[str]] = {}

    def start(self, side: str, *more: str) -> subprocess.Popen[str]:
        command = [sys.executable, "-m", "qtl_training.train_cli", *self.arguments(side), *more]
        self.processes[side] = subprocess.Popen(
            command,
            env=self.env,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        if side == "serve":
            self.wait_for(lambda: self.address.exists(), "the server")
        return self.processes[side]

    def arguments(self, side: str) -> list[str]:
        common = [side, str(self.recipe), "--run", str(self.folder / side), "--threads", "1", "--json"]
        if side == "client":
            return [*common, "--server", self.address.read_text().strip(), "--comeback", "60"]
        bind = self.address.read_text().strip() if self.address.exists() else "tcp://127.0.0.1:*"
        return [*common, "--bind", bind, "--ready-file", str(self.address)]

    def kill(self, side: str) -> None:
        os.killpg(self.processes[side].pid, signal.SIGKILL)
        self.processes[side].communicate()

    def result(self, side: str, timeout: float = 240) -> dict[str, Any]:
        out, err = self.processes[side].communicate(timeout=timeout)
        assert self.processes[side].returncode == 0, err
        found: dict[str, Any] = json.loads(out.splitlines()[-1])
        return found

    def steps(self) -> int:
        log = self.folder / "client" / "log.jsonl"
        return log.read_text().count("\n") if log.exists() else 0

    def wait_for(self, what: Any, name: str, seconds: float = 120) -> None:
        end = time.monotonic() + seconds
        while not what():
            assert time.monotonic() < end, f"{name} did not come in {seconds} s"
            time.sleep(0.01)

    def close(self) -> None:
        for process in self.processes.values():
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
            process.communicate()


@contextmanager
def running(recipe: Path, folder: Path, env: dict[str, str]) -> Iterator[Run]:
    run = Run(recipe, folder, env)
    try:
        yield run
    finally:
        run.close()


@pytest.mark.parametrize("bits", [32, 4])
def test_the_weights_are_those_of_one_process(tmp_path: Path, source_env: dict[str, str], bits: int) -> None:
    recipe = write(tmp_path, bits=bits, fit=bits == 4)
    local = train_in_a_process(recipe, tmp_path / "local", source_env)
    with running(recipe, tmp_path, source_env) as run:
        run.start("serve")
        run.start("client")
        client, server = run.result("client"), run.result("serve")
    assert weights(tmp_path / "serve" / "checkpoint") == weights(local)
    ours = [json.loads(line) for line in (tmp_path / "client" / "log.jsonl").read_text().splitlines()]
    theirs = [json.loads(line) for line in (tmp_path / "local" / "log.jsonl").read_text().splitlines()]
    assert ours == theirs and len(ours) == 8
    assert (client["steps"], client["pictures"]) == (8, 80)
    assert server["finished"]
    # Both sides count the same bytes, but for what was said before the session and after it.
    assert abs(client["bytes_up"] - server["bytes_up"]) < 100
    assert abs(client["bytes_down"] - server["bytes_down"]) < 100


def train_in_a_process(recipe: Path, run: Path, env: dict[str, str]) -> Path:
    command = [sys.executable, "-m", "qtl_training.train_cli", "local", str(recipe), "--run", str(run)]
    subprocess.run([*command, "--threads", "1"], env=env, check=True, capture_output=True, timeout=240)
    return run / "checkpoint"


def kills(tmp_path: Path, env: dict[str, str], moments: list[tuple[str, int]], steps: int) -> None:
    recipe = write(tmp_path, steps=steps, bits=4, fit=True)
    local = train_in_a_process(recipe, tmp_path / "local", env)
    with running(recipe, tmp_path, env) as run:
        run.start("serve")
        run.start("client")
        for side, done in moments:
            run.wait_for(lambda done=done: run.steps() >= done, f"step {done}")
            assert run.processes["client"].poll() is None, run.processes["client"].communicate()
            run.kill(side)
            run.start(side)
        run.result("client")
        run.result("serve")
    assert weights(tmp_path / "serve" / "checkpoint") == weights(local)


def test_either_side_killed_ends_in_the_same_weights(tmp_path: Path, source_env: dict[str, str]) -> None:
    kills(tmp_path, source_env, [("serve", 2), ("client", 5)], steps=6)


@pytest.mark.slow
def test_twenty_kills_end_in_the_same_weights(tmp_path: Path, source_env: dict[str, str]) -> None:
    draw = random.Random(7)
    steps = 60
    moments = [
        (draw.choice(["serve", "client"]), done) for done in sorted(draw.sample(range(1, 2 * steps - 6), 20))
    ]
    kills(tmp_path, source_env, moments, steps)


def test_what_came_out_can_be_trained_on(tmp_path: Path, source_env: dict[str, str]) -> None:
    recipe = write(tmp_path, steps=2)
    with running(recipe, tmp_path, source_env) as run:
        run.start("serve")
        run.start("client")
        run.result("client")
        run.result("serve")
        # Done is done: the same command finds nothing left to do but to hand over its weights.
        run.address.unlink()
        run.start("serve")
        run.start("client")
        assert run.result("client")["steps"] == 0
    assert load_checkpoint(tmp_path / "serve" / "checkpoint").model.quantized


def failing(arguments: list[str], env: dict[str, str]) -> tuple[int, str]:
    command = [sys.executable, "-m", "qtl_training.train_cli", *arguments]
    done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=240)
    assert "Traceback" not in done.stderr
    return done.returncode, done.stderr.splitlines()[-1]


def test_what_a_client_is_told(tmp_path: Path, source_env: dict[str, str]) -> None:
    recipe = write(tmp_path, steps=400)
    other = tmp_path / "other.toml"
    other.write_text(recipe.read_text().replace("lr = 1e-3", "lr = 2e-3", 1))
    with running(recipe, tmp_path, source_env) as run:
        run.start("serve")
        address = run.address.read_text().strip()

        def told(file: Path, *more: str) -> tuple[int, str]:
            arguments = ["client", str(file), "--run", str(tmp_path / "told"), "--threads", "1"]
            return failing([*arguments, "--fresh", "--server", address, *more], source_env)

        code, line = told(other)
        assert code == 6 and "differ in the settings of stage 1" in line
        assert "same stages, seed and checkpoint" in line
        run.start("client")
        run.wait_for(lambda: run.steps() > 1, "training")
        code, line = told(recipe, "--timeout", "2")
        assert code == 6 and "a client is training here already" in line
        run.kill("client")
        run.wait_for(lambda: run.steps() > 1, "training")
        # What it has no snapshot of in common with the server cannot be gone on from.
        code, line = told(recipe, "--timeout", "60")
        assert code == 6 and "share no moment of this run" in line and "--fresh" in line


def test_a_recipe_that_needs_both_sides(tmp_path: Path, source_env: dict[str, str]) -> None:
    recipe = Path(__file__).parents[2] / "training" / "recipes" / "digits-quantizer.toml"
    code, line = failing(["serve", str(recipe), "--run", str(tmp_path / "run")], source_env)
    assert code == 3 and "needs both sides of the cut in one process" in line
