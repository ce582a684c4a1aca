"""The command line: defaults, refusals, exit codes; and what must work without PyTorch."""

from __future__ import annotations

import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import msgspec
import pytest

from qtl_core.bundle import Manifest, hash_files, write_manifest
from qtl_core.errors import BindError, HostError, InputError, MissingExtra
from server_runtime import ServerConfig
from server_runtime.cli import main
from server_runtime.process import ready_line
from tests.server.conftest import make_manifest

Run = Callable[..., "subprocess.CompletedProcess[str]"]


@pytest.fixture
def half(tmp_path: Path) -> Path:
    """A server half that checks out, with no model in it."""
    folder = tmp_path / "bundle" / "server"
    folder.mkdir(parents=True)
    (folder / "config.json").write_text("{}")
    write_manifest(folder, msgspec.structs.replace(make_manifest(), files=hash_files(folder)))
    return folder


@pytest.fixture
def run(source_env: dict[str, str], tmp_path: Path) -> Run:
    def run(*args: str, code: str = "", cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
        program = f"import sys; {code}\nfrom server_runtime.cli import main\nsys.exit(main(sys.argv[1:]))"
        return subprocess.run(
            [sys.executable, "-c", program, *args],
            cwd=cwd or tmp_path,
            env=source_env,
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )

    return run


NO_TORCH = "sys.modules['torch'] = None"


def test_missing_extra_quotes_the_pip_line(run: Run, half: Path) -> None:
    # The plain install: everything up to the model works, and then one line says what to install.
    done = run(str(half), "--bind", "tcp://127.0.0.1:*", code=NO_TORCH)
    assert done.returncode == MissingExtra.exit_code
    assert done.stderr.splitlines()[-1].startswith("error: the Python module 'torch' is not installed")
    assert 'pip install "' in done.stderr
    assert '[server]"' in done.stderr


def test_imports_without_torch(source_env: dict[str, str]) -> None:
    program = (
        "import sys, pkgutil, importlib\n"
        "for name in ('torch', 'transformers', 'safetensors', 'tokenizers'): sys.modules[name] = None\n"
        "import server_runtime\n"
        "for module in pkgutil.iter_modules(server_runtime.__path__):\n"
        "    if module.name != '__main__': importlib.import_module('server_runtime.' + module.name)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program],
        env=source_env,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr


def test_import_sets_up_no_logging_and_opens_no_socket(source_env: dict[str, str]) -> None:
    program = (
        "import logging, threading, os\nimport server_runtime.cli, server_runtime.torch_engine\n"
        "assert not logging.getLogger().handlers\nassert threading.active_count() == 1\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program],
        env=source_env,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr


def test_defaults_are_said(run: Run) -> None:
    done = run()
    assert done.returncode == 4
    lines = done.stderr.splitlines()
    assert lines[0] == "qtl-server: using the default bundle ./bundle"
    assert lines[1] == "qtl-server: using the default address tcp://127.0.0.1:5555"
    assert lines[2].startswith("error: ")
    assert "qtl-export" in lines[2]
    assert len(lines) == 3


def test_bundle_with_both_halves_is_accepted(run: Run, half: Path) -> None:
    # It gets as far as the engine: bundle/server was found in bundle.
    done = run(str(half.parent), "--bind", "tcp://127.0.0.1:*", code=NO_TORCH)
    assert done.returncode == MissingExtra.exit_code, done.stderr


def test_tampered_half(run: Run, half: Path) -> None:
    (half / "config.json").write_text("{ }")
    done = run(str(half), "--bind", "tcp://127.0.0.1:*")
    assert done.returncode == 4
    assert "config.json" in done.stderr
    assert len(done.stderr.splitlines()) == 1


def test_half_of_a_newer_version(run: Run, half: Path) -> None:
    manifest = (half / "manifest.json").read_text()
    assert '"schema": 1' in manifest
    (half / "manifest.json").write_text(manifest.replace('"schema": 1', '"schema": 2'))
    done = run(str(half), "--bind", "tcp://127.0.0.1:*")
    assert done.returncode == 4
    (line,) = done.stderr.splitlines()
    assert "has schema 2, this version reads 1; install a newer qtl-edge" in line


def test_client_half(run: Run, half: Path) -> None:
    manifest = (half / "manifest.json").read_text()
    (half / "manifest.json").write_text(manifest.replace('"half": "server"', '"half": "client"'))
    done = run(str(half), "--bind", "tcp://127.0.0.1:*")
    assert done.returncode == 4
    assert "client half" in done.stderr


@pytest.mark.parametrize(
    "address", ["tcp://0.0.0.0:5555", "tcp://*:5555", "tcp://192.0.2.7:5555", "tcp://[::]:5555"]
)
def test_plaintext_on_a_public_address_is_refused(
    half: Path, address: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([str(half), "--bind", address]) == HostError.exit_code
    [line] = capsys.readouterr().err.splitlines()
    assert line.startswith(f"error: {address} can be reached from other machines")
    assert "--keys" in line
    assert "--insecure" in line


def test_public_addresses_that_are_allowed(tmp_path: Path) -> None:
    for address in ("tcp://0.0.0.0:5555", "tcp://*:5555"):
        ServerConfig(bind=address, insecure=True)
        ServerConfig(bind=address, keys=tmp_path)
    for address in ("tcp://127.0.0.1:5555", "tcp://[::1]:5555", "tcp://localhost:5555", "ipc:///tmp/qtl"):
        ServerConfig(bind=address)


def test_taken_port_shows_before_the_model_is_loaded(run: Run, half: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        address = f"tcp://127.0.0.1:{taken.getsockname()[1]}"
        done = run(str(half), "--bind", address, code=NO_TORCH)
    assert done.returncode == BindError.exit_code
    [line] = done.stderr.splitlines()
    assert line.startswith(f"error: cannot listen on {address}: another program listens there")


@pytest.mark.parametrize(
    ("address", "says"),
    [
        ("tcp://192.0.2.7:5555", "no such address"),
        ("tcp://nosuchdevice:5555", "no such address or interface"),
        ("ipc:///no/such/folder/socket", "folder"),
    ],
)
def test_addresses_that_cannot_be_bound(
    half: Path, address: str, says: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([str(half), "--bind", address, "--insecure"]) == BindError.exit_code
    [line] = capsys.readouterr().err.splitlines()
    assert line.startswith(f"error: cannot listen on {address}: ")
    assert says in line


@pytest.mark.parametrize(
    "address", ["", "5555", "http://127.0.0.1:5555", "tcp://127.0.0.1", "tcp://127.0.0.1:99999"]
)
def test_what_is_no_address(half: Path, address: str, capsys: pytest.CaptureFixture[str]) -> None:
    code = main([str(half), "--bind", address])
    assert code == InputError.exit_code
    assert capsys.readouterr().err.startswith("error: ")


def test_keys_without_a_server_key(half: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(half), "--bind", "tcp://*:*", "--keys", str(tmp_path)]) == HostError.exit_code
    [line] = capsys.readouterr().err.splitlines()
    assert "qtl-server keygen" in line


@pytest.mark.parametrize(
    "args",
    [
        ["--credits", "0"],
        ["--device", "tpu"],
        ["--dtype", "int8"],
        ["--max-question", "1000000"],
        ["--grace", "-1"],
        ["--nonsense"],
        ["a", "b"],
        ["keygen"],
    ],
)
def test_usage_errors_are_exit_code_2(args: list[str]) -> None:
    assert main(args) == 2


@pytest.mark.parametrize(
    "wrong",
    [
        {"credits": 0},
        {"max_sessions": 0},
        {"max_waiting": 0},
        {"max_question": 0},
        {"max_question": 16_384},
        {"max_tokens": 0},
        {"kept_answers": 0},
        {"idle_s": 0},
        {"idle_s": float("nan")},
        {"log_every_s": 0},
        {"grace_s": -1},
        {"device": "tpu"},
        {"dtype": "int8"},
    ],
)
def test_config_is_validated_when_built(wrong: dict[str, object]) -> None:
    with pytest.raises(HostError, match=next(iter(wrong))):
        ServerConfig(**wrong)  # type: ignore[arg-type]


def test_help_shows_how_to_serve(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--help"]) == 0
    text = capsys.readouterr().out
    for option in ("--bind", "--device", "--dtype", "--keys", "--insecure", "--ready-file"):
        assert option in text
    assert "keygen" in text
    assert main(["keygen", "--help"]) == 0
    assert "--client" in capsys.readouterr().out


def test_ready_line(manifest: Manifest) -> None:
    for levels, words in ((4, "2 bits"), (5, "5 levels"), (256, "8 bits"), (0, "16 bits")):
        line = ready_line("tcp://127.0.0.1:5555", make_manifest(levels))
        assert line == (
            "qtl-server ready on tcp://127.0.0.1:5555 "
            f"(model test-model, {words}, fingerprint {manifest.fingerprint})"
        )
