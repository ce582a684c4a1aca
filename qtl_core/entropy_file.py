"""``entropy.npz``: the entropy coder's tables as a half of a bundle holds them.

Three little-endian 16-bit arrays and no pickle: ``levels`` (one number), ``classes`` [classes] and ``codes``
[classes, channels, levels]. The file comes from outside, so every size is looked at before it is believed.
"""

from __future__ import annotations

import io
import math
import struct
import zipfile
import zlib
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from .bundle import Half
from .entropy_tables import Tables
from .errors import BundleError, CodeError

NAME: Final = "entropy.npz"
MAX_ENTRIES: Final = 1 << 23
"""Frequencies of one file at most: more are no tables, and would only eat memory."""

_ARRAYS: Final = ("levels", "classes", "codes")
_TYPE: Final = np.dtype("<u2")
_HEADER: Final = 4096


def tables_name(levels: int) -> str:
    """Name of a checkpoint's own tables for so many levels, in the folder of the quantizer they belong to."""
    return f"entropy-{levels}-levels.npz"


def write_tables(path: Path, tables: Tables) -> None:
    """Writes a file; the same bytes for the same tables."""
    with path.open("wb") as file:
        np.savez_compressed(
            file,
            levels=np.array(tables.levels, _TYPE),
            classes=tables.class_frequencies.astype(_TYPE),
            codes=tables.frequencies.astype(_TYPE),
        )


def read_tables(path: Path) -> Tables:
    """Reads what ``write_tables`` wrote.

    Raises:
        BundleError: no such file, or no tables in it.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            levels, classes, codes = (_read(archive, name) for name in _ARRAYS)
        if levels.ndim:
            raise ValueError(f"levels is an array of shape {levels.shape}")
        return Tables(int(levels), classes, codes)
    # zipfile raises what zlib and struct raise, and RuntimeError for an encrypted member.
    except (OSError, ValueError, KeyError, EOFError, ArithmeticError, RuntimeError, zipfile.BadZipFile,
            zipfile.LargeZipFile, zlib.error, struct.error, CodeError) as error:  # fmt: skip
        raise BundleError(
            f"the entropy coder's tables {path} cannot be used: {error}; export the bundle again"
        ) from error


def tables_of(half: Half) -> Tables | None:
    """The tables of a checked half; None where it has none.

    Raises:
        BundleError: a file that cannot be read, or tables that the manifest does not describe.
    """
    manifest = half.manifest
    if not manifest.tables:
        return None
    path = half.file(NAME)
    tables = read_tables(path)
    cut = manifest.cut
    if (tables.levels, tables.channels) != (cut.levels, cut.code_dim):
        raise BundleError(
            f"{path} is for {tables.channels} channels of {tables.levels} levels, and this half's codes have "
            f"{cut.code_dim} of {cut.levels}; export the bundle again"
        )
    if tables.digest.hex() != manifest.tables:
        raise BundleError(
            f"{path} has the digest {tables.digest.hex()}, the manifest says {manifest.tables}; export the "
            "bundle again"
        )
    return tables


def _read(archive: zipfile.ZipFile, name: str) -> npt.NDArray[Any]:
    """One array, after its size was looked at: a few bytes can claim to be terabytes."""
    most = 2 * MAX_ENTRIES + _HEADER
    with archive.open(f"{name}.npy") as file:
        stream = io.BytesIO(file.read(most + 1))
    if len(stream.getbuffer()) > most:
        raise ValueError(f"{name} takes more than {most} bytes")
    version = np.lib.format.read_magic(stream)
    if version != (1, 0):
        raise ValueError(f"{name} has npy version {version}")
    shape, fortran, dtype = np.lib.format.read_array_header_1_0(stream)
    if fortran or dtype != _TYPE:
        raise ValueError(f"{name} is {dtype}, fortran order {fortran}; 16-bit unsigned in C order is wanted")
    data = stream.read()
    if len(data) != 2 * math.prod(shape):
        raise ValueError(f"{name} of shape {shape} has {len(data)} bytes")
    return np.frombuffer(data, dtype).reshape(shape)
