"""The command ``qtl-export``: what it prints, refuses and returns."""

from __future__ import annotations

import errno
import io
import json
import shutil
import sys
from pathlib import Path

import pytest

from qtl_core import shipped
from qtl_core.bundle import open_half
from qtl_export import exporter, validation
from qtl_export.cli import main
from qtl_export.progress import Progress

pytestmark = pytest.mark.usefixtures("traced")


def one_line(captured: str) -> str:
    """The error: one line, the last one, and no traceback."""
    assert "Traceback" not in captured
    lines = captured.splitlines()
    assert [line for line in lines if line.startswith("error: ")] == lines[-1:]
    return lines[-1]


def test_defaults_and_what_is_said_of_them(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(shipped, "digits", lambda: checkpoint)
    monkeypatch.chdir(tmp_path)
    assert main(["--bits", "2", "--validate", "5"]) == 0
    out, err = capsys.readouterr()
    assert err.splitlines() == [
        f"using the shipped checkpoint {checkpoint} and the output ./bundle (default)"
    ]
    assert "codes compared" in out and "codes that differ" in out and "answers compared" in out
    open_half(tmp_path / "bundle", "client")
    # A bundle that is there is replaced, and nothing is said of what was chosen.
    assert main([str(checkpoint), "--levels", "5", "-o", "bundle", "--validate", "5"]) == 0
    assert capsys.readouterr().err == ""
    assert open_half(tmp_path / "bundle", "server").manifest.cut.levels == 5
    assert [path.name for path in tmp_path.iterdir()] == ["bundle"]


def test_json(checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    bundle = tmp_path / "deep" / "bundle"
    assert main([str(checkpoint), "--bits", "3", "-o", str(bundle), "--validate", "5", "--json"]) == 0
    out, err = capsys.readouterr()
    assert err == ""
    said = json.loads(out)
    manifest = open_half(bundle, "client").manifest
    assert (said["bundle"], said["bits"], said["levels"]) == (str(bundle), 3, 8)
    assert (said["tokens"], said["code_dim"], said["payload_bytes"]) == (4, 5, 8)
    assert said["fingerprint"] == manifest.fingerprint
    assert said["sizes"]["graph"] == (bundle / "client" / "client.onnx").stat().st_size
    assert said["sizes"]["client"] == sum(path.stat().st_size for path in (bundle / "client").iterdir())
    assert said["validation"] == manifest.validation
    assert said["validation"]["codes"]["compared"] == 100


@pytest.mark.parametrize(
    ("args", "words"),
    [
        ([], "--bits"),
        (["--bits", "2", "--levels", "4"], "either --bits"),
        (["--bits", "9"], "'9' is not one of"),
        (["--bits", "0"], "is not one of"),
        (["--bits", "two"], "is not one of"),
        (["--levels", "1"], "2<=x<=256"),
        (["--levels", "257"], "2<=x<=256"),
        (["--bits", "2", "--text", "morse"], "morse"),
        (["--bits", "2", "--validate", "-1"], "x>=0"),
    ],
)
def test_usage(args: list[str], words: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(args) == 2
    assert words in capsys.readouterr().err


def test_help(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--help"]) == 0
    assert "--levels" in capsys.readouterr().out


def test_no_checkpoint(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(tmp_path / "nowhere"), "--bits", "2", "-o", str(tmp_path / "b")]) == 4
    assert "nowhere" in one_line(capsys.readouterr().err)


@pytest.mark.parametrize("name", ["model.safetensors", "qtl.safetensors", "tokenizer.json", "qtl.json"])
def test_incomplete_checkpoint(
    name: str, checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(checkpoint, tmp_path / "c")
    (tmp_path / "c" / name).unlink()
    assert main([str(tmp_path / "c"), "--bits", "2", "-o", str(tmp_path / "b")]) == 4
    assert name in one_line(capsys.readouterr().err)
    assert not (tmp_path / "b").exists()


def test_output_is_no_bundle(checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "letter.txt").write_text("dear")
    for target in (tmp_path, tmp_path / "letter.txt"):
        assert main([str(checkpoint), "--bits", "2", "-o", str(target), "--force"]) == 4
        assert "give another" in one_line(capsys.readouterr().err)
    assert (tmp_path / "letter.txt").read_text() == "dear"


def test_output_below_a_file(checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "file").write_text("")
    assert main([str(checkpoint), "--bits", "2", "-o", str(tmp_path / "file" / "b")]) == 9
    assert "give another folder" in one_line(capsys.readouterr().err)


def test_disk_full(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device", "somewhere")

    monkeypatch.setattr(exporter, "write_server_half", full)
    assert main([str(checkpoint), "--bits", "2", "-o", str(tmp_path / "b")]) == 9
    assert "the disk is full" in one_line(capsys.readouterr().err)
    assert list(tmp_path.iterdir()) == []


def test_interrupt(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(exporter, "write_server_half", interrupted)
    assert main([str(checkpoint), "--bits", "2", "-o", str(tmp_path / "b")]) == 130
    assert "Traceback" not in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_failed_validation(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(validation, "NEAR", -1.0)
    args = [str(checkpoint), "--bits", "2", "-o", str(tmp_path / "b"), "--validate", "4"]
    assert main(args) == 4
    assert "validation failed" in one_line(capsys.readouterr().err)
    assert list(tmp_path.iterdir()) == []
    assert main([*args, "--force"]) == 0
    assert "warning: validation failed" in capsys.readouterr().err


@pytest.mark.parametrize("module", ["torch", "transformers", "onnx_ir"])
def test_missing_extra(
    module: str, checkpoint: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in list(sys.modules):
        if name.startswith(("qtl_export.", "qtl_core.nn")) and name not in (
            "qtl_export.cli",
            "qtl_export.config",
        ):
            monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, module, None)
    assert main([str(checkpoint), "--bits", "2"]) == 8
    line = one_line(capsys.readouterr().err)
    assert module in line
    assert line.endswith('[export]"')
    assert 'pip install "' in line


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_progress_is_for_terminals() -> None:
    for stream in (io.StringIO(), Terminal()):
        progress = Progress(stream, clock=iter(range(100)).__next__)
        with progress.stage("loading"):
            pass
        assert list(progress.bar([1, 2, 3], "counting", 5, "things", each=2)) == [1, 2, 3]
        shown = stream.getvalue()
        if stream.isatty():
            assert "loading ..." in shown
            assert "loading: " in shown
            assert "counting: 100%" in shown
            assert "5/5" in shown
        else:
            assert shown == ""
