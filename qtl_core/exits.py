"""What every console entry point does around its ``main``: one line on stderr and a documented exit code.

click is not imported (``qtl_core`` does not need it); its exceptions are known by their attributes.
"""

from __future__ import annotations

import errno
import os
import sys
from collections.abc import Callable

from .errors import QtlError, StorageError

INTERRUPTED = 130
"""Exit code of a keyboard interrupt: 128 + SIGINT, what a shell expects."""
BROKEN_PIPE = 141
"""Exit code when the reader of our output left: 128 + SIGPIPE, what a shell expects."""

# C0 and C1 controls, and the marks that turn the direction of text around.
_CONTROLS = {
    code: ascii(chr(code))[1:-1]
    for code in (*range(32), *range(127, 160), *range(0x202A, 0x202F), *range(0x2066, 0x206A))
    if chr(code) not in "\n\t"
}

_STORAGE = {
    errno.ENOSPC: "the disk is full",
    errno.EDQUOT: "the disk quota is used up",
    errno.EFBIG: "a file is larger than files may be",
    errno.EROFS: "the file system is read-only",
    errno.EACCES: "permission denied",
    errno.EPERM: "not permitted",
}


def run(main: Callable[[], object]) -> int:
    """Runs a program's main function and returns the process's exit code.

    Use it as ``sys.exit(run(lambda: cli.main(standalone_mode=False)))``.

    Args:
        main: returns an exit code, or anything else for success.

    Returns:
        The exit code: what ``main`` returned, 0 for anything that is no integer, or the code of the error.
        A ``QtlError`` is one line ``error: ...`` on stderr; click's own errors look as click prints them;
        everything that nobody foresaw is left to fail loudly.
    """
    try:
        result = main()
        if sys.stdout is not None:  # a daemon may have closed it
            sys.stdout.flush()  # here, where a broken pipe or a full disk still becomes an exit code
    except QtlError as error:
        return say(error)
    except KeyboardInterrupt:
        return INTERRUPTED
    except BrokenPipeError:
        return _reader_left()
    except OSError as error:
        storage = storage_error(error)
        if storage is None:
            raise
        _keep_exit_code()
        return say(storage)
    except SystemExit as stop:
        # click turns a broken pipe into exit code 1 by itself: older ones while they handle it, newer ones
        # after that, when only the wrapper they put around stdout still tells.
        pacified = type(sys.stdout).__name__.endswith("PacifyFlushWrapper")
        if pacified or isinstance(stop.__context__, BrokenPipeError):
            return _reader_left()
        raise
    except Exception as error:
        code = _click(error)
        if code is None:
            raise
        return code
    return result if isinstance(result, int) else 0


def storage_error(error: OSError) -> StorageError | None:
    """The ``StorageError`` that says what ``error`` means, or None if it is not about storage."""
    what = _STORAGE.get(error.errno or 0)
    if what is None:
        return None
    where = f" at {error.filename}" if error.filename else ""
    remedy = "free some space" if error.errno in (errno.ENOSPC, errno.EDQUOT) else "choose another folder"
    return StorageError(f"{what}{where}; {remedy} and run the command again")


def say(error: QtlError) -> int:
    """Writes an error's one line to stderr, and returns its exit code."""
    # One line whatever the message holds: scripts read stderr line by line.
    if sys.stderr is not None:
        sys.stderr.write("error: " + printable(" ".join(str(error).split())) + "\n")
    return error.exit_code


def printable(text: str) -> str:
    """The text with control characters shown, so that a terminal does not obey them.

    What the other side sent may be in it. Line breaks and tabs stay.
    """
    return text.translate(_CONTROLS)


def _reader_left() -> int:
    _discard_stdout()
    return BROKEN_PIPE


def _keep_exit_code() -> None:
    """Takes what stdout could not write off it: the interpreter would try again, and end with 120."""
    try:
        if sys.stdout is not None:
            sys.stdout.flush()
    except OSError:
        _discard_stdout()


def _discard_stdout() -> None:
    # The interpreter flushes stdout once more on its way out; give it somewhere to flush to.
    try:
        devnull = os.open(os.devnull, os.O_WRONLY)
        os.dup2(devnull, sys.stdout.fileno())
        os.close(devnull)
    except (OSError, ValueError):  # stdout is no real file (a test, an embedding): nothing to redirect
        pass


def _click(error: Exception) -> int | None:
    """Prints an exception of click's as click would and returns its exit code; None if it is not click's."""
    show, code = getattr(error, "show", None), getattr(error, "exit_code", None)
    if callable(show) and isinstance(code, int):
        show()
        return code
    if isinstance(code, int) and type(error).__name__ == "Exit":
        return code
    if type(error).__name__ == "Abort" and type(error).__module__.partition(".")[0] == "click":
        return INTERRUPTED
    return None
