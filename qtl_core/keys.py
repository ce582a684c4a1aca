"""CURVE key files, in the layout of ``zmq.auth``: ``NAME.key`` (public) and ``NAME.key_secret`` (mode 0600).

A server's key folder holds ``server.key_secret``, ``server.key`` and ``clients/*.key``, the public keys of
the clients it lets in. Clients need their own ``.key_secret`` and the server's ``.key``.
"""

from __future__ import annotations

import os
import re
import stat
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import zmq

from .errors import HostError, KeyFileError, StorageError

PUBLIC_SUFFIX: Final = ".key"
SECRET_SUFFIX: Final = ".key_secret"
SERVER: Final = "server"
CLIENTS: Final = "clients"

_MAX_FILE: Final = 16 * 1024
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,62}\Z")
# zmq.auth writes ZPL: an indented `public-key = "..."`, the key in Z85 (rfc.zeromq.org/spec/32).
_Z85 = r"[0-9a-zA-Z.\-:+=^!/*?&<>()\[\]{}@%$#]"
_ENTRY = re.compile(rf'^\s*(public-key|secret-key)\s*=\s*"({_Z85}{{40}})"\s*$', re.MULTILINE)


@dataclass(frozen=True)
class KeyPair:
    """A CURVE key pair, each key as 40 Z85 characters. The secret stays out of logs and messages."""

    public: bytes
    secret: bytes = field(repr=False)


@dataclass(frozen=True)
class KeyFiles:
    """Where ``generate`` put a pair."""

    public: Path
    secret: Path


@dataclass(frozen=True)
class Authorised:
    """The clients a server lets in.

    Attributes:
        clients: their names (file names without ``.key``) by public key.
        problems: one sentence for each file that could not be used; the others count all the same.
    """

    clients: dict[bytes, str]
    problems: tuple[str, ...] = ()


def generate(folder: str | os.PathLike[str], name: str) -> KeyFiles:
    """Makes a key pair and writes its two files; the folder is made (mode 0700) if it is not there.

    Raises:
        KeyFileError: files of that name exist already, or the name cannot be a file's.
        StorageError: the folder cannot be written.
        HostError: this libzmq cannot make CURVE keys.
    """
    if not _NAME.match(name):
        raise KeyFileError(f"{name!r} cannot name a key; use letters, digits, dot, dash and underscore")
    try:
        public, secret = zmq.curve_keypair()
    except zmq.ZMQError as error:
        raise HostError("this build of pyzmq has no CURVE encryption; install its official wheel") from error
    where = Path(folder)
    files = KeyFiles(public=where / (name + PUBLIC_SUFFIX), secret=where / (name + SECRET_SUFFIX))
    for path in (files.public, files.secret):
        if path.exists() or path.is_symlink():
            raise KeyFileError(f"{path} exists already; remove it, or choose another name")
    try:
        where.mkdir(mode=0o700, parents=True, exist_ok=True)
        _write(files.secret, 0o600, _zpl(public, secret))
        _write(files.public, 0o644, _zpl(public, None))
    except OSError as error:
        raise StorageError(
            f"cannot write keys to {where}: {error.strerror}; choose another folder"
        ) from error
    return files


def load_secret(path: str | os.PathLike[str]) -> KeyPair:
    """Reads a ``.key_secret`` file.

    Raises:
        KeyFileError: missing, damaged, holding no secret key, or readable by group or others.
    """
    entries = _read(Path(path), secret=True)
    if "secret-key" not in entries:
        raise KeyFileError(f"{path} holds no secret key; give the file that ends in {SECRET_SUFFIX}")
    secret = entries["secret-key"]
    try:
        public = zmq.curve_public(secret)
    except (zmq.ZMQError, ValueError) as error:
        raise KeyFileError(f"the secret key in {path} is damaged; make a new one") from error
    if entries.get("public-key", public) != public:
        raise KeyFileError(f"the public and the secret key in {path} do not belong together; make new ones")
    return KeyPair(public=public, secret=secret)


def load_public(path: str | os.PathLike[str]) -> bytes:
    """Reads the public key of a ``.key`` file: 40 Z85 characters.

    Raises:
        KeyFileError: missing, damaged, or holding a secret key as well (which then lies in the open).
    """
    entries = _read(Path(path), secret=False)
    if "secret-key" in entries:
        raise KeyFileError(f"{path} holds a secret key; give the public file that ends in {PUBLIC_SUFFIX}")
    if "public-key" not in entries:
        raise KeyFileError(f"{path} holds no public key; make one with: qtl-server keygen")
    return entries["public-key"]


def load_server(folder: str | os.PathLike[str]) -> KeyPair:
    """The server's own pair from its key folder.

    Raises:
        KeyFileError: as ``load_secret``.
    """
    path = Path(folder) / (SERVER + SECRET_SUFFIX)
    if not path.exists():
        raise KeyFileError(f"{path} does not exist; make it with: qtl-server keygen {folder}")
    return load_secret(path)


def load_authorised(folder: str | os.PathLike[str]) -> Authorised:
    """The clients that a server's key folder lets in: every ``clients/*.key``.

    One file that cannot be used locks out its owner and nobody else.

    Args:
        folder: the server's key folder, which holds ``clients/``. A missing ``clients/`` lets nobody in.
    """
    clients: dict[bytes, str] = {}
    problems: list[str] = []
    for path in sorted((Path(folder) / CLIENTS).glob("*" + PUBLIC_SUFFIX)):
        try:
            clients[load_public(path)] = path.name.removesuffix(PUBLIC_SUFFIX)
        except KeyFileError as error:
            problems.append(str(error))
    return Authorised(clients, tuple(problems))


def _zpl(public: bytes, secret: bytes | None) -> str:
    lines = [
        "# ZeroMQ CURVE "
        + ("SECRET key pair; keep it to yourself" if secret else "public key; give it away"),
        "metadata",
        "curve",
        f'    public-key = "{public.decode("ascii")}"',
    ]
    if secret is not None:
        lines.append(f'    secret-key = "{secret.decode("ascii")}"')
    return "\n".join(lines) + "\n"


def _write(path: Path, mode: int, text: str) -> None:
    # O_EXCL never follows a link or overwrites; the mode holds from the first byte on, whatever the umask.
    handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode)
    with os.fdopen(handle, "w", encoding="ascii") as file:
        os.chmod(path, mode)
        file.write(text)


def _read(path: Path, *, secret: bool) -> dict[str, bytes]:
    try:
        # Without blocking, so that a FIFO in the key folder cannot hold up a server.
        handle = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0))
        try:
            status = os.fstat(handle)
            if not stat.S_ISREG(status.st_mode):
                raise KeyFileError(f"{path} is no regular file; give a key file")
            if secret and os.name == "posix" and status.st_mode & 0o077:
                mode = stat.S_IMODE(status.st_mode)
                raise KeyFileError(f"{path} can be used by others (mode {mode:04o}); run: chmod 600 {path}")
            text = os.read(handle, _MAX_FILE).decode("utf-8")
        finally:
            os.close(handle)
    except OSError as error:
        raise KeyFileError(f"cannot read the key file {path}: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise KeyFileError(f"{path} is no key file; make one with: qtl-server keygen") from error
    return {name: key.encode("ascii") for name, key in _ENTRY.findall(text)}
