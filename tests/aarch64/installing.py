"""The device package in the emulated system: wheels fetched here, installed there without a network."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path
from typing import Final

from qtl_export.progress import Progress
from tests.aarch64.emulation import Root, checked
from tests.house.environments import build_wheel

PYTHON: Final = "/opt/qtl/bin/python"
"""The interpreter of the device's environment, in the system."""
_TEST_TOOLS: Final = ("pytest", "hypothesis")
# Wheels for any glibc up to Debian 12's; pip takes the tags literally.
_PLATFORMS: Final = ("manylinux2014_aarch64", *(f"manylinux_2_{minor}_aarch64" for minor in range(17, 37)))
_OFFLINE: Final = ("-q", "--disable-pip-version-check", "--no-index", "--find-links", "/wheels")


def install(root: Root, checkout: Path, wheels: Path | None, progress: Progress) -> None:
    """Installs the wheel of the checkout, what it needs, and the test tools, into ``/opt/qtl``.

    Args:
        root: the emulated system.
        checkout: whose package is installed, at the pins of its constraints.txt.
        wheels: a folder of aarch64 wheels; None for pip's own index.
        progress: where to show how far it is.

    Raises:
        HostError: pip failed here or there.
    """
    python = root.run(["python3", "-c", "import sys; print('%d.%d' % sys.version_info[:2])"]).strip()
    folder = root.path("/wheels")
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    with progress.stage("fetching aarch64 wheels"):
        ours = build_wheel(checkout, folder)
        source = [] if wheels is None else ["--no-index", "--find-links", str(wheels)]
        platforms = [word for name in _PLATFORMS for word in ("--platform", name)]
        target = ["--only-binary=:all:", "--implementation", "cp", "--python-version", python, *platforms]
        pins = ["--constraint", str(checkout / "constraints.txt")]
        what = [*target, *pins, *source, "-d", str(folder), str(ours), *_TEST_TOOLS]
        checked([sys.executable, "-m", "pip", "download", "-q", "--disable-pip-version-check", *what])
    with progress.stage("installing them under emulation, minutes"):
        if not root.path(PYTHON).parent.is_dir():
            root.run(["python3", "-m", "venv", "/opt/qtl"])
        inside = f"/wheels/{ours.name}"
        pip = [PYTHON, "-m", "pip", "install", *_OFFLINE]
        # Eager: what an earlier run installed is replaced by what this one fetched.
        root.run([*pip, "--upgrade", "--upgrade-strategy", "eager", inside, *_TEST_TOOLS])
        root.run([*pip, "--force-reinstall", "--no-deps", inside])
