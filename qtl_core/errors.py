"""Every error the project raises on purpose, with the exit code each one gets.

::

    QtlError                      1   anything below, and nothing else
    ├── InputError                3   what the user handed in cannot be used
    │   ├── PictureError              missing, broken, truncated or too large a picture
    │   ├── QuestionError             empty, too long, not text
    │   ├── RecipeError               a training recipe with a wrong key or value
    │   ├── SampleError               a training sample, named by file and index
    │   └── BenchmarkError            a benchmark's files, or answers of another run
    ├── ArtifactError             4   a file the project made, and that does not check out
    │   ├── BundleError               manifest, hash, schema, fingerprint, wrong half
    │   └── CheckpointError           weights or settings of a checkpoint
    ├── LinkError                 5   the network between the two sides
    │   ├── ServerUnavailable         nobody answered in time at that address
    │   └── ServerLost                the server went away in the middle of an answer
    ├── RefusedError              6   the server answered, and the answer was no
    │   ├── HandshakeRefused          REJECT: fingerprint, protocol, codec, text, auth, full
    │   ├── ServerBusy                BUSY, more often than we were willing to come back
    │   └── RequestRefused            ERROR: the reply to one request
    ├── ProtocolError             7   bytes that break the agreement of docs/protocol.md
    │   ├── MalformedMessage          the header, or the frames it announces
    │   ├── ChecksumMismatch          a frame whose CRC-32 is not the announced one
    │   ├── CodeError                 codes of the wrong length or outside their range
    │   └── MessageTooLarge           over one of the limits of the session
    ├── MissingExtra              8   a part of the package that is not installed
    └── HostError                 9   this machine: address, key files, disk
        ├── BindError                 the address is taken, or must not be bound in plaintext
        ├── KeyFileError              a key file that is missing, damaged or readable by others
        └── StorageError              disk full, folder not writable

Exit code 2 is a wrong command line (click's usage errors) and 130 a keyboard interrupt, as everywhere.
``docs/errors.md`` is this page for people; ``qtl_core.exits`` turns an error into its one line and its code.
"""

from __future__ import annotations

from typing import ClassVar


class QtlError(Exception):
    """Root of the tree. The message names the offending value and the remedy, on one line."""

    exit_code: ClassVar[int] = 1


class InputError(QtlError):
    """What the user handed in cannot be used."""

    exit_code = 3


class PictureError(InputError):
    """A picture that is missing, broken, truncated or too large."""


class QuestionError(InputError):
    """A question that is empty, too long for the model, or not text."""


class RecipeError(InputError):
    """A training recipe with a key or value that does not fit."""


class SampleError(InputError):
    """A sample of training data that cannot be trained on, or a file of samples that cannot be read."""


class BenchmarkError(InputError):
    """A benchmark's folder: a missing file or picture, a line that does not fit, answers of another run."""


class ArtifactError(QtlError):
    """A file that this project (or a model's authors) made does not check out."""

    exit_code = 4


class BundleError(ArtifactError):
    """A bundle half that is missing, damaged, tampered with, too new, or the wrong one."""


class CheckpointError(ArtifactError):
    """A checkpoint that is missing or whose weights and settings do not fit together."""


class LinkError(QtlError):
    """The network between the two sides failed."""

    exit_code = 5


class ServerUnavailable(LinkError):
    """Nobody answered at the address in time; the message names the address."""


class ServerLost(LinkError):
    """The server went away in the middle of an answer."""


class RefusedError(QtlError):
    """The server was reached, understood us, and refused."""

    exit_code = 6


class HandshakeRefused(RefusedError):
    """The server answered the handshake with REJECT.

    Args:
        reason: one of ``qtl_core.messages.REJECT_REASONS``, for programs.
        message: the server's sentence, for people.
    """

    def __init__(self, reason: str, message: str) -> None:
        super().__init__(reason, message)
        self.reason = reason
        self.message = message

    def __str__(self) -> str:
        return self.message


class ServerBusy(RefusedError):
    """The server said BUSY more often than we were willing to come back.

    Args:
        message: what happened, for people.
        retry_ms: the server's last hint when to come back, in milliseconds.
    """

    def __init__(self, message: str, retry_ms: int = 0) -> None:
        super().__init__(message, retry_ms)
        self.message = message
        self.retry_ms = retry_ms

    def __str__(self) -> str:
        return self.message


class RequestRefused(RefusedError):
    """The server answered one request with ERROR.

    Args:
        reason: the reply's ``code``, one of ``qtl_core.messages.ERROR_CODES``, for programs.
        message: the server's sentence, for people.
    """

    def __init__(self, reason: str, message: str) -> None:
        super().__init__(reason, message)
        self.reason = reason
        self.message = message

    def __str__(self) -> str:
        return self.message


class ProtocolError(QtlError):
    """Bytes that break the agreement of docs/protocol.md.

    A server that catches one answers ``Error(id=e.about, code=e.wire_code, message=str(e))`` and goes on.

    Attributes:
        wire_code: the ``code`` of the error reply that tells the sender.
        about: id of the request it is about, as far as the header could be read; 0 if none.
    """

    exit_code = 7
    wire_code: ClassVar[str] = "malformed"

    def __init__(self, message: str, *, about: int = 0) -> None:
        super().__init__(message)
        self.about = about


class MalformedMessage(ProtocolError):
    """A header that is no message, or frames that are not the ones it announces."""


class ChecksumMismatch(ProtocolError):
    """A payload frame whose CRC-32 differs from the announced one: damaged on the way."""

    wire_code = "checksum"


class CodeError(ProtocolError):
    """Codes of the wrong length, of the wrong type, or outside 0..levels-1."""

    wire_code = "codes"


class MessageTooLarge(ProtocolError):
    """A header, frame or question over the limits of the session."""

    wire_code = "too_large"


class MissingExtra(QtlError):
    """A part of the package that this install does not have."""

    exit_code = 8

    @classmethod
    def of(cls, extra: str, module: str) -> MissingExtra:
        """The error for a missing ``module`` that the extra ``extra`` brings, with the exact pip line."""
        return cls(
            f"the Python module {module!r} is not installed; "
            f'install what brings it with: pip install "{_distribution()}[{extra}]"'
        )


class HostError(QtlError):
    """This machine cannot do what was asked: an address, a key file, a disk."""

    exit_code = 9


class BindError(HostError):
    """The address cannot be bound, or must not be bound in plaintext."""


class KeyFileError(HostError):
    """A key file that is missing, damaged, or readable by others."""


class StorageError(HostError):
    """A disk that is full or a folder that is not writable."""


def _distribution() -> str:
    """The name this package was installed under, so that a renamed build gives the right pip line."""
    # Imported here: it is needed only on the way out, and costs milliseconds at every start otherwise.
    from importlib import metadata

    names = metadata.packages_distributions().get("qtl_core", [])
    return names[0] if names else "qtl-edge"
