"""The way to the server: keys, and a whole handshake."""

from __future__ import annotations

import time
from pathlib import Path

from edge_runtime.config import EdgeConfig
from edge_runtime.dealer import Dealer
from edge_runtime.greeting import hello
from edge_runtime.session import Session
from qtl_core import keys
from qtl_core.bundle import Half
from qtl_core.entropy_file import tables_of
from qtl_core.errors import InputError, KeyFileError, LinkError, QtlError
from qtl_core.shipped import SERVER

from .finding import Finding, Patient, problem


def keys_of(patient: Patient) -> Finding:
    if (patient.key is None) != (patient.server_key is None):
        given, missing = ("--key", "--server-key") if patient.key else ("--server-key", "--key")
        error = InputError(f"{given} was given without {missing}; encryption needs both")
        return problem("keys", error)
    if patient.key is None or patient.server_key is None:
        return Finding(name="keys", said="none given: plaintext")
    try:
        pair = keys.load_secret(patient.key)
        server = keys.load_public(patient.server_key)
    except KeyFileError as error:
        return problem("keys", error)
    if pair.public == server:
        return problem("keys", KeyFileError("both keys are the same pair; --server-key is the server's .key"))
    return Finding(name="keys", said=f"{pair.public.decode('ascii')} to server {server.decode('ascii')}")


def server(patient: Patient, half: Half) -> Finding:
    """A whole handshake, on the connection a question would take."""
    address = SERVER if patient.server is None else patient.server
    try:
        config = EdgeConfig(
            server=address,
            key=None if patient.key is None else Path(patient.key),
            server_key=None if patient.server_key is None else Path(patient.server_key),
            insecure=patient.insecure,
            timeout=patient.timeout,
        )
        pair = None if config.key is None else keys.load_secret(config.key)
        server_key = None if config.server_key is None else keys.load_public(config.server_key)
        greeting = hello(half.manifest, tables_of(half))
        transport = Dealer(config.server, keys=pair, server_key=server_key)
        session = Session(transport, greeting, timeout=config.timeout)
        try:
            begun = time.monotonic()
            session.open()
            ms = 1000 * (time.monotonic() - begun)
        finally:
            session.close()
    except QtlError as error:
        if patient.server is None and isinstance(error, LinkError):
            said = f"none at {address}, the default; name yours with --server to have it checked"
            return Finding(name="server", said=said)
        return problem("server", error)
    secret = "encrypted" if pair is not None else "plaintext"
    return Finding(name="server", said=f"{address} took the handshake in {ms:.0f} ms, {secret}")
