"""What to install where a bundle was made with newer programs than those that read it."""

from __future__ import annotations

import re
from collections.abc import Mapping

from .bundle import Manifest


def remedy(manifest: Manifest, installed: Mapping[str, str], otherwise: str = "export it again") -> str:
    """What to do about a half that cannot be loaded.

    Args:
        manifest: of the half.
        installed: the programs that read it, and their versions here.
        otherwise: what to do where it was made with no newer ones.

    Returns:
        The programs to upgrade, and to which version; or ``otherwise``.
    """
    newer = [
        f"{name} {made} or newer (here is {version})"
        for name, version in installed.items()
        if (made := manifest.made_by.get(name, "")) and _numbers(made) > _numbers(version)
    ]
    if not newer:
        return otherwise
    return (
        f"it was made with newer programs: install {' and '.join(newer)}, or export it again with those here"
    )


def _numbers(version: str) -> tuple[int, ...]:
    """The release of a version, "2.13.0+cpu" -> (2, 13)."""
    match = re.match(r"\d+(\.\d+)*", version)
    numbers = [int(part) for part in match[0].split(".")] if match else []
    while numbers and numbers[-1] == 0:
        numbers.pop()
    return tuple(numbers)
