"""The entropy coder's tables in a bundle: where they come from, when there are none, and their check."""

from __future__ import annotations

import dataclasses
import shutil
from pathlib import Path

import msgspec
import numpy as np
import pytest
from PIL import Image

from edge_runtime.encoder import Encoder
from qtl_core import codes as packing
from qtl_core import entropy
from qtl_core.bundle import open_half
from qtl_core.entropy_file import NAME, read_tables, tables_name, tables_of, write_tables
from qtl_core.entropy_fit import MIN_TOKENS
from qtl_core.errors import BundleError, CheckpointError
from qtl_core.nn.checkpoint import QUANTIZERS_FOLDER, FurtherQuantizer, load_checkpoint, save_quantizer
from qtl_export.calibration import calibrate, check_coding
from qtl_export.config import ExportConfig
from qtl_export.exporter import export
from qtl_export.halves import Agreement
from qtl_export.progress import Progress
from tests.export.conftest import CODE_DIM, PICTURES, TOKENS, Export, smooth

LEVELS = 4


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of pictures, enough to measure tables on."""
    folder = tmp_path_factory.mktemp("pictures")
    for index, pixels in enumerate(smooth(60, 5)):
        Image.fromarray(pixels).save(folder / f"{index:03}.png")
    return folder


def _export(checkpoint: Path, output: Path, pictures: Path | None = None, **settings: object) -> ExportConfig:
    config = ExportConfig(checkpoint=checkpoint, levels=LEVELS, output=output, pictures=pictures, validate=20)
    return dataclasses.replace(config, **settings)  # type: ignore[arg-type]


def test_too_few_pictures_ship_packed_codes_only(exported: Export) -> None:
    bundle, said = exported(LEVELS)
    assert PICTURES * TOKENS < MIN_TOKENS
    found = said.validation["entropy"]
    assert found["tables"] is None
    assert f"at least {MIN_TOKENS} ({MIN_TOKENS // TOKENS} pictures of {TOKENS} tokens)" in found["why"]
    assert "packed codes only" in said.as_text()
    for half in (open_half(bundle, "client"), open_half(bundle, "server")):
        assert not half.manifest.tables and NAME not in half.manifest.files
        assert tables_of(half) is None


def test_unquantized_features_have_no_tables(exported: Export) -> None:
    bundle, said = exported(0)
    assert said.validation["entropy"]["tables"] is None
    assert "packed codes only" not in said.as_text()
    assert not (bundle / "client" / NAME).exists()


@pytest.mark.usefixtures("traced")
def test_tables_measured_on_pictures(
    checkpoint: Path, pictures: Path, exported: Export, tmp_path: Path
) -> None:
    said = export(_export(checkpoint, tmp_path / "bundle", pictures))
    client, server = open_half(tmp_path / "bundle", "client"), open_half(tmp_path / "bundle", "server")
    here, there = tables_of(client), tables_of(server)
    assert here is not None and there is not None
    assert here.digest == there.digest == bytes.fromhex(client.manifest.tables)
    assert (here.levels, here.channels) == (LEVELS, CODE_DIM)
    assert (client.path / NAME).read_bytes() == (server.path / NAME).read_bytes()
    # Tables are not what the fingerprint is about: measured anew, the halves still belong together.
    assert client.manifest.fingerprint == exported(LEVELS)[1].fingerprint
    found = said.validation["entropy"]
    assert found["tables"] == "pictures of the user" and found["calibration_pictures"] == 60
    assert found["coded_on_other_pictures"]
    assert 0 < found["coded_bytes_mean"] <= found["fixed_bytes"] == client.manifest.cut.payload_bytes
    assert client.manifest.validation["entropy"]["coded_bytes_mean"] == found["coded_bytes_mean"]
    assert "entropy-coded" in said.as_text()
    assert "entropy-coded" in (client.path / "README.md").read_text("utf-8")
    with np.load(client.file("golden.npz"), allow_pickle=False) as golden:
        assert golden["payloads"].shape[1] == client.manifest.cut.payload_bytes
    payloads = Encoder(client, threads=1).run(smooth(30, 9))
    shape = (TOKENS, CODE_DIM)
    codes = np.stack([packing.unpack(payload, LEVELS, shape) for payload in payloads])
    coded = entropy.encode_batch(codes, here)
    np.testing.assert_array_equal(entropy.decode_batch(coded, there, shape), codes)


@pytest.mark.usefixtures("traced")
def test_the_same_pictures_give_the_same_file(checkpoint: Path, pictures: Path, tmp_path: Path) -> None:
    export(_export(checkpoint, tmp_path / "one", pictures, validate=0))
    said = export(_export(checkpoint, tmp_path / "two", pictures, validate=0))
    one, two = ((tmp_path / name / "client" / NAME).read_bytes() for name in ("one", "two"))
    assert one == two
    assert said.validation["entropy"]["classes"] >= 1  # said although nothing was validated


@pytest.fixture
def bringing(checkpoint: Path, tmp_path: Path) -> Path:
    """A checkpoint that brings tables."""
    folder = tmp_path / "checkpoint"
    shutil.copytree(checkpoint, folder)
    codes = np.random.default_rng(0).integers(0, LEVELS, (90, CODE_DIM))
    write_tables(folder / tables_name(LEVELS), entropy.Tables.fit(codes, LEVELS))
    return folder


@pytest.mark.usefixtures("traced")
def test_the_checkpoints_own_tables_go_before_its_pictures(bringing: Path, tmp_path: Path) -> None:
    said = export(_export(bringing, tmp_path / "bundle"))
    own = read_tables(bringing / tables_name(LEVELS))
    found = tables_of(open_half(tmp_path / "bundle", "client"))
    assert found is not None and found.digest == own.digest
    assert said.validation["entropy"]["tables"] == f"{tables_name(LEVELS)} of the checkpoint"
    assert said.validation["entropy"]["coded_on_other_pictures"]


def test_the_users_pictures_go_before_the_checkpoints_tables(bringing: Path, pictures: Path) -> None:
    loaded = load_checkpoint(bringing)
    cut = Agreement.of(loaded, LEVELS, "plain").cut
    found = calibrate(loaded, cut, pictures, Progress())
    assert found.source == "pictures of the user"
    # And tables for four levels are none for five.
    other = Agreement.of(loaded, 5, "plain").cut
    assert calibrate(loaded, other, None, Progress()).tables is None


def test_tables_of_a_further_quantizer_lie_beside_it(bringing: Path) -> None:
    loaded = load_checkpoint(bringing)
    further = FurtherQuantizer(loaded.settings.vision, loaded.model.vision_quantizer)
    save_quantizer(bringing, "small", further)
    named = load_checkpoint(bringing, quantizer="small")
    cut = Agreement.of(named, LEVELS, "plain").cut
    assert calibrate(named, cut, None, Progress()).tables is None
    shutil.copy(bringing / tables_name(LEVELS), bringing / QUANTIZERS_FOLDER / "small")
    assert calibrate(named, cut, None, Progress()).tables is not None


def test_tables_of_a_checkpoint_that_do_not_fit(bringing: Path) -> None:
    loaded = load_checkpoint(bringing)
    cut = Agreement.of(loaded, LEVELS, "plain").cut
    path = bringing / tables_name(LEVELS)
    write_tables(path, entropy.Tables.fit(np.zeros((90, CODE_DIM + 1), np.uint8), LEVELS))
    with pytest.raises(CheckpointError, match=f"{CODE_DIM + 1} channels of {LEVELS} levels"):
        calibrate(loaded, cut, None, Progress())
    path.write_bytes(b"PK\x03\x04 no tables")
    with pytest.raises(BundleError, match="tables"):
        calibrate(loaded, cut, None, Progress())


def test_a_checkpoint_without_pictures(bringing: Path) -> None:
    (bringing / tables_name(LEVELS)).unlink()
    (bringing / "held_out.npz").unlink()
    loaded = load_checkpoint(bringing)
    found = calibrate(loaded, Agreement.of(loaded, LEVELS, "plain").cut, None, Progress())
    assert found.tables is None
    assert "--pictures" in found.source


@pytest.mark.usefixtures("traced")
def test_halves_that_do_not_agree_fail_validation(bringing: Path, tmp_path: Path) -> None:
    """What check_coding is for: tables that decode otherwise than they coded are not shipped."""
    export(_export(bringing, tmp_path / "one"))
    export(_export(bringing, tmp_path / "two"))
    client, server = open_half(tmp_path / "one", "client"), open_half(tmp_path / "two", "server")
    codes = np.random.default_rng(0).integers(0, LEVELS, (8, TOKENS, CODE_DIM)).astype(np.uint8)
    assert check_coding(client, server, codes) == []
    others = entropy.Tables.fit(np.zeros((90, CODE_DIM), np.uint8), LEVELS)
    write_tables(server.path / NAME, others)
    manifest = msgspec.structs.replace(server.manifest, tables=others.digest.hex())
    changed = dataclasses.replace(server, manifest=manifest)
    (fault,) = check_coding(client, changed, codes)
    assert "did not survive" in fault
