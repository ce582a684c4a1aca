"""Bundles: complete, reproducible, checked, and put in place whole or not at all."""

from __future__ import annotations

import errno
import fcntl
import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edge_runtime.encoder import Encoder
from edge_runtime.golden import difference, golden_of
from edge_runtime.text import TextEncoder
from qtl_core import codes as packing
from qtl_core.bundle import MANIFEST, open_half
from qtl_core.errors import BundleError, InputError
from qtl_core.nn.checkpoint import load_checkpoint
from qtl_core.nn.server_partition import ServerPartition
from qtl_export import exporter, place, validation
from qtl_export.config import ExportConfig, levels_of_bits
from qtl_export.exporter import CODES_WANTED, MAX_PICTURES, export
from qtl_export.halves import Agreement
from tests.export.conftest import CODE_DIM, PICTURES, TOKENS, Export
from tests.export.test_graph import digests

BITS = (*range(1, 9), 16)


@pytest.mark.parametrize("bits", BITS)
def test_every_bit_width(bits: int, exported: Export) -> None:
    levels = levels_of_bits(bits)
    bundle, said = exported(levels)
    client, server = open_half(bundle, "client").manifest, open_half(bundle, "server").manifest
    cut = client.cut
    assert client.fingerprint == server.fingerprint == said.fingerprint
    assert cut == server.cut == said.cut
    assert (cut.bits, cut.levels) == (bits, levels)
    if bits == 16:
        assert (cut.tokens, cut.code_dim, cut.merge, cut.scaling) == (16, 16, 1, "none")
        assert cut.payload_bytes == cut.feature_bytes_16bit == 512
    else:
        assert (cut.tokens, cut.code_dim, cut.merge, cut.scaling) == (TOKENS, CODE_DIM, 2, "image")
        assert cut.payload_bytes == packing.packed_size(TOKENS * CODE_DIM, levels)
    assert client.made_by["opset"] == "18"
    assert client.made_by["ir_version"] == "10"


@pytest.mark.parametrize("bits", BITS)
def test_validation_is_in_both_manifests_and_cards(bits: int, exported: Export) -> None:
    bundle, said = exported(levels_of_bits(bits))
    found = said.validation
    assert found["passed"]
    assert found["pictures"] == 40
    assert f"{PICTURES}, and {40 - PICTURES} flipped" in found["source"]
    assert found["answers"]["asked"] == found["answers"]["known"] == 8
    assert found["answers"]["right"] is not None
    if bits == 16:
        assert found["features"]["compared"] == 40 * 16 * 16
    else:
        assert found["codes"]["compared"] == 40 * TOKENS * CODE_DIM
        assert found["codes"]["share_bound"] == (1e-4 if bits <= 4 else 1e-3)
        assert found["codes"]["reference_differ"] == found["codes"]["mispacked"] == 0
    for half in ("client", "server"):
        assert open_half(bundle, half).manifest.validation == json.loads(json.dumps(found))
        card = (bundle / half / "README.md").read_text("utf-8")
        assert said.fingerprint in card
        assert "within its bounds" in card
        assert "answers compared | 8" in card
        assert ("features compared" if bits == 16 else "codes compared") in card


@pytest.mark.parametrize("levels", [0, 4])
def test_golden_pictures(levels: int, exported: Export) -> None:
    bundle, _ = exported(levels)
    half = open_half(bundle, "client")
    with np.load(half.file("golden.npz"), allow_pickle=False) as golden:
        pictures, payloads = golden["pictures"], golden["payloads"]
    assert 1 <= len(pictures) == len(payloads) <= 4
    found = Encoder(half).run(pictures)
    assert found == [row.tobytes() for row in payloads]
    read = golden_of(half)
    assert read is not None
    assert difference(half.manifest.cut, read.payloads, found).differ == 0
    size = half.file("golden.npz").stat().st_size
    assert f"`golden.npz`, {size:,} bytes" in half.file("README.md").read_text("utf-8")


def test_exporting_twice_gives_the_same_bytes(exported: Export, checkpoint: Path, tmp_path: Path) -> None:
    bundle, _ = exported(4)
    export(ExportConfig(checkpoint=checkpoint, levels=4, output=tmp_path / "again", validate=40))
    assert digests(bundle) == digests(tmp_path / "again")


def test_halves_of_two_exports_have_other_fingerprints(exported: Export) -> None:
    kinds = [(4, "plain"), (4, "codes"), (8, "plain"), (0, "plain")]
    assert len({exported(*kind)[1].fingerprint for kind in kinds}) == len(kinds)


@pytest.mark.parametrize("half", ["client", "server"])
def test_damage_is_found(half: Any, traced: None, checkpoint: Path, tmp_path: Path) -> None:
    bundle = tmp_path / "bundle"
    export(ExportConfig(checkpoint=checkpoint, levels=2, output=bundle, validate=0))
    name = {"client": "client.onnx", "server": "model.safetensors"}[half]
    path = bundle / half / name
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    with pytest.raises(BundleError, match="SHA-256 differs"):
        open_half(bundle, half)
    (bundle / half / "extra.onnx").write_bytes(b"")
    path.unlink()
    with pytest.raises(BundleError, match="missing"):
        open_half(bundle, half)


def test_server_half_answers(exported: Export) -> None:
    bundle, _ = exported(4)
    half = open_half(bundle, "server")
    part = ServerPartition.load(half.path, half.manifest)
    vision = np.zeros((TOKENS, CODE_DIM), dtype=np.uint8)
    assert isinstance("".join(part.generate(vision, "is any digit red?", max_tokens=3)), str)


@pytest.mark.parametrize("levels", [0, 4])
def test_text_codes(levels: int, exported: Export, checkpoint: Path) -> None:
    bundle, said = exported(levels, "codes")
    client = open_half(bundle, "client")
    text = client.manifest.text
    assert (text.mode, text.levels, text.code_dim, text.width) == ("codes", levels or 256, 16, 16)
    assert said.validation["answers"]["text_codes"] > 0
    assert said.validation["answers"]["text_codes_differ"] == 0
    question = "is the red 5 <image> left of ü?</s>"
    coded = TextEncoder(client).encode(question)
    server = open_half(bundle, "server")
    part = ServerPartition.load(server.path, server.manifest)
    # Special tokens in a question are text on both sides, so the counts agree.
    assert coded.tokens == part.question_tokens(question)
    loaded = load_checkpoint(checkpoint)
    ids = part._prompts.question(question)
    import torch

    expected = loaded.model.language_quantizer.encode(
        loaded.model.decoder.embed(torch.tensor([ids])), text.levels
    )
    codes = packing.unpack(coded.payload, text.levels, (coded.tokens, text.code_dim))
    np.testing.assert_array_equal(codes, expected[0].numpy())


def test_language_with_image_scaling_and_one_k_per_channel(tmp_path: Path, checkpoint: Path) -> None:
    import torch

    from qtl_core.nn.quantizer import Quantizer
    from qtl_export.language import write_language

    loaded = load_checkpoint(checkpoint)
    loaded.model.language_quantizer = Quantizer(16, 3, 4, "image", [1.0, 2.0, 3.0]).eval()
    write_language(tmp_path, loaded, 4)
    with np.load(tmp_path / "text" / "language.npz", allow_pickle=False) as file:
        assert set(file.files) == {"embedding", "in_proj_weight", "in_proj_bias", "k"}
        np.testing.assert_array_equal(file["k"], [1, 2, 3])
        assert file["embedding"].dtype == np.float32
    assert torch.equal(loaded.model.language_quantizer.k_for(4), torch.tensor([1.0, 2.0, 3.0]))


def test_no_validation_is_said(traced: None, checkpoint: Path, tmp_path: Path) -> None:
    said = export(ExportConfig(checkpoint=checkpoint, levels=4, output=tmp_path / "b", validate=0))
    assert said.validation["pictures"] == 0
    assert "not validated" in said.as_text()
    for half in ("client", "server"):
        assert "was not validated" in (tmp_path / "b" / half / "README.md").read_text("utf-8")
    open_half(tmp_path / "b", "client")


def test_over_the_bounds(
    traced: None, checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(validation, "NEAR", -1.0)
    bundle = tmp_path / "bundle"
    config: dict[str, Any] = {"checkpoint": checkpoint, "levels": 4, "output": bundle, "validate": 4}
    with pytest.raises(BundleError, match=r"validation failed: .* rounding boundary.*--force"):
        export(ExportConfig(**config))
    assert list(tmp_path.iterdir()) == []
    said = export(ExportConfig(**config, force=True))
    assert not said.validation["passed"]
    assert not open_half(bundle, "client").manifest.validation["passed"]
    assert "**over its bounds**" in (bundle / "client" / "README.md").read_text("utf-8")


def test_a_failure_leaves_the_old_bundle(
    traced: None, checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bundle = tmp_path / "bundle"
    export(ExportConfig(checkpoint=checkpoint, levels=2, output=bundle, validate=0))
    before = digests(bundle)

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(exporter, "write_server_half", full)
    with pytest.raises(OSError):
        export(ExportConfig(checkpoint=checkpoint, levels=4, output=bundle, validate=0))
    assert digests(bundle) == before
    assert [path.name for path in tmp_path.iterdir()] == ["bundle"]


def test_a_million_codes_where_few_pictures_hold_them(checkpoint: Path) -> None:
    class Many:
        class cut:
            tokens, code_dim = 729, 1152

        class picture:
            most_tiles = 1

    assert exporter.pictures_to_validate(Many) == 4  # type: ignore[arg-type]
    Many.picture.most_tiles = 37
    assert exporter.pictures_to_validate(Many) == 2  # type: ignore[arg-type]
    assert CODES_WANTED < 4 * 729 * 1152
    agreement = Agreement.of(load_checkpoint(checkpoint), 4, "plain")
    assert exporter.pictures_to_validate(agreement) == MAX_PICTURES


@pytest.mark.parametrize("bits", [0, 9, 15, 17, -1])
def test_unknown_bits(bits: int) -> None:
    with pytest.raises(InputError, match="choose 1 to 8, or 16"):
        levels_of_bits(bits)


def test_distance_to_a_boundary() -> None:
    scaled = np.array([-1, 0, 0.5, 1, 2 / 3, 0.99 * 2 / 3], dtype=np.float32)
    np.testing.assert_allclose(validation.to_boundary(scaled, 4), [0.5, 0, 0.25, 0.5, 0, 0.01], atol=1e-6)
    np.testing.assert_allclose(validation.to_boundary(scaled, 3), [0.5, 0.5, 0, 0.5, 1 / 6, 0.16], atol=1e-6)


def test_codes_over_each_bound() -> None:
    fine: dict[str, Any] = {
        "compared": 10**6,
        "differ": 100,
        "allowed": 100,
        "share_bound": 1e-4,
        "largest_difference": 1,
        "farthest_from_boundary": 1e-3,
        "boundary_bound": 1e-3,
        "payloads": 10,
        "payloads_differ": 1,
        "mispacked": 0,
        "reference_differ": 0,
    }
    assert validation.Codes(**fine).faults() == []
    worse = {"differ": 101, "largest_difference": 2, "farthest_from_boundary": 2e-3, "mispacked": 1}
    for name, value in {**worse, "reference_differ": 1}.items():
        assert len(validation.Codes(**{**fine, name: value}).faults()) == 1


def test_features_over_each_bound() -> None:
    fine: dict[str, Any] = {
        "compared": 100,
        "differ": 3,
        "largest_difference": 0.004,
        "largest_feature": 4.0,
        "bound": 1e-3,
        "infinite": 0,
        "payloads": 10,
        "payloads_differ": 3,
    }
    assert validation.Features(**fine).faults() == []
    for name, value in {"largest_difference": 0.005, "infinite": 1}.items():
        assert len(validation.Features(**{**fine, name: value}).faults()) == 1


def test_what_is_no_bundle_is_never_replaced(exported: Export, tmp_path: Path) -> None:
    target = tmp_path / "target"
    place.check_target(target)
    target.mkdir()
    place.check_target(target)
    (target / "thesis.txt").write_text("years of work")
    with pytest.raises(BundleError, match=r"not a bundle of ours \(it holds thesis.txt\)"):
        place.check_target(target)
    with pytest.raises(BundleError, match="is no folder"):
        place.check_target(target / "thesis.txt")
    (target / "thesis.txt").unlink()
    (target / "client").mkdir()
    with pytest.raises(BundleError, match="client without a manifest"):
        place.check_target(target)
    manifest = (exported(4)[0] / "client" / MANIFEST).read_bytes()
    (target / "client" / MANIFEST).write_bytes(manifest)
    place.check_target(target)
    (target / "client" / "me.key_secret").write_text("mine")
    with pytest.raises(BundleError, match=r"client/me\.key_secret"):
        place.check_target(target)


def test_a_killed_export_is_cleaned_up_and_a_running_one_is_not(tmp_path: Path) -> None:
    abandoned, running = tmp_path / ".b.partial-old", tmp_path / ".b.partial-busy"
    for folder in (abandoned, running):
        (folder / "client").mkdir(parents=True)
    lock = os.open(running, os.O_RDONLY)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with place.beside(tmp_path / "b") as work:
            (work / "client").mkdir()
            assert not abandoned.exists()
            assert running.exists()
            place.put(work, tmp_path / "b")
    finally:
        os.close(lock)
    assert {path.name for path in tmp_path.iterdir()} == {"b", running.name}


def test_put_follows_the_umask(tmp_path: Path) -> None:
    before = os.umask(0o027)
    try:
        with place.beside(tmp_path / "b") as work:
            place.put(work, tmp_path / "b")
    finally:
        os.umask(before)
    assert (tmp_path / "b").stat().st_mode & 0o777 == 0o750
