"""The wheel that the slow tests install, built once."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.house import environments


@pytest.fixture(scope="session")
def wheel(repo_root: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel of this checkout."""
    return environments.build_wheel(repo_root, tmp_path_factory.mktemp("wheel"))
