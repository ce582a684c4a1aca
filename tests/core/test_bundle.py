"""Bundles: written, opened, and every way in which a half can be wrong."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest

from qtl_core import bundle
from qtl_core.bundle import Cut, Manifest, Picture, Template, Text
from qtl_core.errors import BundleError

CUT = Cut(
    tokens=16,
    width=128,
    code_dim=16,
    merge=1,
    levels=4,
    bits=2,
    scaling="image",
    codec="packed",
    payload_bytes=64,
)
PICTURE = Picture(height=96, width=96, resample="bilinear", fit="pad", pad_colour=(127, 127, 127))
TEXT = Text(mode="plain", levels=0, code_dim=0, width=128, max_tokens=32, scaling="none")
TEMPLATE = Template(before_image="<s>", between="\n", after_question="\nA:")
SHA = "0" * 64


def _write(folder: Path, half: bundle.HalfName, **changes: Any) -> Path:
    folder.mkdir(parents=True)
    (folder / "golden").mkdir()
    (folder / "golden" / "codes.npz").write_bytes(b"codes")
    (folder / "README.md").write_text("numbers")
    (folder / ("client.onnx" if half == "client" else "model.safetensors")).write_bytes(b"weights")
    manifest = Manifest(
        half=half,
        fingerprint=bundle.fingerprint(CUT, PICTURE, TEXT, TEMPLATE, SHA, SHA),
        model="digits",
        cut=CUT,
        picture=PICTURE,
        text=TEXT,
        template=TEMPLATE,
        files=bundle.hash_files(folder),
        made_by={"torch": "2.13.0"},
        validation={"codes": 1_000_000, "differ": 3, "accuracy": {"macro": 0.971}},
    )
    bundle.write_manifest(folder, msgspec.structs.replace(manifest, **changes))
    return folder


@pytest.fixture
def both(tmp_path: Path) -> Path:
    for half in ("client", "server"):
        _write(tmp_path / "bundle" / half, half)
    return tmp_path / "bundle"


@pytest.fixture
def client(both: Path) -> Path:
    return both / "client"


def _edit(folder: Path, change: Callable[[dict[str, Any]], object]) -> None:
    path = folder / bundle.MANIFEST
    tree = json.loads(path.read_text())
    change(tree)
    path.write_text(json.dumps(tree))


@pytest.mark.parametrize("half", ["client", "server"])
def test_a_half_opens_by_itself_and_in_its_bundle(both: Path, half: Any) -> None:
    alone, inside = bundle.open_half(both / half, half), bundle.open_half(str(both), half)
    assert alone == inside
    assert alone.path == (both / half).resolve()
    assert alone.manifest.half == half
    assert alone.manifest.cut == CUT
    assert len(alone.manifest.fingerprint_bytes) == 16
    assert alone.file("README.md").read_text() == "numbers"
    with pytest.raises(BundleError, match=r"no other\.bin"):
        alone.file("other.bin")


def test_the_manifest_is_json_that_people_can_read(client: Path) -> None:
    text = (client / bundle.MANIFEST).read_text()
    assert text.count("\n") > 30
    assert list(json.loads(text)["files"]) == ["README.md", "client.onnx", "golden/codes.npz"]
    assert not (client / "manifest.json.new").exists()


def test_a_link_to_the_whole_half_is_fine(both: Path, tmp_path: Path) -> None:
    (tmp_path / "current").symlink_to(both)
    assert bundle.open_half(tmp_path / "current", "client").path == (both / "client").resolve()


def test_files_that_nobody_loads_may_lie_beside(client: Path) -> None:
    (client / ".DS_Store").write_bytes(b"x")
    (client / "notes.txt").write_text("mine")
    bundle.open_half(client, "client")


def test_nothing_there(tmp_path: Path) -> None:
    with pytest.raises(BundleError, match=r"does not exist; make one with: qtl-export --bits 2 -o .*gone"):
        bundle.open_half(tmp_path / "gone", "client")
    (tmp_path / "file").write_text("")
    with pytest.raises(BundleError, match="is not a directory"):
        bundle.open_half(tmp_path / "file", "client")
    with pytest.raises(BundleError, match=r"holds no manifest\.json and no server/manifest\.json"):
        bundle.open_half(tmp_path, "server")


def test_the_wrong_half(both: Path) -> None:
    with pytest.raises(BundleError, match="is the client half of a bundle; give the server half"):
        bundle.open_half(both / "client", "server")
    shutil.rmtree(both / "server")
    shutil.copytree(both / "client", both / "server")
    with pytest.raises(BundleError, match="is the client half"):
        bundle.open_half(both, "server")


@pytest.mark.parametrize("name", ["client.onnx", "golden/codes.npz", "README.md"])
def test_tampering(client: Path, name: str) -> None:
    path = client / name
    data = path.read_bytes()
    path.write_bytes(bytes([data[0] ^ 1]) + data[1:])
    with pytest.raises(BundleError, match="SHA-256 differs"):
        bundle.open_half(client, "client")
    path.write_bytes(data[:-1])
    with pytest.raises(BundleError, match="the manifest says"):
        bundle.open_half(client, "client")
    path.unlink()
    with pytest.raises(BundleError, match="is missing"):
        bundle.open_half(client, "client")
    path.mkdir()
    with pytest.raises(BundleError, match="no regular file"):
        bundle.open_half(client, "client")


def test_every_truncation_of_the_manifest(client: Path) -> None:
    path = client / bundle.MANIFEST
    for length in reversed(range(len(path.read_bytes().rstrip()))):
        os.truncate(path, length)
        with pytest.raises(BundleError, match="no valid manifest"):
            bundle.open_half(client, "client")


@pytest.mark.parametrize("data", [b"\xff", b"[]", b"null", b"[" * 100_000, b"{}", b'{"schema": "1"}'])
def test_what_is_no_manifest(client: Path, data: bytes) -> None:
    (client / bundle.MANIFEST).write_bytes(data)
    with pytest.raises(BundleError, match="no valid manifest"):
        bundle.open_half(client, "client")


def test_a_manifest_without_end(client: Path) -> None:
    (client / bundle.MANIFEST).write_bytes(b" " * (bundle.MAX_MANIFEST + 1))
    with pytest.raises(BundleError, match="larger than"):
        bundle.open_half(client, "client")


@pytest.mark.parametrize(
    ("schema", "remedy"), [(2, "install a newer"), (99, "install a newer"), (0, "again")]
)
def test_another_schema(client: Path, schema: int, remedy: str) -> None:
    # A newer layout has other fields too; the version is what the message is about.
    (client / bundle.MANIFEST).write_text(json.dumps({"schema": schema, "pieces": []}))
    with pytest.raises(BundleError, match=rf"has schema {schema}, this version reads 1; .*{remedy}"):
        bundle.open_half(client, "client")


def test_fields_of_a_newer_writer_are_ignored(client: Path) -> None:
    _edit(client, lambda tree: tree.update(later=1))
    bundle.open_half(client, "client")


@pytest.mark.parametrize(
    "name",
    [
        "../secret",
        "golden/../../secret",
        "/etc/passwd",
        "golden//codes.npz",
        "./client.onnx",
        "..",
        ".",
        "",
        "golden\\codes.npz",
        "C:secret",
        "a\0b",
        "golden/",
    ],
)
def test_paths_that_leave_the_directory(client: Path, name: str) -> None:
    (client.parent / "secret").write_bytes(b"codes")
    _edit(client, lambda tree: tree["files"].update({name: tree["files"]["golden/codes.npz"]}))
    with pytest.raises(BundleError, match="no path inside the bundle"):
        bundle.open_half(client, "client")


def test_links_to_files_and_folders(client: Path, tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    shutil.copytree(client / "golden", outside)
    (client / "golden" / "codes.npz").unlink()
    (client / "golden" / "codes.npz").symlink_to(outside / "codes.npz")
    with pytest.raises(
        BundleError, match=r"symbolic link; copy the bundle with its links followed \(cp -rL\)"
    ):
        bundle.open_half(client, "client")
    with pytest.raises(BundleError, match="symbolic link"):
        bundle.hash_files(client)
    shutil.rmtree(client / "golden")
    (client / "golden").symlink_to(outside, target_is_directory=True)
    with pytest.raises(BundleError, match="symbolic link"):
        bundle.open_half(client, "client")


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no named pipes here")
def test_a_pipe_in_the_place_of_a_file_does_not_hang(client: Path) -> None:
    (client / "client.onnx").unlink()
    os.mkfifo(client / "client.onnx")
    with pytest.raises(BundleError, match="no regular file"):
        bundle.open_half(client, "client")


@pytest.mark.parametrize("name", ["other.onnx", "golden/more.npz", "client.onnx.data", "evil.PT", "x.pkl"])
def test_loadable_files_that_the_manifest_does_not_list(client: Path, name: str) -> None:
    (client / name).write_bytes(b"x")
    with pytest.raises(BundleError, match="is not listed in the manifest"):
        bundle.open_half(client, "client")


def test_a_graph_that_the_manifest_does_not_list(tmp_path: Path) -> None:
    folder = _write(tmp_path / "client", "client", graph="client.int8.onnx")
    with pytest.raises(BundleError, match=r"does not list its graph 'client\.int8\.onnx'"):
        bundle.open_half(folder, "client")


@pytest.mark.parametrize(
    ("part", "change"),
    [
        ("cut", {"bits": 3}),
        ("cut", {"levels": 1}),
        ("cut", {"levels": 257}),
        ("cut", {"levels": 0}),
        ("cut", {"levels": 16}),
        ("cut", {"payload_bytes": 63}),
        ("cut", {"codec": "float16"}),
        ("cut", {"codec": "zip"}),
        ("cut", {"scaling": "other"}),
        ("cut", {"tokens": 0}),
        ("cut", {"width": -1}),
        ("cut", {"merge": 0}),
        ("picture", {"height": 0}),
        ("picture", {"resample": "sharpest"}),
        ("picture", {"resized": [0, 96]}),
        ("picture", {"fit": "stretch"}),
        ("picture", {"pad_colour": [0, 0, 256]}),
        ("picture", {"pad_colour": [0, 0]}),
        ("text", {"mode": "other"}),
        ("text", {"mode": "codes"}),
        ("template", {"between": None}),
    ],
)
def test_settings_that_do_not_fit_together(client: Path, part: str, change: dict[str, Any]) -> None:
    _edit(client, lambda tree: tree[part].update(change))
    with pytest.raises(BundleError, match="no valid manifest"):
        bundle.open_half(client, "client")


@pytest.mark.parametrize("fingerprint", ["", "0" * 31, "0" * 33, "G" * 32, "0" * 32 + "\n"])
def test_fingerprints_that_are_none(client: Path, fingerprint: str) -> None:
    _edit(client, lambda tree: tree.update(fingerprint=fingerprint))
    with pytest.raises(BundleError, match="no valid manifest"):
        bundle.open_half(client, "client")


def test_cut_arithmetic() -> None:
    cut = Cut(
        tokens=4,
        width=6,
        code_dim=5,
        merge=3,
        levels=3,
        bits=2,
        scaling="frozen",
        codec="packed",
        payload_bytes=5,
    )
    assert cut.quantized
    assert cut.picture_tokens == 36
    assert cut.feature_bytes_16bit == 36 * 6 * 2
    plain = Cut(
        tokens=4,
        width=6,
        code_dim=6,
        merge=1,
        levels=0,
        bits=16,
        scaling="none",
        codec="float16",
        payload_bytes=48,
    )
    assert not plain.quantized
    assert plain.feature_bytes_16bit == 48
    with pytest.raises(ValueError, match="takes 48 bytes"):
        Cut(
            tokens=4,
            width=6,
            code_dim=6,
            merge=1,
            levels=0,
            bits=16,
            scaling="none",
            codec="float16",
            payload_bytes=24,
        )


def test_the_fingerprint_is_about_everything_both_halves_share() -> None:
    first = bundle.fingerprint(CUT, PICTURE, TEXT, TEMPLATE, SHA, SHA)
    assert first == bundle.fingerprint(CUT, PICTURE, TEXT, TEMPLATE, SHA, SHA)
    replace = msgspec.structs.replace
    others = {
        bundle.fingerprint(replace(CUT, scaling="frozen"), PICTURE, TEXT, TEMPLATE, SHA, SHA),
        bundle.fingerprint(CUT, replace(PICTURE, fit="square"), TEXT, TEMPLATE, SHA, SHA),
        bundle.fingerprint(CUT, replace(PICTURE, resized=(90, 90)), TEXT, TEMPLATE, SHA, SHA),
        bundle.fingerprint(CUT, PICTURE, replace(TEXT, max_tokens=9), TEMPLATE, SHA, SHA),
        bundle.fingerprint(CUT, PICTURE, TEXT, replace(TEMPLATE, between=""), SHA, SHA),
        bundle.fingerprint(CUT, PICTURE, TEXT, TEMPLATE, "1" * 64, SHA),
        bundle.fingerprint(CUT, PICTURE, TEXT, TEMPLATE, SHA, "1" * 64),
    }
    assert len(others | {first}) == 8


def test_the_fingerprint_does_not_change_from_one_version_to_the_next() -> None:
    assert bundle.fingerprint(CUT, PICTURE, TEXT, TEMPLATE, SHA, SHA) == "edf1482308c3c02805a7094ac845f033"
