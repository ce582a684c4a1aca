"""docs/devices.md and deploy/: every command parses, those marked *run* are run, the units hold together."""

from __future__ import annotations

import configparser
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import click
import pytest

from edge_runtime.cli import cli as edge
from qtl_core import keys
from tests.edge import tiny

pytestmark = pytest.mark.skipif(
    not (Path(__file__).resolve().parents[2] / "deploy").is_dir(),
    reason="the tests were copied without deploy/",
)
_BLOCK = re.compile(r"^(?P<run><!-- run -->\n)? *```bash\n(?P<code>.*?)^ *```$", re.MULTILINE | re.DOTALL)
_OURS = ("edge_runtime", "qtl-server")
_OTHERS = ("docker", "systemctl")
"""Their arguments name ours without being its command line."""


def _commands(text: str) -> Iterator[list[str]]:
    """Every command of ours in a shell text, without what stands before it (``sudo``, ``env``, a path)."""
    for line in text.replace("\\\n", " ").splitlines():
        words = shlex.split(line, comments=True)
        for index, word in enumerate(words):
            if word.rpartition("/")[2] in _OURS and words[0] not in _OTHERS:
                yield [word.rpartition("/")[2], *words[index + 1 :]]
                break


def _parse(words: list[str]) -> None:
    """Parses a command line as its program would, without running it."""
    program, arguments = words[0], words[1:]
    if program == "edge_runtime":
        group: click.Group = edge
    else:
        pytest.importorskip("torch")
        from server_runtime.cli import cli as group
    with group.make_context(program, list(arguments)) as ctx:
        # click keeps what is left for the command under another name since 8.2.
        rest = [*getattr(ctx, "_protected_args", []), *ctx.args]
        if rest:
            name, command, left = group.resolve_command(ctx, rest)
            assert command is not None
            with command.make_context(name, left, parent=ctx) as sub:
                assert not sub.args


@pytest.fixture(scope="module")
def page() -> str:
    return (Path(__file__).resolve().parents[2] / "docs" / "devices.md").read_text("utf-8")


def test_every_command_on_the_page_parses(page: str) -> None:
    found = [words for match in _BLOCK.finditer(page) for words in _commands(match["code"])]
    assert len(found) >= 8
    assert {words[1] for words in found} == {"doctor", "bench", "selftest", "ask", "keygen", "serve"}
    for words in found:
        if words[0] == "edge_runtime":
            _parse(words)


def test_every_server_command_on_the_page_parses(page: str) -> None:
    for match in _BLOCK.finditer(page):
        for words in _commands(match["code"]):
            if words[0] == "qtl-server":
                _parse(words)


def test_a_command_that_does_not_exist_would_be_noticed() -> None:
    for wrong in (["edge_runtime", "doctor", "--fast"], ["edge_runtime", "cure"], ["edge_runtime", "ask"]):
        with pytest.raises(click.UsageError):
            _parse(wrong)


def test_commands_marked_run_are_run(page: str, tmp_path: Path, source_env: dict[str, str]) -> None:
    tiny.write_client(tmp_path / "client", files={"golden.npz": tiny.golden()})
    scripts = tmp_path / "bin"
    scripts.mkdir()
    program = scripts / "edge_runtime"
    program.write_text(f'#!/bin/sh\nexec "{sys.executable}" -m edge_runtime "$@"\n')
    program.chmod(0o755)
    env = {
        **source_env,
        "PATH": f"{scripts}{os.pathsep}{os.environ['PATH']}",
        "XDG_STATE_HOME": str(tmp_path / "state"),
    }
    (block,) = [match["code"] for match in _BLOCK.finditer(page) if match["run"]]
    for words in _commands(block):
        if words[1] == "bench":
            words += ["--seconds", "0.1", "--threads", "1"]
        done = subprocess.run(
            words, cwd=tmp_path, env=env, capture_output=True, text=True, timeout=120, check=False
        )
        assert done.returncode == 0, done.stdout + done.stderr
    assert json.loads((tmp_path / "selftest.json").read_bytes())["passed"] is True
    assert len(list((tmp_path / "state" / "qtl" / "choices").iterdir())) == 1


def _unit(path: Path) -> configparser.ConfigParser:
    unit = configparser.ConfigParser(strict=False, interpolation=None, delimiters=("=",))
    unit.optionxform = str  # type: ignore[assignment, method-assign]
    unit.read_string(path.read_text("utf-8"))
    return unit


@pytest.mark.parametrize("name", ["qtl-server.service", "qtl-ask.service"])
def test_what_a_unit_starts_parses(name: str, repo_root: Path) -> None:
    start = _unit(repo_root / "deploy" / name)["Service"]["ExecStart"]
    ((program, *arguments),) = _commands(start)
    _parse([program, *arguments])


def test_the_device_s_unit_and_its_settings(
    page: str, repo_root: Path, tmp_path: Path, source_env: dict[str, str]
) -> None:
    """The page's ask.env names what the unit takes, and the unit's two lines make one question of it."""
    unit = _unit(repo_root / "deploy" / "qtl-ask.service")["Service"]
    match = re.search(r"```ini\n(.*?)```", page, re.DOTALL)
    assert match is not None
    settings = dict(line.split("=", 1) for line in match[1].splitlines())
    used = set(re.findall(r"\$\{?(QTL_[A-Z_]+)", unit["ExecStart"] + unit["ExecStartPre"]))
    assert used == set(settings)
    assert _unit(repo_root / "deploy" / "qtl-ask.timer")["Timer"]["OnUnitInactiveSec"]

    # As systemd would: the picture first, then the question, each setting one word.
    picture = tmp_path / "picture"
    camera = tiny.file_bytes(tiny.scene(height=48, width=64))
    (tmp_path / "photo.png").write_bytes(camera)
    settings["QTL_CAMERA"] = f"cat {shlex.quote(str(tmp_path / 'photo.png'))}"
    shell = shlex.split(unit["ExecStartPre"].replace("/run/qtl/picture", str(picture)))
    subprocess.run(shell, env={**os.environ, **settings}, check=True, timeout=30)
    assert picture.read_bytes() == camera

    from tests.edge.peer import ScriptedServer

    tiny.write_client(tmp_path / "client")
    pair, client = keys.generate(tmp_path / "keys", "server"), keys.generate(tmp_path / "keys", "camera1")
    with ScriptedServer(keys=keys.load_secret(pair.secret)) as server:
        settings |= {
            "QTL_SERVER": server.endpoint,
            "QTL_KEY": str(client.secret),
            "QTL_SERVER_KEY": str(pair.public),
        }
        words = [
            re.sub(r"\$\{(\w+)\}", lambda m: settings[m[1]], word) for word in shlex.split(unit["ExecStart"])
        ]
        places = {"/var/lib/qtl/client": str(tmp_path / "client"), "/run/qtl/picture": str(picture)}
        words = [sys.executable, "-m", "edge_runtime", *(places.get(word, word) for word in words[1:])]
        state = {"XDG_STATE_HOME": str(tmp_path / "state")}
        done = subprocess.run(
            words, env={**source_env, **state}, capture_output=True, text=True, timeout=60, check=False
        )
        assert done.returncode == 0, done.stderr
        assert json.loads(done.stdout)["answer"] == "four red"
        assert server.requests[0].ask.question == settings["QTL_QUESTION"]


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="there is no systemd here")
def test_systemd_takes_the_units(repo_root: Path, tmp_path: Path) -> None:
    program = tmp_path / "program"
    program.write_text("#!/bin/sh\n")
    program.chmod(0o755)
    units = []
    for source in sorted((repo_root / "deploy").glob("qtl-*")):
        copy = tmp_path / source.name
        # Verification wants the programs to be there.
        copy.write_text(re.sub(r"/opt/qtl/bin/[a-z_-]+", str(program), source.read_text("utf-8")))
        units.append(str(copy))
    assert len(units) == 3
    command = ["systemd-analyze", "verify", "--man=no", *units]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    said = [line for line in done.stderr.splitlines() if any(Path(unit).name in line for unit in units)]
    assert (done.returncode, said) == (0, []), done.stderr


def test_the_image_s_instructions(repo_root: Path) -> None:
    text = (repo_root / "deploy" / "server.Dockerfile").read_text("utf-8")
    lines = [line for line in text.splitlines() if line and not line.startswith("#")]
    instructions = [line.partition(" ")[::2] for line in lines]
    known = {"FROM", "ARG", "RUN", "COPY", "USER", "ENV", "EXPOSE", "ENTRYPOINT", "CMD"}
    assert {name for name, _ in instructions} <= known
    said = dict(instructions)
    _parse([*json.loads(said["ENTRYPOINT"]), *json.loads(said["CMD"])])
    assert said["EXPOSE"] == "5555"
    pin = re.search(r"^torch==\S+$", (repo_root / "constraints.txt").read_text("utf-8"), re.MULTILINE)
    assert pin is not None
    assert dict(instructions)["ARG"] == f'TORCH="{pin[0]}"'
    # What the build copies is all that the wheel is made of.
    ignored = (repo_root / "deploy" / "server.Dockerfile.dockerignore").read_text("utf-8").splitlines()
    copied = {line[1:] for line in ignored if line.startswith("!")}
    assert "*" in ignored and all((repo_root / name).exists() for name in copied)
    project = (repo_root / "pyproject.toml").read_text("utf-8")
    packages = re.search(r"^packages = \[(.*)\]$", project, re.MULTILINE)
    assert packages is not None
    for package in re.findall(r'"([^"]+)"', packages[1]):
        assert package.partition("/")[0] in copied
