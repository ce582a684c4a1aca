"""The device's modules import where PyTorch, transformers, onnx and the rest do not exist."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.house import rooms

# Runs in a fresh interpreter, so that nothing an earlier test imported can hide a missing import.
_PROGRAM = """
import importlib, sys

class Block:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in BLOCKED or name == "qtl_core.nn":
            raise ModuleNotFoundError(f"{name} is not on the device", name=name)
        return None

sys.meta_path.insert(0, Block())
for module in MODULES:
    importlib.import_module(module)
loaded = [m for m in sys.modules if m.partition(".")[0] in BLOCKED]
assert not loaded, loaded
"""


def _device_modules(root: Path) -> list[str]:
    names = [name for room in ("qtl_core", "edge_runtime") for name, _ in rooms.modules_of(room, root)]
    # __main__ is the program itself: importing it would run it.
    return [name for name in names if not name.endswith(".__main__")]


def test_device_modules_import_on_a_device(repo_root: Path, source_env: dict[str, str]) -> None:
    modules = _device_modules(repo_root)
    assert "qtl_core.codes" in modules and "edge_runtime.client" in modules
    program = f"BLOCKED = set({sorted(rooms.NOT_ON_DEVICE)!r})\nMODULES = {modules!r}\n{_PROGRAM}"
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", program],
        env=source_env, capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr


def test_block_works(repo_root: Path, source_env: dict[str, str]) -> None:
    """The test above would pass vacuously if its block let things through."""
    program = f"BLOCKED = {{'json'}}\nMODULES = ['json.tool']\n{_PROGRAM}"
    done = subprocess.run(
        [sys.executable, "-c", program],
        env=source_env,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode != 0
    assert "json is not on the device" in done.stderr


@pytest.mark.skipif(os.environ.get("QTL_TIER") != "bare", reason="only the bare tier promises their absence")
@pytest.mark.parametrize("name", ["torch", "transformers", "onnx", "safetensors", "tokenizers", "sklearn"])
def test_bare_tier_has_none_of_it(name: str) -> None:
    assert importlib.util.find_spec(name) is None


# Each anew, but for what is not ours: a module that can only be imported after another one is a trap.
_EACH_FIRST = """
import importlib, sys
for module in MODULES:
    for name in [name for name in sys.modules if name.startswith("qtl_core")]:
        del sys.modules[name]
    importlib.import_module(module)
"""


def test_every_module_of_the_model_imports_first(repo_root: Path, source_env: dict[str, str]) -> None:
    pytest.importorskip("torch", reason="the model needs PyTorch")
    modules = [name for name, _ in rooms.modules_of("qtl_core.nn", repo_root)]
    assert len(modules) > 20
    done = subprocess.run(
        [sys.executable, "-c", f"MODULES = {modules!r}\n{_EACH_FIRST}"],
        env=source_env, capture_output=True, text=True, timeout=300, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
