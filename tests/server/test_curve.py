"""Encrypted servers: who is let in, added, revoked; keys and their files."""

from __future__ import annotations

import shutil
import stat
from pathlib import Path

import msgspec
import pytest
import zmq

from qtl_core.errors import KeyFileError, StorageError
from qtl_core.keys import load_public
from qtl_core.messages import Ping, Pong, Reject
from qtl_core.wire import join, wire_size
from server_runtime.auth import Gate
from server_runtime.cli import main
from server_runtime.keygen import make_keys
from tests.server.conftest import Connect, Serve
from tests.server.peer import Clock, eventually


@pytest.fixture
def keys(tmp_path: Path) -> Path:
    """A server's key folder with two clients, alice and bob."""
    folder = tmp_path / "keys"
    make_keys(folder, "alice")
    make_keys(folder, "bob")
    return folder


def device(keys: Path, name: str) -> dict[str, object]:
    return {"device": keys / "devices" / name, "name": name}


def test_authorised_clients_are_served(serve: Serve, connect: Connect, keys: Path) -> None:
    running = serve(keys=keys, bind="tcp://*:*")
    running.server._listener.endpoint = running.endpoint.replace("*", "127.0.0.1")
    alice, bob = connect(running, **device(keys, "alice")), connect(running, **device(keys, "bob"))
    welcome = alice.hello()
    bob.hello()
    alice.ask()
    answer = alice.answer()
    bob.ask()
    assert answer.text == bob.answer().text == "four"
    counts = running.server.counts
    assert counts.bytes_out > wire_size(join(welcome), curve=True) + wire_size(join(answer), curve=True)


def test_plaintext_stranger_is_not_heard(serve: Serve, connect: Connect, keys: Path) -> None:
    running = serve(keys=keys)
    stranger, alice = connect(running), connect(running, **device(keys, "alice"))
    stranger.socket.setsockopt(zmq.SNDTIMEO, 300)
    with pytest.raises(zmq.Again):
        stranger.send(stranger.hello_message())
    alice.hello()
    alice.ask()
    assert alice.answer().text == "four"
    assert eventually(lambda: running.server.counts.bad_handshakes >= 1)


def test_unknown_key_is_not_let_in_until_it_is_added(serve: Serve, connect: Connect, keys: Path) -> None:
    running = serve(keys=keys)
    make_keys(keys, "carol")
    known = keys / "clients" / "carol.key"
    aside = keys / "carol.key"
    known.rename(aside)
    carol, alice = connect(running, **device(keys, "carol")), connect(running, **device(keys, "alice"))
    carol.socket.setsockopt(zmq.SNDTIMEO, 300)
    with pytest.raises(zmq.Again):
        carol.send(carol.hello_message())
    assert eventually(lambda: running.server.counts.bad_handshakes >= 1)
    aside.rename(known)  # no restart
    gate = running.server._listener.gate
    assert gate is not None
    assert eventually(lambda: gate.name_of("anybody") is None and len(gate) == 3)
    carol.reconnect()  # libzmq gives up on a connection whose key was refused
    carol.hello()
    carol.ask()
    assert carol.answer().text == "four"
    alice.hello()


def test_revoked_key_stops_working_on_an_open_connection(serve: Serve, connect: Connect, keys: Path) -> None:
    running = serve(keys=keys)
    alice, bob = connect(running, **device(keys, "alice")), connect(running, **device(keys, "bob"))
    alice.hello()
    bob.hello()
    alice.ask(1)
    assert alice.answer().text == "four"
    (keys / "clients" / "alice.key").unlink()  # no restart
    gate = running.server._listener.gate
    assert gate is not None
    assert eventually(lambda: gate.name_of("anybody") is None and len(gate) == 1)
    alice.ask(1)  # not even what was computed before
    error = alice.error()
    assert (error.code, error.id) == ("no_session", 1)
    assert "authorised" in error.message
    alice.send(alice.hello_message())
    reject = alice.receive()
    assert isinstance(reject, Reject)
    assert reject.reason == "auth"
    bob.ask(1)
    assert bob.answer().text == "four"
    assert running.server.sessions == 1


def test_session_belongs_to_its_key(serve: Serve, connect: Connect, keys: Path) -> None:
    running = serve(keys=keys)
    alice, bob = connect(running, **device(keys, "alice")), connect(running, **device(keys, "bob"))
    alice.hello()
    alice.ask(1)
    assert alice.answer().text == "four"
    # Bob knows the name of Alice's session, and gets one of his own all the same.
    welcome = bob.hello(resume=alice.session)
    assert not welcome.resumed
    assert welcome.session != alice.session
    alice.send(Ping(1))
    assert alice.receive() == Pong(1)
    alice.reconnect()
    assert alice.hello(resume=alice.session).resumed


def test_wrong_server_key(serve: Serve, connect: Connect, keys: Path, tmp_path: Path) -> None:
    running = serve(keys=keys)
    make_keys(tmp_path / "other", "dave")
    shutil.copy(tmp_path / "other" / "server.key", keys / "devices" / "alice" / "server.key")
    mistaken, bob = connect(running, **device(keys, "alice")), connect(running, **device(keys, "bob"))
    mistaken.socket.setsockopt(zmq.SNDTIMEO, 300)
    with pytest.raises(zmq.Again):
        mistaken.send(mistaken.hello_message())
    bob.hello()
    bob.ask()
    assert bob.answer().text == "four"


def test_garbage_over_curve(serve: Serve, connect: Connect, keys: Path) -> None:
    running = serve(keys=keys)
    alice, bob = connect(running, **device(keys, "alice")), connect(running, **device(keys, "bob"))
    alice.send_frames(b"\xc1", b"\xc1")
    assert alice.error().code == "malformed"
    alice.send(msgspec.structs.replace(alice.hello_message(), text="codes"))
    assert isinstance(alice.receive(), Reject)
    bob.hello()
    bob.ask()
    assert bob.answer().text == "four"


# ---------------------------------------------------------------------------------------------- the gate


def test_gate_reads_the_folder_again_when_it_changes(keys: Path, caplog: pytest.LogCaptureFixture) -> None:
    clock = Clock()
    alice = load_public(keys / "clients" / "alice.key").decode()
    gate = Gate(keys, clock=clock)
    assert gate.name_of(alice) == "alice"
    assert gate.name_of("x" * 40) is None
    (keys / "clients" / "alice.key").unlink()
    assert gate.name_of(alice) == "alice"  # not looked at more than once in a second
    clock.now += 1
    assert gate.name_of(alice) is None
    (keys / "clients" / "alice.key").write_text("not a key")
    clock.now += 1
    assert gate.name_of(alice) is None
    assert "alice.key" in caplog.text
    shutil.rmtree(keys / "clients")
    clock.now += 1
    assert gate.name_of(alice) is None
    assert len(gate) == 0


# ---------------------------------------------------------------------------------------------- key files


def test_keygen_lays_the_files_out(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    keys = tmp_path / "keys"
    assert main(["keygen", str(keys)]) == 0
    told = capsys.readouterr().out
    assert str(keys / "server.key_secret") in told
    assert f"--keys {keys}" in told
    assert main(["keygen", str(keys), "--client", "pi-1"]) == 0
    told = capsys.readouterr().out
    assert str(keys / "devices" / "pi-1") in told
    assert "--key pi-1/pi-1.key_secret --server-key pi-1/server.key" in told
    assert str(keys / "clients" / "pi-1.key") in told
    names = sorted(path.relative_to(keys).as_posix() for path in keys.rglob("*") if path.is_file())
    assert names == [
        "clients/pi-1.key",
        "devices/pi-1/pi-1.key_secret",
        "devices/pi-1/server.key",
        "server.key",
        "server.key_secret",
    ]
    for name in names:
        mode = stat.S_IMODE((keys / name).stat().st_mode)
        assert mode == (0o600 if name.endswith("_secret") else 0o644)
    for text in ((keys / name).read_text() for name in names if name.endswith(".key")):
        assert "secret-key" not in text


def test_keygen_never_overwrites(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    keys = tmp_path / "keys"
    make_keys(keys, "alice")
    before = {path: path.read_bytes() for path in keys.rglob("*") if path.is_file()}
    assert main(["keygen", str(keys)]) == KeyFileError.exit_code
    assert main(["keygen", str(keys), "--client", "alice"]) == KeyFileError.exit_code
    assert main(["keygen", str(keys), "--client", "server"]) == KeyFileError.exit_code
    assert main(["keygen", str(keys), "--client", "../../evil"]) == KeyFileError.exit_code
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 4
    assert all(line.startswith("error: ") for line in lines)
    assert {path: path.read_bytes() for path in keys.rglob("*") if path.is_file()} == before


def test_keygen_where_nothing_can_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StorageError):
        make_keys(tmp_path / "file", None)


def test_server_key_that_others_can_read_is_refused(keys: Path, serve: Serve) -> None:
    (keys / "server.key_secret").chmod(0o640)
    with pytest.raises(KeyFileError, match="chmod 600"):
        serve(keys=keys)


def test_missing_server_key(tmp_path: Path, serve: Serve) -> None:
    with pytest.raises(KeyFileError, match="qtl-server keygen"):
        serve(keys=tmp_path)
