"""Key files: what is made can be read, and what others could read is refused."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest
import zmq
import zmq.auth

from qtl_core import keys
from qtl_core.errors import HostError, KeyFileError, StorageError

posix = pytest.mark.skipif(os.name != "posix", reason="file modes are POSIX")


def _mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def test_a_pair_is_written_and_read(tmp_path: Path) -> None:
    files = keys.generate(tmp_path / "new" / "folder", "alice")
    assert (files.public.name, files.secret.name) == ("alice.key", "alice.key_secret")
    pair = keys.load_secret(files.secret)
    assert pair.public == keys.load_public(files.public)
    assert len(pair.public) == len(pair.secret) == 40
    assert zmq.curve_public(pair.secret) == pair.public
    assert pair.secret not in files.public.read_bytes()
    assert pair.secret.decode() not in repr(pair)


def test_the_layout_is_that_of_zmq_auth(tmp_path: Path) -> None:
    files = keys.generate(tmp_path, "ours")
    pair = keys.load_secret(files.secret)
    assert zmq.auth.load_certificate(files.secret) == (pair.public, pair.secret)
    assert zmq.auth.load_certificate(files.public) == (pair.public, None)
    public, secret = (Path(path) for path in zmq.auth.create_certificates(tmp_path, "theirs"))
    os.chmod(secret, 0o600)
    assert keys.load_secret(secret).public == keys.load_public(public)


@posix
@pytest.mark.parametrize("umask", [0o000, 0o022, 0o077])
def test_modes_whatever_the_umask(tmp_path: Path, umask: int) -> None:
    before = os.umask(umask)
    try:
        files = keys.generate(tmp_path / "folder", "alice")
    finally:
        os.umask(before)
    assert _mode(files.secret) == 0o600
    assert _mode(files.public) == 0o644
    assert _mode(files.secret.parent) == 0o700


@posix
@pytest.mark.parametrize("mode", [0o640, 0o604, 0o644, 0o660, 0o610, 0o601, 0o777])
def test_a_secret_that_others_can_use_is_refused(tmp_path: Path, mode: int) -> None:
    secret = keys.generate(tmp_path, "alice").secret
    secret.chmod(mode)
    with pytest.raises(KeyFileError, match=rf"mode {mode:04o}\); run: chmod 600 .*alice.key_secret"):
        keys.load_secret(secret)
    secret.chmod(0o400)
    keys.load_secret(secret)


def test_nothing_is_overwritten(tmp_path: Path) -> None:
    files = keys.generate(tmp_path, "alice")
    before = files.secret.read_bytes()
    with pytest.raises(KeyFileError, match="exists already"):
        keys.generate(tmp_path, "alice")
    files.public.unlink()
    with pytest.raises(KeyFileError, match="exists already"):
        keys.generate(tmp_path, "alice")
    assert files.secret.read_bytes() == before


def test_a_link_is_not_written_through(tmp_path: Path) -> None:
    (tmp_path / "alice.key_secret").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(KeyFileError, match="exists already"):
        keys.generate(tmp_path, "alice")
    assert not (tmp_path / "elsewhere").exists()


@pytest.mark.parametrize("name", ["", "../alice", "a/b", ".hidden", "-rf", "a b", "x" * 64, "a\n"])
def test_names_that_are_no_file_names(tmp_path: Path, name: str) -> None:
    with pytest.raises(KeyFileError, match="cannot name a key"):
        keys.generate(tmp_path, name)
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_cannot_be_made(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StorageError, match="cannot write keys"):
        keys.generate(tmp_path / "file", "alice")


def test_libzmq_without_curve(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_curve() -> tuple[bytes, bytes]:
        raise zmq.ZMQError(zmq.ENOTSUP)

    monkeypatch.setattr(zmq, "curve_keypair", no_curve)
    with pytest.raises(HostError, match="CURVE"):
        keys.generate(tmp_path, "alice")


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\xff\xfe\x00",
        b"-----BEGIN OPENSSH PRIVATE KEY-----\n",
        b'metadata\ncurve\n    secret-key = "too short"\n',
        b"curve\n    secret-key = " + b"x" * 40,
        b'curve\n    secret-key = "' + b"~" * 40 + b'"\n',
        b'curve\n    secret-key = "' + "ü".encode() * 40 + b'"\n',
    ],
)
def test_damaged_secrets(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "alice.key_secret"
    path.write_bytes(content)
    path.chmod(0o600)
    with pytest.raises(KeyFileError, match=r"alice\.key_secret"):
        keys.load_secret(path)


def test_halves_of_two_pairs(tmp_path: Path) -> None:
    one, two = keys.generate(tmp_path, "one"), keys.generate(tmp_path, "two")
    mixed = one.secret.read_bytes().replace(keys.load_public(one.public), keys.load_public(two.public))
    one.secret.write_bytes(mixed)
    with pytest.raises(KeyFileError, match="do not belong together"):
        keys.load_secret(one.secret)


def test_the_wrong_file_of_the_pair(tmp_path: Path) -> None:
    files = keys.generate(tmp_path, "alice")
    files.public.chmod(0o600)
    with pytest.raises(KeyFileError, match="holds no secret key"):
        keys.load_secret(files.public)
    with pytest.raises(KeyFileError, match="holds a secret key"):
        keys.load_public(files.secret)


def test_missing_files_folders_and_pipes(tmp_path: Path) -> None:
    with pytest.raises(KeyFileError, match="cannot read"):
        keys.load_secret(tmp_path / "nobody.key_secret")
    with pytest.raises(KeyFileError, match="cannot read"):
        keys.load_public(tmp_path / "nobody.key")
    with pytest.raises(KeyFileError, match="keygen"):
        keys.load_server(tmp_path)
    with pytest.raises(KeyFileError, match="no regular file"):
        keys.load_public(tmp_path)
    if hasattr(os, "mkfifo"):
        os.mkfifo(tmp_path / "pipe.key")
        with pytest.raises(KeyFileError, match="no regular file"):  # and does not wait for a writer
            keys.load_public(tmp_path / "pipe.key")


def test_the_clients_of_a_server(tmp_path: Path) -> None:
    assert keys.load_authorised(tmp_path) == keys.Authorised({})
    clients = tmp_path / keys.CLIENTS
    alice, bob = keys.generate(clients, "alice"), keys.generate(clients, "bob")
    (clients / "broken.key").write_text("?")
    (clients / "README").write_text("public keys of clients")
    found = keys.load_authorised(tmp_path)
    assert found.clients == {keys.load_public(alice.public): "alice", keys.load_public(bob.public): "bob"}
    assert len(found.problems) == 1
    assert "broken.key" in found.problems[0]
    bob.public.unlink()
    assert list(keys.load_authorised(tmp_path).clients.values()) == ["alice"]
