"""What bad input gets in split training: a line each, and nothing learns from it."""

from __future__ import annotations

import shutil
import subprocess
import zlib
from collections.abc import Iterator, Mapping
from pathlib import Path

import msgspec
import numpy as np
import pytest
import torch

from edge_runtime.training.client import Link, TrainingClient
from qtl_core import codes, shipped
from qtl_core.errors import InputError, RecipeError, RequestRefused, StorageError
from qtl_core.messages import (
    CODEC_FLOAT16,
    CODEC_PACKED,
    CODEC_RANS,
    Begin,
    Error,
    Hello,
    Message,
    Micro,
    Norm,
)
from qtl_core.nn.checkpoint import load_checkpoint
from qtl_core.snapshots import Snapshots, held
from qtl_core.wire import frame_codes
from qtl_training.recipe import Recipe, override, read_recipe
from qtl_training.split.client import TorchRun
from qtl_training.split.parts import differing, parts
from qtl_training.split.serving import Serving
from tests.export.test_disk_full import Disk
from tests.training import together
from tests.training.test_split_run import weights, write


@pytest.fixture(autouse=True, scope="module")
def one_thread() -> Iterator[None]:
    """Models this small are slower on two."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def recipe(tmp_path: Path) -> Recipe:
    return read_recipe(write(tmp_path, steps=3))


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    folder = tmp_path_factory.mktemp("undisturbed")
    together.train(read_recipe(write(folder, steps=3)), folder)
    return weights(folder / "serve" / "checkpoint")


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Disk]:
    try:
        made = Disk(tmp_path / "disk")
    except FileNotFoundError:
        pytest.skip("there is no mount here")
    yield made
    # Weights that are still mapped keep it busy; lazily it goes with them.
    subprocess.run(["umount", "--lazy", str(made.path)], timeout=30, check=True)


def hostile(micro: Micro, payloads: Mapping[str, bytes]) -> Iterator[tuple[str, Micro, dict[str, bytes]]]:
    """Messages that a client of ours never sends, each with the code of the reply that it deserves."""
    good = dict(payloads)

    def frames(data: bytes, codec: int) -> dict[str, object]:
        return {"frames": (frame_codes("v", data, codec=codec), frame_codes("t", good["t"]))}

    def other(code: str, payload: bytes, codec: int) -> tuple[str, Micro, dict[str, bytes]]:
        return code, msgspec.structs.replace(micro, **frames(payload, codec)), good | {"v": payload}

    shape = (4, 36, 16) if not micro.levels else (4, 9, 8)
    if not micro.levels:
        for value in (np.nan, np.inf, -np.inf):
            features = np.frombuffer(good["v"], "<f2").copy()
            features[-1] = value
            yield other("codes", features.tobytes(), CODEC_FLOAT16)
        yield other("codes", good["v"], CODEC_PACKED)
    else:
        yield other("codes", np.zeros(shape, "<f2").tobytes(), CODEC_FLOAT16)
    if micro.levels == 3:
        beyond = np.full(shape, 3, np.uint8)
        yield other("codes", codes.pack(beyond, 4), CODEC_PACKED)
    yield other("codes", good["v"][:-1], micro.frames[0].codec)
    yield other("codes", good["v"] + b"\0", micro.frames[0].codec)
    yield other("codes", b"", micro.frames[0].codec)
    yield other("codes", good["v"], CODEC_RANS)
    yield other("codes", good["v"], 99)
    yield "order", msgspec.structs.replace(micro, levels=256), good
    yield "order", msgspec.structs.replace(micro, step=micro.step + 1), good
    yield "order", msgspec.structs.replace(micro, micro=77), good
    yield "malformed", micro, {"v": good["v"]}
    for texts in (b"no zlib", zlib.compress(b"\xc1"), zlib.compress(bytes(1 << 25)), zlib.compress(b"\x90")):
        yield "malformed", micro, good | {"t": texts}


def test_nothing_learns_from_a_hostile_message(
    recipe: Recipe, undisturbed: dict[str, bytes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    serving: list[Serving] = []
    told: list[str] = []

    def kept(recipe: Recipe, folder: Path) -> Serving:
        serving.append(Serving(recipe, folder))
        return serving[-1]

    monkeypatch.setattr(together, "Serving", kept)

    def before(message: Message, payloads: Mapping[str, bytes]) -> None:
        if not isinstance(message, Micro):
            return None
        for number, (code, bad, data) in enumerate(hostile(message, payloads)):
            ((reply, _),) = serving[0].hear(msgspec.structs.replace(bad, id=message.id + 500 + number), data)
            assert isinstance(reply, Error) and reply.code == code, (bad, reply)
            assert "\n" not in reply.message
            told.append(code)

    together.train(recipe, tmp_path, before=before)
    assert weights(tmp_path / "serve" / "checkpoint") == undisturbed
    assert len(told) > 100


def test_a_micro_batch_comes_once(recipe: Recipe, tmp_path: Path) -> None:
    serving = Serving(recipe, tmp_path / "serve")

    def before(message: Message, payloads: Mapping[str, bytes]) -> None:
        if isinstance(message, Micro) and message.micro == 1:
            bad = msgspec.structs.replace(message, id=message.id + 999, micro=0)
            ((reply, _),) = serving.hear(bad, payloads)
            assert isinstance(reply, Error) and reply.code == "duplicate"

    direct = together.Direct(serving, before)
    run = TorchRun(recipe, tmp_path / "client", progress=False)
    link = Link(server="tcp://127.0.0.1:1")
    TrainingClient(run, link, watch=together.Quiet(), transport=lambda largest: direct).train()
    assert serving.finished


@pytest.mark.parametrize("squared", [float("nan"), float("inf"), -1.0])
def test_a_clients_gradient_that_is_no_number(
    recipe: Recipe, undisturbed: dict[str, bytes], tmp_path: Path, squared: float
) -> None:
    def before(message: Message, payloads: Mapping[str, bytes]) -> Message | None:
        if isinstance(message, Norm) and message.step == 1:
            return msgspec.structs.replace(message, squared=squared)
        return None

    with pytest.raises(RequestRefused, match="diverged at stage 0, step 1") as caught:
        together.train(recipe, tmp_path, before=before)
    assert caught.value.exit_code == 6 and "last good snapshot is of stage 0, step 1" in str(caught.value)
    together.train(recipe, tmp_path)
    assert weights(tmp_path / "serve" / "checkpoint") == undisturbed


@pytest.mark.parametrize("train", ['["connector", "vision_quantizer"]', '["decoder"]'])
def test_a_loss_that_is_no_number_stops_training(tmp_path: Path, train: str) -> None:
    file = write(tmp_path, steps=6)
    text = file.read_text().replace("levels = [4, 0, 3]", "levels = [4]")
    file.write_text(
        text.replace('["connector", "vision_quantizer"]', train, 1).replace("lr = 1e-3", "lr = 1e25")
    )
    with pytest.raises(RequestRefused, match=r"diverged (at|before) stage 0, step [1-4]"):
        together.train(read_recipe(file), tmp_path)
    for side in ("serve", "client"):
        kept = Snapshots(tmp_path / side).newest()
        assert kept is not None
        for value in load_checkpoint(kept / "checkpoint").model.state_dict().values():
            assert value.isfinite().all()


def test_features_beyond_half_precision_stop_training(tmp_path: Path) -> None:
    file = write(tmp_path, steps=6)
    file.write_text(file.read_text().replace("lr = 1e-3", "lr = 1e25").replace("[4, 0, 3]", "[0]"))
    with pytest.raises(InputError, match=r"diverged at stage 0, step [1-4]: a feature is beyond"):
        together.train(read_recipe(file), tmp_path)


def test_one_process_stops_there_too(tmp_path: Path) -> None:
    from qtl_training.local import train

    file = write(tmp_path, steps=6)
    file.write_text(file.read_text().replace("lr = 1e-3", "lr = 1e25").replace("[4, 0, 3]", "[4]"))
    with pytest.raises(InputError, match=r"diverged (at|before)( stage 0,)? step [1-4]"):
        train(read_recipe(file), tmp_path / "local", progress=False)


@pytest.mark.parametrize("side", ["serve", "client"])
def test_a_full_disk_loses_nothing(
    recipe: Recipe, undisturbed: dict[str, bytes], tmp_path: Path, disk: Disk, side: str
) -> None:
    folder, client = (disk.path, tmp_path / "client") if side == "serve" else (tmp_path, disk.path / "client")

    def then(steps: int) -> None:
        if steps == 2:
            disk.leave(20_000)

    with pytest.raises(StorageError, match=r"no snapshot could be written .*No space left"):
        together.train(recipe, folder, client=client, then=then)
    disk.leave(10_000_000)
    together.train(recipe, folder, client=client)
    assert weights(folder / "serve" / "checkpoint") == undisturbed


def test_the_finished_checkpoint_is_whole_or_not_there(recipe: Recipe, tmp_path: Path, disk: Disk) -> None:
    together.train(recipe, tmp_path, client=disk.path / "client")
    before = weights(disk.path / "client" / "checkpoint")
    disk.leave(20_000)
    with pytest.raises(OSError, match="No space left"):
        together.train(recipe, tmp_path, client=disk.path / "client")
    assert weights(disk.path / "client" / "checkpoint") == before
    assert not (disk.path / "client" / ".checkpoint.part").exists()


def test_a_folder_of_another_recipe(recipe: Recipe, tmp_path: Path) -> None:
    Serving(recipe, tmp_path / "run")
    with pytest.raises(RecipeError, match=r"was begun with other settings than 'split' has.*--fresh.*--run"):
        Serving(override(recipe, seed=5), tmp_path / "run")


def test_a_folder_has_one_process(tmp_path: Path) -> None:
    (tmp_path / "run" / "000000-0000001").mkdir(parents=True)
    (tmp_path / "run" / "log.jsonl").write_text("{}")
    with held(tmp_path / "run"):
        with (
            pytest.raises(StorageError, match="in use by another process"),
            held(tmp_path / "run", fresh=True),
        ):
            raise AssertionError("held twice")
        assert (tmp_path / "run" / "log.jsonl").exists()
    with held(tmp_path / "run", fresh=True):
        assert [path.name for path in (tmp_path / "run").iterdir()] == [".lock"]


def test_a_kill_while_snapshots_are_dropped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fill(folder: Path) -> None:
        (folder / "run.json").write_text("{}")
        (folder / "weights").write_text("w")

    snapshots = Snapshots(tmp_path)
    for step in range(2):
        snapshots.save(0, step, fill)

    def killed(folder: Path, **_: object) -> None:
        if folder.exists():
            next(folder.glob("weights")).unlink()
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(shutil, "rmtree", killed)
        with pytest.raises(KeyboardInterrupt):
            snapshots.save(0, 2, fill)
    assert Snapshots(tmp_path).points() == [(0, 1), (0, 2)]
    assert len(list(tmp_path.glob(".*"))) == 1
    snapshots.save(0, 3, fill)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["000000-0000002", "000000-0000003"]


def test_what_two_sides_differ_in(recipe: Recipe, tmp_path: Path) -> None:
    def told(theirs: Recipe, ours: Recipe) -> str:
        hello = Hello(1, bytes(16), (), "train", "", parts=parts(theirs))
        return differing(hello, bytes(16), parts(ours))

    assert "differ in the seed: both need" in told(override(recipe, seed=9), recipe)
    fewer = msgspec.structs.replace(recipe, stages=recipe.stages[:1])
    assert "differ in the settings of stage 2: both" in told(fewer, recipe) == told(recipe, fewer)
    ours = tmp_path / "digits"
    shutil.copytree(shipped.digits(), ours)
    with (ours / "tokenizer.json").open("a") as file:
        file.write(" ")
    started = msgspec.structs.replace(recipe, model=None, start=str(shipped.digits()))
    assert "differ in tokenizer.json to start from: both" in told(override(started, start=str(ours)), started)
    old = Hello(1, bytes(16), (), "train", "")
    assert f"has fingerprint {bytes(16).hex()}" in differing(old, b"1" * 16, parts(recipe))


def test_a_begin_that_comes_again_much_later_changes_nothing(
    recipe: Recipe, undisturbed: dict[str, bytes], tmp_path: Path
) -> None:
    begun: list[Begin] = []
    echoes: list[object] = []
    serving = Serving(recipe, tmp_path / "serve")

    def before(message: Message, payloads: Mapping[str, bytes]) -> None:
        if isinstance(message, Begin):
            begun.append(message)
        elif begun and isinstance(message, Micro):
            echoes.extend(serving.hear(begun[0], {}))

    direct = together.Direct(serving, before)
    run = TorchRun(recipe, tmp_path / "client", progress=False)
    link = Link(server="tcp://127.0.0.1:1")
    TrainingClient(run, link, watch=together.Quiet(), transport=lambda largest: direct).train()
    assert weights(tmp_path / "serve" / "checkpoint") == undisturbed
    assert 0 < len(echoes) < 15  # answered from what was kept, and then not at all
