"""Variants of the client graph for particular devices: int8, half precision, a fixed batch.

Each lies beside ``client.onnx`` as ``client.NAME.onnx``, is held against PyTorch's fp32 codes before the
bundle is put in place, and has its bounds and what was measured in the manifest. This file imports nothing
heavy.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Final

from qtl_core.errors import InputError

INT8: Final = "int8-"
PRESETS: Final = ("arm64", "avx2", "avx512", "avx512_vnni")
"""What int8 graphs are made for, by optimum's names of its quantization configurations."""
FP16: Final = "fp16"
STATIC: Final = "static"
NAMES: Final = (*(INT8 + preset for preset in PRESETS), FP16, STATIC)
"""Every variant; ``static-N`` is the one with a fixed batch of N pictures, and ``static`` that of one."""

_STATIC: Final = re.compile(r"static(?:-(?P<batch>[1-9][0-9]{0,3}))?\Z")


def checked(names: Sequence[str]) -> tuple[str, ...]:
    """The names, each once.

    Raises:
        InputError: one that is no variant; the message lists those there are.
    """
    for name in names:
        if name not in NAMES and not _STATIC.match(name):
            raise InputError(
                f"there is no variant {name!r}; there are {', '.join(NAMES)} and {STATIC}-N for a batch of N "
                "(fp32 is the graph itself and always there)"
            )
    return tuple(dict.fromkeys(names))


def batch_of(name: str) -> int | None:
    """Pictures that a graph with a fixed batch takes; None for the other variants."""
    match = _STATIC.match(name)
    return int(match["batch"] or 1) if match else None
