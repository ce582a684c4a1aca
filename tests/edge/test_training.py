"""Training on a device: held against PyTorch's own client, killed, and given what is bad."""

from __future__ import annotations

import errno
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from click.testing import CliRunner

from edge_runtime.cli import cli
from edge_runtime.training.data import read_data
from edge_runtime.training.run import DeviceRun
from qtl_core import tensor_file
from qtl_core.bundle import Half, open_half
from qtl_core.errors import (
    BundleError,
    CodeError,
    InputError,
    PictureError,
    RecipeError,
    SampleError,
    StorageError,
)
from qtl_core.trainable import FILE, MEAN, STD, K, read_training
from tests.edge import tiny, trainable
from tests.edge.training_peer import Killed, TrainingPeer, train

SHORT = msgspec.structs.replace(trainable.STAGE, steps=6)


@pytest.mark.parametrize("scaling", trainable.SCALINGS)
def test_a_hundred_steps_are_those_of_pytorch(tmp_path: Path, scaling: trainable.Scaling) -> None:
    half = trainable.write_half(tmp_path / "client", scaling)
    ours, theirs = trainable.started(scaling), trainable.replayed(scaling)
    before = trainable.started(scaling)
    trainable.replay(half, ours)
    moved = min(trainable.distance(before, ours), trainable.distance(before, theirs))
    assert moved > 0.1
    assert trainable.distance(ours, theirs) <= 0.02 * moved
    for name in (MEAN, STD):
        assert (scaling == "frozen") == bool((before[name] != theirs[name]).any())
        np.testing.assert_allclose(ours[name], theirs[name], rtol=1e-3, atol=1e-5)


def test_the_towers_graph(tmp_path: Path) -> None:
    from edge_runtime.training.features import TowerFeatures
    from edge_runtime.training.graphs import Graphs

    half = trainable.write_half(tmp_path / "client")
    trainable.write_data(tmp_path / "data", 4)
    paths = [tmp_path / "data" / f"{seed}.png" for seed in range(4)]
    one = 2 * trainable.TOWER[0] * trainable.TOWER[1]
    for memory in (0, 2 * one, 100 * one):
        features = TowerFeatures(Graphs(half), tiny.PICTURE, trainable.TOWER, paths, memory)
        for chosen in ([3, 1], [1, 0], []):
            np.testing.assert_allclose(features.of(chosen), trainable.features(4)[chosen], atol=2e-3)


@pytest.fixture
def begin(tmp_path: Path) -> Callable[..., DeviceRun]:
    file = trainable.write_data(tmp_path / "data")

    def make(folder: str = "run", stages: Any = (SHORT,), **settings: Any) -> DeviceRun:
        half = trainable.write_half(tmp_path / "half" / str(len(list(tmp_path.iterdir()))), stages=stages)
        training = read_training(half)
        data = read_data(training.stages, training.seeds, file, file.parent, half.manifest.picture)
        return DeviceRun(half, tmp_path / folder, data, threads=1, **settings)

    return make


def tensors(path: Path) -> dict[str, bytes]:
    return {name: value.tobytes() for name, value in tensor_file.load(path.read_bytes(), "it").items()}


def test_a_run(begin: Callable[..., DeviceRun]) -> None:
    run = begin()
    peer = TrainingPeer(run)
    done = train(run, peer)
    assert (done.steps, done.pictures) == (6, peer.pictures) and peer.pictures > 20
    assert done.traffic.up > 0 and done.traffic.down > 0
    assert done.folder.name == "trained.safetensors"
    handed = {name: np.asarray(value).tobytes() for name, value in peer.weights.items()}
    assert tensors(done.folder) == handed
    started = trainable.started("frozen")
    assert set(handed) == set(started) and all(handed[name] != started[name].tobytes() for name in started)
    assert run.points() == [(0, 5), (1, 0)]
    lines = (done.folder.parent / "log.jsonl").read_text().splitlines()
    assert [json.loads(line)["step"] for line in lines] == list(range(6))


@pytest.mark.parametrize("kill", [0, 1, 4])
def test_killed_and_resumed_ends_in_the_same_weights(begin: Callable[..., DeviceRun], kill: int) -> None:
    first = begin("undisturbed")
    undisturbed = train(first, TrainingPeer(first))
    run = begin()
    peer = TrainingPeer(run, kill=kill)
    with pytest.raises(Killed):
        train(run, peer)
    again = begin()
    resumed = TrainingPeer(again)
    resumed.points = peer.points
    assert train(again, resumed).steps == 6 - kill
    assert tensors(undisturbed.folder) == tensors(again.finish())
    # Done is done: nothing is left but to hand over the weights once more.
    third = begin()
    last = TrainingPeer(third)
    last.points = resumed.points
    assert train(third, last).steps == 0 and last.weights


def test_what_a_stage_does_not_train_stays(begin: Callable[..., DeviceRun]) -> None:
    only = msgspec.structs.replace(SHORT, train=("connector",), steps=2, levels=(4,), weights=())
    run = begin(stages=(only,))
    train(run, TrainingPeer(run))
    found, before = tensor_file.load(run.weights(), "it"), trainable.started("frozen")
    same = {name for name in found if np.array_equal(found[name], before[name])}
    assert same == {K, "vision_quantizer.in_proj.weight", "vision_quantizer.in_proj.bias"}


def test_without_anything_to_train_it_only_sends(begin: Callable[..., DeviceRun]) -> None:
    run = begin(stages=(msgspec.structs.replace(SHORT, train=("decoder",), steps=3),))
    train(run, TrainingPeer(run))
    found, before = tensor_file.load(run.weights(), "it"), trainable.started("frozen")
    moved = {name for name in found if not np.array_equal(found[name], before[name])}
    assert moved == {MEAN, STD}  # statistics follow what passes, as in PyTorch


def test_a_gradient_that_is_no_number(begin: Callable[..., DeviceRun]) -> None:
    run = begin(stages=(msgspec.structs.replace(SHORT, grad_bits=32),))
    nan = np.float32(np.nan).tobytes()
    peer = TrainingPeer(run, spoil=lambda data: nan + data[4:])
    with pytest.raises(CodeError, match="not finite"):
        train(run, peer)
    assert run.points() == [(0, 0)]


def test_weights_that_are_no_numbers(begin: Callable[..., DeviceRun]) -> None:
    run = begin(stages=(msgspec.structs.replace(SHORT, quantizer_lr=1e30, k_lr=1e30),))
    with pytest.raises(RecipeError, match=r"stage 0, step 1 is no number any more: lower"):
        train(run, TrainingPeer(run))


def test_a_full_disk(begin: Callable[..., DeviceRun], monkeypatch: pytest.MonkeyPatch) -> None:
    run = begin()
    whole, taken = Path.write_bytes, []

    def write(path: Path, data: Any) -> int:
        if path.name == "tensors.safetensors":
            taken.append(path)
            if len(taken) > 2:
                raise OSError(errno.ENOSPC, "No space left on device")
        return whole(path, data)

    monkeypatch.setattr(Path, "write_bytes", write)
    with pytest.raises(StorageError, match="No space left"):
        train(run, TrainingPeer(run))
    monkeypatch.undo()
    assert begin().points() == [(0, 1), (0, 2)]


def test_a_folder_of_another_run(begin: Callable[..., DeviceRun], tmp_path: Path) -> None:
    begin()
    with pytest.raises(InputError, match="another recipe or checkpoint; start anew with --fresh"):
        begin(stages=(msgspec.structs.replace(SHORT, steps=7),))
    file = tmp_path / "data" / "data.json"
    file.write_text(json.dumps(json.loads(file.read_text())[:-1]))
    with pytest.raises(InputError, match="begun with another data"):
        begin()


def test_samples_that_are_bad(tmp_path: Path) -> None:
    half = trainable.write_half(tmp_path / "client")
    training = read_training(half)
    file = trainable.write_data(tmp_path / "data")
    (tmp_path / "data" / "3.png").write_bytes(b"no picture")

    def read(on_bad: Any) -> Any:
        return read_data(
            training.stages, training.seeds, file, file.parent, half.manifest.picture, on_bad=on_bad
        )

    with pytest.raises(SampleError, match=r"data.json, sample 3: .*3.png is no PNG"):
        read("stop")
    assert [one.index for one in read("skip").bad] == [3]
    scenes = msgspec.structs.replace(trainable.STAGE, data=None)
    with pytest.raises(BundleError, match="stage 1 of this bundle's recipe trains on digit scenes"):
        read_data([scenes], [1], file, file.parent, half.manifest.picture)


def test_a_picture_that_changed_since(begin: Callable[..., DeviceRun], tmp_path: Path) -> None:
    run = begin()
    for path in (tmp_path / "data").glob("*.png"):
        path.write_bytes(b"no picture")
    with pytest.raises(PictureError, match="is no PNG"):
        train(run, TrainingPeer(run))


def test_a_half_without_training_graphs(half: Path) -> None:
    with pytest.raises(BundleError, match="no training graphs; export it with: qtl-export --trainable"):
        read_training(open_half(half, "client"))


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"schema": 2}, "has schema 2, this version reads 1; install a newer"),
        ({"stages": [{"kind": "tower"}]}, "cannot be read: "),
        ({"tower": [0, 3]}, "cannot be read: "),
    ],
)
def test_a_description_that_does_not_fit(tmp_path: Path, change: dict[str, Any], says: str) -> None:
    path = trainable.write_half(tmp_path / "client").path
    training = {**json.loads((path / FILE).read_bytes()), **change}
    manifest = tiny.write_client(
        path,
        files={
            **{str(one.relative_to(path)): one.read_bytes() for one in (path / "train").iterdir()},
            FILE: json.dumps(training).encode(),
        },
    )
    with pytest.raises(BundleError, match=says):
        read_training(Half(path, manifest))


def run_cli(*arguments: str) -> Any:
    return CliRunner().invoke(cli, ["train", *arguments], standalone_mode=False)


def test_the_command_says_what_is_wrong(tmp_path: Path, half: Path, nobody: str) -> None:
    file = str(trainable.write_data(tmp_path / "data"))
    common = ["--data", file, "--run", str(tmp_path / "run")]
    found = run_cli("--bundle", str(half), *common)
    assert isinstance(found.exception, BundleError) and "--trainable" in str(found.exception)
    good = trainable.write_half(tmp_path / "good").path
    found = run_cli("--bundle", str(good), *common, "--server", "tcp://10.0.0.2:5555")
    assert isinstance(found.exception, InputError) and "--insecure" in str(found.exception)
    found = run_cli("--bundle", str(good), *common, "--server", nobody, "--timeout", "0.5")
    assert "no server at" in str(found.exception)
    assert (tmp_path / "run" / "000000-0000000").is_dir()


@pytest.mark.skipif(sys.platform == "win32", reason="signals")
def test_help_needs_nothing_heavy(source_env: dict[str, str]) -> None:
    import subprocess

    program = (
        "import sys\nfrom edge_runtime.cli import main\nsys.argv[1:] = ['train', '--help']\nmain()\n"
        "print([one for one in ('numpy', 'onnxruntime', 'zmq', 'msgspec', 'PIL') if one in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], env=source_env, capture_output=True, text=True, check=True
    )
    assert done.stdout.startswith("Usage: ") and done.stdout.splitlines()[-1] == "[]"
