"""Imports of what the extras ``[train]`` and ``[bench]`` bring, with one clear line where one is missing."""

from __future__ import annotations

from importlib.util import find_spec

from qtl_core.errors import MissingExtra

_NEEDED = {
    "torch": "torch",
    "transformers": "transformers",
    "sklearn": "scikit-learn",
    "tqdm": "tqdm",
    "matplotlib": "matplotlib",
    "msgspec": "msgspec",
}
_RIVALS_NEED = {"vector_quantize_pytorch": "vector-quantize-pytorch", "zstandard": "zstandard"}


def need_train() -> None:
    """Checks that the extra is installed, before anything slow begins.

    Raises:
        MissingExtra: names the first package that is not there.
    """
    for module, package in _NEEDED.items():
        if find_spec(module) is None:
            raise MissingExtra.of("train", package)


def need_bench() -> None:
    """Checks that what the rivals need is installed too.

    Raises:
        MissingExtra: names the first package that is not there.
    """
    need_train()
    for module, package in _RIVALS_NEED.items():
        if find_spec(module) is None:
            raise MissingExtra.of("bench", package)
