"""What bench chose is found again, holds only where it was measured, and never stands in the way."""

from __future__ import annotations

import os
from pathlib import Path

import msgspec
import pytest

from edge_runtime import EdgeClient, choice
from edge_runtime.choice import Choice, folder, path_of, store, stored
from edge_runtime.variants import variant, variants
from qtl_core.bundle import Half, open_half
from qtl_core.errors import InputError, StorageError
from tests.edge import tiny


@pytest.fixture
def opened(tmp_path: Path) -> Half:
    files = {"client.near.onnx": tiny.variant("near"), "client.near.onnx.data": b"x" * 10}
    tiny.write_client(tmp_path / "client", files=files)
    return open_half(tmp_path / "client", "client")


def a_choice(half: Half, **changes: object) -> Choice:
    made = Choice(
        variant="near",
        provider="CPUExecutionProvider",
        threads=2,
        ms=1.5,
        sha256=variant(half, "near").sha256,
        onnxruntime="1.0",
        machine="this",
    )
    return msgspec.structs.replace(made, **changes)


def find(half: Half) -> choice.Stored:
    return stored(half, onnxruntime="1.0", machine="this")


def test_variants_are_the_graphs_beside_the_manifest_s_own(opened: Half) -> None:
    full, near = variants(opened)
    assert (full.name, full.graph, full.full) == ("fp32", "client.onnx", True)
    assert (near.name, near.graph, near.full) == ("near", "client.near.onnx", False)
    assert near.bytes == opened.manifest.files["client.near.onnx"].size + 10
    assert variant(opened, "") == full
    with pytest.raises(InputError, match="no variant 'int4'; it has fp32, near"):
        variant(opened, "int4")


def test_a_choice_is_found_again(opened: Half, state: Path) -> None:
    assert find(opened) == choice.Stored()
    path = store(opened, a_choice(opened))
    assert path == state / "choices" / f"{opened.manifest.fingerprint}.json"
    assert find(opened).choice == a_choice(opened)
    store(opened, a_choice(opened, threads=1))
    found = find(opened).choice
    assert found is not None
    assert found.threads == 1
    assert str(found) == "near on CPUExecutionProvider, 1 thread"
    assert [one.name for one in path.parent.iterdir()] == [path.name]


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"onnxruntime": "0.9"}, "onnxruntime was 0.9 then and is 1.0 now"),
        ({"machine": "that"}, "measured on another machine"),
        ({"sha256": "0" * 64}, "graph near is another one now"),
        ({"variant": "gone"}, "graph gone is another one now"),
        ({"schema": 2}, "another version of qtl-edge"),
    ],
)
def test_a_choice_for_something_else_is_left_alone(
    opened: Half, changes: dict[str, object], why: str
) -> None:
    store(opened, a_choice(opened, **changes))
    found = find(opened)
    assert found.choice is None
    assert why in found.why_not
    assert "run `edge_runtime bench` again" in found.why_not


@pytest.mark.parametrize("damage", [b"", b"{", b"[]", b'{"variant": 3}', b"\xff\xfe"])
def test_a_damaged_file_is_no_choice(opened: Half, damage: bytes) -> None:
    store(opened, a_choice(opened)).write_bytes(damage)
    found = find(opened)
    assert found.choice is None
    assert "damaged" in found.why_not


def test_where_choices_are_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert folder({"XDG_STATE_HOME": str(tmp_path)}) == tmp_path / "qtl"
    monkeypatch.setattr("sys.platform", "linux")
    monkeypatch.setattr(Path, "home", classmethod(lambda cls: tmp_path))
    assert folder({}) == tmp_path / ".local" / "state" / "qtl"
    assert folder({"XDG_STATE_HOME": "relative"}) == tmp_path / ".local" / "state" / "qtl"
    monkeypatch.setattr("sys.platform", "darwin")
    assert folder({}) == tmp_path / "Library" / "Application Support" / "qtl"
    monkeypatch.setattr("sys.platform", "win32")
    assert folder({"LOCALAPPDATA": str(tmp_path / "local")}) == tmp_path / "local" / "qtl"


def test_a_user_without_a_home(opened: Half, monkeypatch: pytest.MonkeyPatch) -> None:
    def nowhere(cls: type[Path]) -> Path:
        raise RuntimeError("no home")

    monkeypatch.delenv("XDG_STATE_HOME")
    monkeypatch.setattr(Path, "home", classmethod(nowhere))
    assert find(opened) == choice.Stored()
    with pytest.raises(StorageError, match="set XDG_STATE_HOME"):
        store(opened, a_choice(opened))


def test_a_folder_that_cannot_be_written(opened: Half, state: Path) -> None:
    state.parent.mkdir(parents=True, exist_ok=True)
    state.write_text("a file where the folder should be")
    with pytest.raises(StorageError, match="set XDG_STATE_HOME"):
        store(opened, a_choice(opened))
    assert find(opened) == choice.Stored()


def test_a_client_uses_it_only_when_told_to(opened: Half, monkeypatch: pytest.MonkeyPatch) -> None:
    import onnxruntime

    from edge_runtime.machine import look

    held = a_choice(opened, onnxruntime=onnxruntime.__version__, machine=look().key, threads=1)
    store(opened, held)
    scene = tiny.scene(0)
    plain = EdgeClient(opened.path, threads=1)
    assert plain.stored.choice is None
    assert plain.encode(scene).payload == tiny.payload(scene)
    tuned = EdgeClient(opened.path, measured=True)
    assert tuned.stored.choice == held
    assert tuned.encode(scene).payload != tiny.payload(scene)
    named = EdgeClient(opened.path, variant="near")
    assert named.encode(scene).payload == tuned.encode(scene).payload
    for setting in ({"threads": 1}, {"variant": "near"}, {"providers": ["CPUExecutionProvider"]}):
        with pytest.raises(InputError, match="leave them out"):
            EdgeClient(opened.path, measured=True, **setting)


def test_the_choice_is_for_one_bundle(opened: Half, tmp_path: Path) -> None:
    store(opened, a_choice(opened))
    tiny.write_client(tmp_path / "other", bits=16)
    assert find(open_half(tmp_path / "other", "client")) == choice.Stored()
    assert path_of(opened).exists()
    assert os.listdir(path_of(opened).parent) == [path_of(opened).name]
