"""The package itself: nothing happens at import, and what is shipped is found."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

import qtl_core
from qtl_core import shipped
from qtl_core.errors import CheckpointError


def test_everything_exported_is_there() -> None:
    for name in qtl_core.__all__:
        assert getattr(qtl_core, name) is not None
        assert name in dir(qtl_core)
    assert qtl_core.codes.pack([1], 2) == b"\1"
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        qtl_core.nothing  # noqa: B018


def test_importing_the_package_loads_nothing(repo_root: Path, source_env: dict[str, str]) -> None:
    code = (
        "import sys, qtl_core\nsys.exit(any(m in sys.modules for m in ('numpy', 'zmq', 'msgspec', 'torch')))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], env=source_env, cwd=repo_root, timeout=60, check=False
    )
    assert done.returncode == 0


def test_shipped_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    wheel, source = tmp_path / "shipped_digits", tmp_path / "examples"
    monkeypatch.setattr(shipped, "_PLACES", (wheel, source))
    with pytest.raises(CheckpointError, match="not in this install"):
        shipped.digits()
    with pytest.raises(CheckpointError, match="not in this install"):
        shipped.picture()
    for place in (source, wheel):
        place.mkdir()
        (place / "config.json").write_text("{}")
        (place / "scene.png").write_bytes(b"")
        assert shipped.digits() == place
        assert shipped.picture() == place / "scene.png"


def test_defaults_are_local() -> None:
    assert qtl_core.sockets.is_loopback(shipped.SERVER)
    assert not Path(shipped.BUNDLE).is_absolute()
