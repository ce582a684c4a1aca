"""Imports of what the extra ``[train]`` brings, with one clear line where it is missing."""

from __future__ import annotations

from importlib.util import find_spec

from qtl_core.errors import MissingExtra

_NEEDED = {
    "torch": "torch",
    "transformers": "transformers",
    "sklearn": "scikit-learn",
    "tqdm": "tqdm",
    "msgspec": "msgspec",
}


def need_train() -> None:
    """Checks that the extra is installed, before anything slow begins.

    Raises:
        MissingExtra: names the first package that is not there.
    """
    for module, package in _NEEDED.items():
        if find_spec(module) is None:
            raise MissingExtra.of("train", package)
