"""`qtl-server keygen`: CURVE keys for a server and its clients, laid out so that copying is one command."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from qtl_core.errors import KeyFileError, StorageError
from qtl_core.keys import CLIENTS, PUBLIC_SUFFIX, SECRET_SUFFIX, SERVER, generate, load_public, load_server

DEVICES: Final = "devices"


@dataclass(frozen=True)
class Made:
    """What :func:`make_keys` wrote.

    Attributes:
        server: The server's secret key, if it was made now.
        device: Folder to copy to the client: its secret key and the server's public one.
        name: The client's name.
    """

    server: Path | None
    device: Path | None
    name: str | None


def make_keys(folder: Path, client: str | None) -> Made:
    """Make the server's key where there is none yet, and a client's where one is named.

    ``folder`` then holds ``server.key_secret``, ``server.key``, ``clients/NAME.key`` (remove it to revoke the
    client; no restart) and ``devices/NAME/``, which belongs on the client's machine.

    Raises:
        KeyFileError: The server or the client has a key already, or the name cannot be a file's.
        StorageError: The folder cannot be written.
    """
    secret = folder / (SERVER + SECRET_SUFFIX)
    fresh = not secret.exists()
    if not fresh and client is None:
        raise KeyFileError(
            f"{secret} exists already: add a client with --client NAME, or choose another folder"
        )
    if client == SERVER:
        raise KeyFileError(f"a client cannot be called {SERVER!r}: choose another name")
    server = generate(folder, SERVER).secret if fresh else None
    load_server(folder)
    if client is None:
        return Made(server, None, None)
    authorised = folder / CLIENTS / (client + PUBLIC_SUFFIX)
    if authorised.exists():
        raise KeyFileError(
            f"{authorised} exists already: choose another name, or remove it to make a new key"
        )
    device = folder / DEVICES / client
    files = generate(device, client)
    try:
        shutil.copyfile(folder / (SERVER + PUBLIC_SUFFIX), device / (SERVER + PUBLIC_SUFFIX))
        authorised.parent.mkdir(mode=0o700, exist_ok=True)
        # Moved in one step: a running server never reads half a file.
        files.public.replace(authorised)
    except OSError as error:
        raise StorageError(
            f"cannot write keys to {folder}: {error.strerror}: choose another folder"
        ) from error
    load_public(authorised)
    return Made(server, device, client)


def instructions(folder: Path, made: Made) -> str:
    """What to copy where, for people."""
    lines = []
    if made.server is not None:
        lines += [
            f"server key:  {made.server} (secret, stays on this machine)",
            f"start with:  qtl-server --bind tcp://*:5555 --keys {folder}",
        ]
    if made.device is not None and made.name is not None:
        lines += [
            f"client key:  {made.device} (holds the client's secret: move this folder there, over ssh)",
            f"  move it:   scp -r {made.device} CLIENT: && rm -r {made.device}",
            f"  ask with:  edge_runtime ask --key {made.name}/{made.name}{SECRET_SUFFIX} "
            f"--server-key {made.name}/{SERVER}{PUBLIC_SUFFIX} ...",
            f"  revoke:    rm {folder / CLIENTS / made.name}{PUBLIC_SUFFIX} (no restart needed)",
        ]
    else:
        lines.append(f"add clients: qtl-server keygen {folder} --client NAME")
    return "\n".join(lines)
