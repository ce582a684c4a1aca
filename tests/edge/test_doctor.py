"""The doctor: each thing that is wrong is one line with its remedy and exit code, and nothing else is."""

from __future__ import annotations

import importlib
import os
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from edge_runtime import doctor
from edge_runtime.doctor import Examination, Finding, Patient, device, examine
from edge_runtime.doctor.bundle import fits
from edge_runtime.doctor.finding import problem
from edge_runtime.heat import Heat
from edge_runtime.machine import Machine
from qtl_core import keys
from qtl_core import messages as m
from qtl_core.bundle import open_half
from qtl_core.errors import BundleError, QtlError
from tests.edge import tiny
from tests.edge.peer import ScriptedServer

Serve = Callable[..., ScriptedServer]
NAMES = [
    "machine", "python", "onnxruntime", "numpy", "zmq", "msgspec", "PIL", "click", "heat",
    "bundle", "memory", "bench", "clock", "keys", "server",
]  # fmt: skip


def pi(**changes: Any) -> Machine:
    known: dict[str, Any] = {
        "board": "Raspberry Pi 5",
        "cpu": "Cortex-A76",
        "architecture": "aarch64",
        "bits": 64,
        "cores": 4,
        "speedups": ("asimddp",),
        "memory": 8_000_000_000,
        "available": 6_000_000_000,
        "system": "Linux",
        "python": "3.11.2",
    }
    return Machine(**{**known, **changes})


def ask(half: Path, **settings: Any) -> Examination:
    return examine(Patient(**{"bundle": str(half), "timeout": 0.3, **settings}))


def of(found: Examination, name: str) -> Finding:
    (one,) = [each for each in found.findings if each.name == name]
    return one


def test_all_is_well(half: Path, serve: Serve) -> None:
    seen: list[Finding] = []
    server = serve()
    patient = Patient(bundle=str(half.parent), server=server.endpoint, timeout=10.0)
    found = examine(patient, each=seen.append)
    assert [one.name for one in found.findings] == NAMES
    assert [one for one in found.findings if not one.well] == []
    assert found.exit_code == 0
    assert tuple(seen) == found.findings
    assert "took the handshake in" in of(found, "server").said
    assert "fp32" in of(found, "bundle").said
    assert "no golden pictures" in of(found, "bundle").said
    told = doctor.as_json_object(found)
    assert (told["problems"], told["exit_code"]) == (0, 0)
    assert [check["name"] for check in told["checks"]] == NAMES
    assert told["machine"]["cores"] == found.machine.cores


def test_a_server_that_nobody_named_is_no_problem(
    half: Path, monkeypatch: pytest.MonkeyPatch, nobody: str
) -> None:
    monkeypatch.setattr("edge_runtime.doctor.link.SERVER", nobody)
    found = ask(half)
    assert found.exit_code == 0
    assert of(found, "server").said.startswith(f"none at {nobody}")


def test_a_named_server_that_is_not_there(half: Path, nobody: str) -> None:
    found = ask(half, server=nobody)
    assert found.exit_code == 5
    assert of(found, "server").remedy == "start qtl-server there, or give its address with --server"


def test_a_server_that_refuses(half: Path, serve: Serve) -> None:
    reject = m.Reject(reason="fingerprint", message="of different exports; copy one bundle's halves")
    server = serve(welcome=lambda hello: reject)
    found = ask(half, server=server.endpoint)
    assert found.exit_code == 6
    one = of(found, "server")
    assert one.remedy == "copy one bundle's halves"
    assert "(fingerprint)" in one.said


def test_plaintext_to_another_machine(half: Path) -> None:
    found = ask(half, server="tcp://192.0.2.1:5555")
    assert of(found, "server").exit_code == 3


def test_a_bundle_that_is_not_there_or_damaged(half: Path, tmp_path: Path) -> None:
    found = ask(tmp_path / "absent")
    assert found.exit_code == 4
    assert "qtl-export" in of(found, "bundle").remedy
    assert [one.name for one in found.findings] == [*NAMES[:10], "clock", "keys"]
    (half / "client.onnx").write_bytes(b"damaged")
    assert of(ask(half), "bundle").remedy == "copy the bundle again"


def test_keys(half: Path, tmp_path: Path) -> None:
    server, client = keys.generate(tmp_path, "server"), keys.generate(tmp_path, "client")
    good = {"key": str(client.secret), "server_key": str(server.public)}
    assert of(ask(half, **good), "keys").well
    one = of(ask(half, key=str(client.secret)), "keys")
    assert (one.exit_code, one.remedy) == (3, "encryption needs both")
    same = ask(half, key=str(client.secret), server_key=str(client.public))
    assert of(same, "keys").remedy == "--server-key is the server's .key"
    one = of(ask(half, key=str(tmp_path / "absent"), server_key=str(server.public)), "keys")
    assert one.exit_code == 9
    if os.name == "posix":
        client.secret.chmod(0o644)
        found = ask(half, **good)
        assert found.exit_code == 9
        assert of(found, "keys").remedy.startswith("run: chmod 600")


def test_the_clock_of_a_board_without_a_battery(half: Path) -> None:
    found = examine(Patient(bundle=str(half)), now=lambda: 86_400.0)
    assert found.exit_code == 9
    one = of(found, "clock")
    assert one.said == "1970-01-02 00:00:00 UTC"
    assert "timedatectl" in one.remedy


def test_32_bit_is_told_no_in_one_line() -> None:
    one = device.machine_of(pi(bits=32, architecture="armv7l"))
    assert one.exit_code == 9
    assert "32-bit" in one.remedy and "64-bit" in one.remedy
    assert "\n" not in one.said + one.remedy
    assert device.machine_of(pi()).well


def test_on_32_bits_nothing_else_is_advised(half: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("edge_runtime.doctor.look", lambda root: pi(bits=32, architecture="armv7l"))
    found = ask(half)
    assert [one.name for one in found.findings] == ["machine"]
    assert found.exit_code == 9


def test_an_old_python() -> None:
    assert device.python_of(pi(python="3.9.18")).exit_code == 9
    assert device.python_of(pi(python="3.10.0rc1")).well


@pytest.mark.parametrize(
    ("heat", "well", "remedy"),
    [
        (Heat(celsius=None, clock_mhz=None, clock_max_mhz=None, throttled=None), True, ""),
        (Heat(celsius=79.0, clock_mhz=1500.0, clock_max_mhz=2400.0, throttled="0x0"), True, ""),
        (Heat(celsius=81.0, clock_mhz=None, clock_max_mhz=None, throttled=None), False, "cool it"),
        (
            Heat(celsius=50.0, clock_mhz=None, clock_max_mhz=None, throttled="0x1", now=("under-voltage",)),
            False,
            "power supply",
        ),
    ],
)
def test_heat(heat: Heat, well: bool, remedy: str) -> None:
    one = device.heat_of(heat)
    assert one.well is well
    assert remedy in one.remedy


def test_packages(monkeypatch: pytest.MonkeyPatch) -> None:
    def module(version: str, curve: bool = True) -> types.SimpleNamespace:
        return types.SimpleNamespace(
            __version__=version,
            has=lambda what: curve,
            zmq_version=lambda: "4",
            get_available_providers=lambda: ["C"],
        )

    def missing(name: str) -> Any:
        raise ImportError(f"no {name} for this processor\nat all")

    monkeypatch.setattr(importlib, "import_module", missing)
    one = device.package("onnxruntime")
    assert one.exit_code == 9
    assert one.said == "ImportError: no onnxruntime for this processor at all"
    assert 'pip install "onnxruntime>=1.19"' in one.remedy
    for version, well in (("1.18.9", False), ("1.19", True), ("1.19.2+cpu", True), ("1.100.0rc1", True)):
        monkeypatch.setattr(importlib, "import_module", lambda name, version=version: module(version))
        assert device.package("onnxruntime").well is well, version
    monkeypatch.setattr(importlib, "import_module", lambda name: module("27.0", curve=False))
    assert "no CURVE" in device.package("zmq").remedy


def test_missing_packages_end_the_examination_early(half: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(device.OLDEST, "no_such_module", "1.0")
    found = ask(half)
    assert found.exit_code == 9
    assert found.findings[-1].name == "heat"
    assert of(found, "no_such_module").remedy == 'it does not load; run: pip install "no_such_module>=1.0"'


def test_what_fits_into_memory(tmp_path: Path) -> None:
    tiny.write_client(tmp_path / "client", files={"client.big.onnx": b"x" * 1_000_000})
    half = open_half(tmp_path / "client", "client")
    assert fits(half, pi()).well
    assert fits(half, pi(available=None)).well
    some = fits(half, pi(available=101_000_000))
    assert some.well
    assert some.said.endswith("too large: big")
    assert fits(half, pi(available=50_000_000)).exit_code == 9


def test_an_error_s_remedy_comes_after_its_semicolon() -> None:
    assert problem("x", BundleError("a; b; do c")) == Finding(
        name="x", said="a; b", remedy="do c", exit_code=4
    )
    plain = problem("x", QtlError("only\nthis"))
    assert (plain.said, plain.remedy) == ("only this", "see docs/errors.md")
