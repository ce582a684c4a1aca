"""Exit codes: one line on stderr, and never a traceback for what was foreseen."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click
import pytest

from qtl_core import exits
from qtl_core.errors import BundleError, PictureError, QtlError, StorageError


def _raising(error: BaseException) -> Callable[[], None]:
    def main() -> None:
        raise error

    return main


@pytest.mark.parametrize(("result", "code"), [(None, 0), (0, 0), (7, 7), ("text", 0)])
def test_what_main_returns(result: object, code: int) -> None:
    assert exits.run(lambda: result) == code


@pytest.mark.parametrize("error", [QtlError("one"), PictureError("two"), BundleError("three\n  lines\tlong")])
def test_errors_are_one_line(error: QtlError, capsys: pytest.CaptureFixture[str]) -> None:
    assert exits.run(_raising(error)) == error.exit_code
    out, err = capsys.readouterr()
    assert out == ""
    assert err == "error: " + " ".join(str(error).split()) + "\n"


def test_keyboard_interrupt(capsys: pytest.CaptureFixture[str]) -> None:
    assert exits.run(_raising(KeyboardInterrupt())) == 130
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize(
    ("number", "text"),
    [
        (errno.ENOSPC, "the disk is full at /out; free some space"),
        (errno.EDQUOT, "quota"),
        (errno.EROFS, "read-only at /out; choose another folder"),
        (errno.EACCES, "permission denied at /out"),
    ],
)
def test_storage(number: int, text: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert exits.run(_raising(OSError(number, os.strerror(number), "/out"))) == StorageError.exit_code
    err = capsys.readouterr().err
    assert text in err
    assert err.count("\n") == 1


@pytest.mark.parametrize(
    "error", [OSError(errno.EIO, "input/output"), ValueError("bug"), RuntimeError("bug")]
)
def test_what_nobody_foresaw_is_left_loud(error: Exception) -> None:
    with pytest.raises(type(error)):
        exits.run(_raising(error))


def _command(body: Callable[[], Any]) -> Callable[[list[str]], int]:
    command = click.Command(
        "tool", callback=body, params=[click.Option(["--n"], type=int)], no_args_is_help=False
    )
    return lambda args: exits.run(lambda: command.main(args, prog_name="tool", standalone_mode=False))


def test_click(capsys: pytest.CaptureFixture[str]) -> None:
    tool = _command(lambda n: n)  # type: ignore[misc, arg-type]
    assert tool([]) == 0
    assert tool(["--n", "5"]) == 5
    assert tool(["--help"]) == 0
    assert "Usage: tool" in capsys.readouterr().out
    assert tool(["--bogus"]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert "Usage: tool" in err
    assert "--bogus" in err


def test_click_exits_and_aborts() -> None:
    assert exits.run(_raising(click.exceptions.Exit(4))) == 4
    assert exits.run(_raising(click.Abort())) == 130

    def interrupted(n: object) -> None:
        raise KeyboardInterrupt

    assert _command(interrupted)([]) == 130  # type: ignore[arg-type]


@pytest.mark.skipif(os.name != "posix", reason="pipes as POSIX has them")
@pytest.mark.parametrize("through_click", [False, True])
def test_a_reader_that_leaves(through_click: bool, repo_root: Path, source_env: dict[str, str]) -> None:
    loud = "for line in range(100_000): print(line)"
    call = "click.Command('x', callback=f).main([], standalone_mode=False)" if through_click else "f()"
    code = f"import sys, click\nfrom qtl_core import exits\ndef f():\n {loud}\n"
    code += f"sys.exit(exits.run(lambda: {call}))"
    process = subprocess.Popen(
        [sys.executable, "-c", code],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=source_env,
        cwd=repo_root,
    )
    with process:
        assert process.stdout is not None
        assert process.stderr is not None
        assert process.stdout.readline() == b"0\n"
        process.stdout.close()
        assert process.stderr.read() == b""
    assert process.returncode == exits.BROKEN_PIPE


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
@pytest.mark.parametrize("unbuffered", ["", "1"])
def test_a_full_disk_under_stdout(unbuffered: str, repo_root: Path, source_env: dict[str, str]) -> None:
    code = "import sys\nfrom qtl_core import exits\nsys.exit(exits.run(lambda: print('x' * 100)))"
    with open("/dev/full", "w") as full:
        done = subprocess.run(
            [sys.executable, "-c", code],
            stdout=full,
            stderr=subprocess.PIPE,
            env={**source_env, "PYTHONUNBUFFERED": unbuffered},
            cwd=repo_root,
            timeout=60,
            check=False,
        )
    assert done.returncode == StorageError.exit_code
    assert done.stderr.startswith(b"error: the disk is full")
    assert len(done.stderr.splitlines()) == 1
