"""`edge_runtime train` with a real `qtl-train serve`: the device's client, in a process without PyTorch."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch

from qtl_core import tensor_file
from qtl_core.bundle import open_half
from qtl_core.nn.checkpoint import load_checkpoint
from qtl_core.trainable import START, read_training
from qtl_export.config import ExportConfig
from qtl_export.exporter import export
from qtl_export.trainable.recipe import read_split_recipe
from qtl_training.build import build_checkpoint
from qtl_training.recipe import read_recipe
from qtl_training.split import partition
from qtl_training.split.agreement import fingerprint
from tests.edge import trainable
from tests.house import rooms
from tests.tiny import TINY
from tests.training.test_split_run import Run

RECIPE = """
name = "device"
seed = 4
start = "{start}"
checkpoint_every = 0.0
log_every = 1
[[stages]]
kind = "split"
steps = {steps}
micro_batches = 2
levels = [4, 0, 3]
grad_bits = 4
train = ["connector", "vision_quantizer"]
optimizer = {{ lr = 1e-3, clip = 0.5 }}
[stages.data]
rows = 3
max_pictures = 2
max_tokens = 128
[[stages]]
kind = "split"
steps = {steps}
levels = [4]
train = ["connector", "decoder", "vision_quantizer"]
optimizer = {{ lr = 1e-3 }}
[stages.data]
rows = 3
max_pictures = 2
max_tokens = 128
"""
# A process that has no PyTorch, as a device has none.
_BARE = """
import sys
class Block:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in BLOCKED:
            raise ModuleNotFoundError(f"{name} is not on the device", name=name)
sys.meta_path.insert(0, Block())
from edge_runtime.cli import main
sys.exit(main())
"""


class DeviceRun(Run):
    """As ``Run``, with the device's client."""

    bundle: Path
    data: Path

    def start(self, side: str, *more: str) -> subprocess.Popen[str]:
        if side == "serve":
            return super().start(side, *more)
        program = f"BLOCKED = set({sorted(rooms.NOT_ON_DEVICE)!r})\n{_BARE}"
        arguments = [
            "train", "--bundle", str(self.bundle), "--data", str(self.data), "--threads", "1", "--json",
            "--run", str(self.folder / "client"), "--server", self.address.read_text().strip(),
        ]  # fmt: skip
        self.processes[side] = subprocess.Popen(
            [sys.executable, "-c", program, *arguments, *more],
            env=self.env,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        return self.processes[side]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a small checkpoint, a recipe, the bundle to train, and data."""
    folder = tmp_path_factory.mktemp("device")
    build_checkpoint(folder / "checkpoint", TINY, "tiny", seed=3)
    recipe = folder / "recipe.toml"
    recipe.write_text(RECIPE.format(start=folder / "checkpoint", steps=3))
    export(
        ExportConfig(
            checkpoint=folder / "checkpoint", levels=4, output=folder / "bundle", validate=0,
            recipe=read_split_recipe(recipe),
        )
    )  # fmt: skip
    trainable.write_data(folder / "data", 8)
    return folder


@contextmanager
def running(made: Path, folder: Path, env: dict[str, str]) -> Iterator[DeviceRun]:
    folder.mkdir(exist_ok=True)
    run = DeviceRun(made / "recipe.toml", folder, env)
    run.bundle, run.data = made / "bundle", made / "data" / "data.json"
    try:
        yield run
    finally:
        run.close()


@pytest.fixture(scope="module")
def trained(made: Path, source_env: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of an undisturbed run."""
    folder = tmp_path_factory.mktemp("trained")
    with running(made, folder, source_env) as run:
        run.start("serve")
        run.start("client")
        client, server = run.result("client"), run.result("serve")
    assert server["finished"] and (client["steps"], client["samples_left_out"]) == (6, 0)
    assert abs(client["bytes_up"] - server["bytes_up"]) < 100
    return folder


def test_what_the_bundle_says_is_what_the_server_wants(made: Path) -> None:
    half = open_half(made / "bundle", "client")
    training = read_training(half)
    assert bytes.fromhex(training.fingerprint) == fingerprint(read_recipe(made / "recipe.toml"))
    start = tensor_file.load(half.file(START).read_bytes(), "start")
    wanted = partition.client_tensors(load_checkpoint(made / "checkpoint").model)
    assert set(start) == set(wanted)
    assert all(torch.equal(torch.from_numpy(start[name]), wanted[name]) for name in start)


def test_a_device_trains(trained: Path) -> None:
    # What the server has of the client is what the client has.
    ours = tensor_file.load((trained / "client" / "trained.safetensors").read_bytes(), "ours")
    theirs = partition.client_tensors(load_checkpoint(trained / "serve" / "checkpoint").model)
    assert all(torch.equal(torch.from_numpy(ours[name]), theirs[name]) for name in theirs)
    lines = [json.loads(line) for line in (trained / "client" / "log.jsonl").read_text().splitlines()]
    assert [(line["stage"], line["step"]) for line in lines] == [(s, n) for s in (0, 1) for n in range(3)]


@pytest.mark.slow
def test_killed_on_either_side_it_ends_in_the_same_weights(
    made: Path, trained: Path, tmp_path: Path, source_env: dict[str, str]
) -> None:
    with running(made, tmp_path / "killed", source_env) as run:
        run.start("serve")
        run.start("client")
        for side, done in (("client", 2), ("serve", 4)):
            run.wait_for(lambda done=done: run.steps() >= done, f"step {done}")
            run.kill(side)
            run.start(side)
        run.result("client")
        run.result("serve")
    weights = [f"serve/checkpoint/{name}.safetensors" for name in ("model", "qtl")]
    for name in (*weights, "client/trained.safetensors"):
        assert (tmp_path / "killed" / name).read_bytes() == (trained / name).read_bytes(), name


@pytest.mark.slow
def test_a_server_of_another_recipe(made: Path, tmp_path: Path, source_env: dict[str, str]) -> None:
    with running(made, tmp_path / "run", source_env) as run:
        run.recipe = tmp_path / "other.toml"
        run.recipe.write_text((made / "recipe.toml").read_text().replace("lr = 1e-3", "lr = 2e-3", 1))
        run.start("serve")
        client = run.start("client")
        _, err = client.communicate(timeout=240)
    assert client.returncode == 6 and "fingerprint" in err and "same stages, seed and checkpoint" in err
