"""What the doctor is asked about, and what is found: one line each."""

from __future__ import annotations

from dataclasses import dataclass

from qtl_core.errors import QtlError


@dataclass(frozen=True, kw_only=True)
class Finding:
    """One thing that was looked at.

    Attributes:
        name: what.
        said: what was found, one line.
        remedy: what to do about it; empty if all is well.
        exit_code: of docs/errors.md, where it is a problem; 0 if all is well.
    """

    name: str
    said: str
    remedy: str = ""
    exit_code: int = 0

    @property
    def well(self) -> bool:
        """Whether nothing is to be done."""
        return not self.exit_code


@dataclass(frozen=True, kw_only=True)
class Patient:
    """What is asked about: the settings ``edge_runtime ask`` would take.

    Attributes:
        bundle: the bundle or its client half; None for the default.
        server: its address; None if nobody named one: then a server that is not there is no problem.
        key: this client's ``.key_secret`` file.
        server_key: the server's ``.key`` file.
        insecure: plaintext to another machine is wanted.
        timeout: seconds to wait for the server.
    """

    bundle: str | None = None
    server: str | None = None
    key: str | None = None
    server_key: str | None = None
    insecure: bool = False
    timeout: float = 5.0


def problem(name: str, error: QtlError) -> Finding:
    """An error's line as a finding: what comes after the last semicolon is the remedy, by house rule."""
    said, semicolon, remedy = " ".join(str(error).split()).rpartition("; ")
    if not semicolon:
        said, remedy = remedy, "see docs/errors.md"
    return Finding(name=name, said=said, remedy=remedy, exit_code=error.exit_code)
