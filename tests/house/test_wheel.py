"""The wheel: what is in it, and the model card's three commands from an empty folder."""

from __future__ import annotations

import json
import shutil
import socket
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.house import environments
from tests.house.environments import Environment

pytestmark = pytest.mark.slow

PACKAGES = ("qtl_core", "edge_runtime", "server_runtime", "qtl_export", "qtl_training")
START_TIMEOUT_S = 300.0


def test_wheel_holds_the_packages_and_the_checkpoint(wheel: Path) -> None:
    names = set(zipfile.ZipFile(wheel).namelist())
    tops = {name.partition("/")[0] for name in names}
    assert {top for top in tops if not top.endswith(".dist-info")} == set(PACKAGES)
    assert {f"{package}/py.typed" for package in PACKAGES} <= names
    shipped = {name for name in names if name.startswith("qtl_core/shipped_digits/")}
    assert {"config.json", "scene.png"} <= {name.rpartition("/")[2] for name in shipped}
    assert any(name.endswith(".safetensors") for name in shipped)
    assert not [name for name in names if "__pycache__" in name or name.endswith(".bin")]


def test_plain_requirements_are_the_devices(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        (metadata,) = (name for name in archive.namelist() if name.endswith(".dist-info/METADATA"))
        lines = archive.read(metadata).decode().splitlines()
    plain = [line for line in lines if line.startswith("Requires-Dist:") and "extra ==" not in line]
    names = {line.split()[1].partition(">")[0].lower() for line in plain}
    assert names == {"numpy", "onnxruntime", "pyzmq", "msgspec", "pillow", "click"}


def test_wheel_can_be_built_from_the_sdist(repo_root: Path, wheel: Path, tmp_path: Path) -> None:
    pytest.importorskip("hatchling", reason="the sdist is built with hatchling's own command")
    environments.run(
        [sys.executable, "-m", "hatchling", "build", "-t", "sdist", "-d", str(tmp_path)], cwd=repo_root
    )
    (sdist,) = tmp_path.glob("*.tar.gz")
    shutil.unpack_archive(sdist, tmp_path / "unpacked")
    (root,) = (tmp_path / "unpacked").iterdir()
    again = environments.build_wheel(root, tmp_path / "again")
    assert set(zipfile.ZipFile(again).namelist()) == set(zipfile.ZipFile(wheel).namelist())


@contextmanager
def _server(environment: Environment, cwd: Path) -> Iterator[subprocess.Popen[str]]:
    """`qtl-server` as it stands; ready when its one line says so; stopped afterwards, with exit code 0."""
    log = cwd / "server.log"
    with log.open("w") as sink:
        process = subprocess.Popen(
            [str(environment.scripts / "qtl-server"), "--ready-file", "ready"],
            env=environment.variables, cwd=cwd, stdout=sink, stderr=sink, text=True,
        )  # fmt: skip
    try:
        try:
            environments.wait_until((cwd / "ready").exists, START_TIMEOUT_S, lambda: process.poll() is None)
        except AssertionError as error:
            raise AssertionError(f"{error}:\n{log.read_text()}") from error
        yield process
    finally:
        process.terminate()
        try:
            code = process.wait(30)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
            raise
    assert code == 0, log.read_text()


def _default_port_is_free() -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", 5555)) != 0


def test_card_commands_from_an_installed_wheel(repo_root: Path, wheel: Path, tmp_path: Path) -> None:
    if not _default_port_is_free():
        pytest.skip("the card's commands take the default port, and something else listens on 127.0.0.1:5555")
    environment = Environment.make(Path(sys.executable), tmp_path / "venv")
    pins = ("--constraint", str(repo_root / "constraints.txt"))
    environment.install(*pins, environments.constraint(repo_root, "torch"))
    environment.install(*pins, f"{wheel}[all]")
    empty = tmp_path / "empty"
    empty.mkdir()
    where = "from qtl_core import shipped; print(shipped.picture())"
    picture = environment.python("-c", where, cwd=empty).strip()
    assert str(environment.folder) in picture
    try:
        environments.run(
            [str(environment.scripts / "qtl-export"), "--bits", "2"], env=environment.variables, cwd=empty
        )
        ask = [
            str(environment.scripts / "edge_runtime"),
            "ask",
            "--image",
            picture,
            "how many digits are there?",
        ]
        with _server(environment, empty):
            answer = environments.run(ask, env=environment.variables, cwd=empty)
            reply = json.loads(environments.run([*ask, "--json"], env=environment.variables, cwd=empty))
        assert answer.strip() == reply["answer"]
        assert answer.strip().isdigit()
        assert reply["bits"] == 2
        assert reply["payload_bytes"] < reply["bytes_up"] < 1000 < reply["feature_bytes_16bit"]
    finally:
        shutil.rmtree(tmp_path, ignore_errors=True)
