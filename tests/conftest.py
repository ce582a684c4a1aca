"""What every folder of tests shares: where the checkout is, and how hypothesis behaves here."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

# No deadline: the machines that run this are small and busy, and a test asserts no times.
settings.register_profile("qtl", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("qtl")

_ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="session")
def repo_root() -> Path:
    """The checkout: the folder that holds pyproject.toml."""
    return _ROOT


@pytest.fixture(scope="session")
def source_env() -> dict[str, str]:
    """The environment for a Python subprocess that sees this checkout, installed or not."""
    folders = [str(_ROOT), str(_ROOT / "export"), str(_ROOT / "training")]
    inherited = [p for p in os.environ.get("PYTHONPATH", "").split(os.pathsep) if p]
    return {**os.environ, "PYTHONPATH": os.pathsep.join(folders + inherited)}
