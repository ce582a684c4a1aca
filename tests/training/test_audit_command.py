"""The whole audit of a tiny model: its keys, its words, its files, and going on after a kill."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import msgspec
import pytest
from click.testing import CliRunner
from PIL import Image

from qtl_core.errors import CheckpointError, InputError, StorageError
from qtl_core.nn.checkpoint import Checkpoint, FurtherQuantizer, save_quantizer
from qtl_training import audit_cli
from qtl_training.audit import adversaries
from qtl_training.audit.auditing import audit
from qtl_training.audit.cells import READINGS
from qtl_training.audit.inversion import Inversion
from qtl_training.audit.lengths import PROPERTIES
from qtl_training.audit.settings import ATTACKS, AuditSettings, Effort
from qtl_training.audit.tables import END, START

UNTRAINED = Effort(
    scenes=260,
    test_scenes=24,
    reader_scenes=16,
    empty_scenes=12,
    table_scenes=200,
    sized_scenes=60,
    batch=8,
    inversion_steps=0,
    attribute_steps=0,
    reader_steps=0,
    questions=10,
    shuffles=20,
)


@pytest.fixture(scope="module")
def folder(tiny_folder: Path, tiny: Checkpoint, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny model with a further quantizer, "small"."""
    copy = tmp_path_factory.mktemp("audited") / "checkpoint"
    shutil.copytree(tiny_folder, copy)
    settings = msgspec.structs.replace(tiny.settings.vision, code_dim=4, levels=6, k_levels=())
    quantizer = FurtherQuantizer(settings, settings.build(tiny.model.decoder.width))
    save_quantizer(copy, "small", quantizer)
    return copy


@pytest.fixture
def settings(folder: Path, tmp_path: Path) -> AuditSettings:
    return AuditSettings(
        checkpoint=folder, work=tmp_path / "work", levels=(2, 256), seeds=1, pads=(64,), effort=UNTRAINED
    )


def test_untrained_attackers_prove_nothing_and_say_so(settings: AuditSettings, tmp_path: Path) -> None:
    page = tmp_path / "audit.md"
    page.write_text(f"before\n{START}\nlast time\n{END}\nafter\n", "utf-8")
    grid = tmp_path / "pictures" / "grid.png"
    found = audit(settings, grid=grid, docs=page, progress=False)
    attacks = found["attacks"]
    assert list(attacks) == list(ATTACKS)
    assert not attacks["inversion"]["proves"] and not attacks["attributes"]["proves"]
    assert attacks["inversion"]["margin_db"] == pytest.approx(0, abs=1e-6)
    said = "\n".join(found["summary"])
    assert said.count("PROVES NOTHING") >= 2
    assert "Quantizing is not encryption" in said
    for adversary in (
        adversaries.SERVER,
        adversaries.EAVESDROPPER,
        adversaries.STRANGER,
        adversaries.CLIENT,
    ):
        assert adversary in said
    text = page.read_text("utf-8")
    assert (
        text.startswith(f"before\n{START}\n") and text.endswith(f"{END}\nafter\n") and "last time" not in text
    )
    assert "| small |" in text and "](pictures/grid.png)" in text
    with Image.open(grid) as picture:
        assert picture.height > 400  # original, 16-bit, two widths, small, mean picture
    assert json.loads(json.dumps(found)) == found


def test_the_keys_of_the_report(settings: AuditSettings) -> None:
    found = audit(settings, progress=False)
    top = {"checkpoint", "weights", "quick", "seeds", "effort", "attacks", "versions", "machine", "summary"}
    assert set(found) == top
    names = ["16-bit", "1-bit", "8-bit", "small"]
    for attack in ("inversion", "attributes", "text"):
        rows = found["attacks"][attack]["rows"]
        expected = names[:3] if attack == "text" else names
        assert [row["representation"] for row in rows] == expected
    row = found["attacks"]["inversion"]["rows"][3]
    assert row["quantizer"] == "small" and row["levels"] == 6
    assert row["packed_bytes"] == 14  # 9 coded tokens, 4 channels, 3 bits
    assert set(row["psnr"]) == set(row["ssim"]) == {"mean", "sd"} and row["psnr"]["sd"] is None
    assert set(row["reader"]) == set(READINGS)
    assert set(found["attacks"]["inversion"]["original"]) == {"psnr", "ssim", "reader"}
    assert found["attacks"]["inversion"]["original"]["psnr"]["mean"] is None
    assert set(READINGS) <= set(found["attacks"]["attributes"]["chance"])
    ways = [(row["representation"], row["coding"], row["pad"]) for row in found["attacks"]["lengths"]["rows"]]
    assert ways[:4] == [
        ("16-bit", "float16", 0),
        ("1-bit", "packed", 0),
        ("1-bit", "coded", 0),
        ("1-bit", "coded", 64),
    ]
    for row in found["attacks"]["lengths"]["rows"]:
        assert set(row["properties"]) == set(PROPERTIES)
        if row["coding"] != "coded":
            assert not any(one["leaks"] for one in row["properties"].values())
    tokens = {row["representation"]: row["tokens"]["mean"] for row in found["attacks"]["text"]["rows"]}
    assert tokens["16-bit"] == 100
    assert tokens["8-bit"] > 90


def test_a_killed_audit_goes_on(settings: AuditSettings, monkeypatch: pytest.MonkeyPatch) -> None:
    only = replace(settings, attacks=("inversion",), levels=(2,), quantizers=())
    real = Inversion.make
    made: list[str] = []

    def counts(self: Inversion, subject: str, seed: int) -> Any:
        made.append(subject)
        return real(self, subject, seed)

    def dies(self: Inversion, subject: str, seed: int) -> Any:
        if len(made) == 2:
            raise KeyboardInterrupt
        return counts(self, subject, seed)

    monkeypatch.setattr(Inversion, "make", dies)
    with pytest.raises(KeyboardInterrupt):
        audit(only, progress=False)
    made.clear()
    monkeypatch.setattr(Inversion, "make", counts)
    found = audit(only, progress=False)
    assert made == ["16-bit", "1-bit"]  # the two references were there
    made.clear()
    again = audit(only, progress=False)
    assert made == [] and again == found
    more = audit(replace(only, levels=(2, 4)), progress=False)
    assert (
        made == ["2-bit"]
        and more["attacks"]["inversion"]["rows"][:2] == found["attacks"]["inversion"]["rows"]
    )


def test_the_command(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(audit_cli, "QUICK", UNTRAINED)
    out = tmp_path / "out" / "audit.json"
    arguments = [str(folder), "--quick", "--attack", "text", "--attack", "attributes", "--quantizer", "small"]
    arguments += ["--json", str(out), "--work", str(tmp_path / "work")]
    done = CliRunner().invoke(audit_cli.cli, arguments, standalone_mode=False)
    assert done.exception is None, done.exception
    found = json.loads(out.read_text("utf-8"))
    assert found["quick"] and found["seeds"] == 1
    assert [row["representation"] for row in found["attacks"]["attributes"]["rows"]] == ["16-bit", "small"]
    assert done.stdout.splitlines() == found["summary"]
    assert "shortened run" in done.stdout


@pytest.mark.parametrize(
    ("options", "audited"),
    [
        (["--bits", "16"], ["16-bit"]),
        (["--bits", "16", "--bits", "16", "--quantizer", "small"], ["16-bit", "small"]),
        (["--bits", "2", "--bits", "16", "--bits", "2", "--levels", "4"], ["16-bit", "2-bit"]),
    ],
)
def test_16_bit_is_audited_once_however_often_it_is_asked_for(
    options: list[str], audited: list[str], folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(audit_cli, "QUICK", UNTRAINED)
    out, grid = tmp_path / "audit.json", tmp_path / "grid.png"
    arguments = [str(folder), "--quick", *options, "--json", str(out), "--grid", str(grid)]
    arguments += ["--work", str(tmp_path / "work")]
    done = CliRunner().invoke(audit_cli.cli, arguments, standalone_mode=False)
    assert done.exception is None, done.exception
    attacks = json.loads(out.read_text("utf-8"))["attacks"]
    for attack in ("inversion", "attributes"):
        assert [row["representation"] for row in attacks[attack]["rows"]] == audited
    # A further quantizer is one of pictures, not of text.
    assert [row["representation"] for row in attacks["text"]["rows"]] == [n for n in audited if n != "small"]
    assert {row["representation"] for row in attacks["lengths"]["rows"]} == set(audited)


def test_what_does_not_fit_is_said_before_any_work(
    folder: Path, settings: AuditSettings, tmp_path: Path
) -> None:
    runner = CliRunner()
    done = runner.invoke(audit_cli.cli, [str(folder), "--attack", "text", "--grid", "x.png"])
    assert done.exit_code == 2 and "--attack inversion" in done.output
    done = runner.invoke(audit_cli.cli, [str(folder), "--bits", "9"])
    assert done.exit_code == 2 and "'9' is not one of" in done.output
    page = tmp_path / "page.md"
    page.write_text("no markers", "utf-8")
    with pytest.raises(InputError, match="audit:start"):
        audit(settings, docs=page, progress=False)
    assert not settings.work.exists()
    with pytest.raises(CheckpointError, match="no quantizer 'large'"):
        audit(replace(settings, quantizers=("large",)), progress=False)
    with pytest.raises(InputError, match="more than the 260 scenes"):
        replace(UNTRAINED, sized_scenes=100)
    settings.work.write_text("a file", "utf-8")
    with pytest.raises(StorageError, match="--work"):
        audit(settings, progress=False)
