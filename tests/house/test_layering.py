"""Imports point one way: each room imports only the rooms and third parties the table allows."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from tests.house import rooms


@pytest.mark.parametrize("room", rooms.ROOMS)
def test_room_imports_only_what_it_may(room: str, repo_root: Path) -> None:
    allowed_rooms = rooms.MAY_IMPORT[room] | {room}
    allowed_parties = rooms.THIRD_PARTIES[room] | set(sys.stdlib_module_names)
    wrong = []
    for module, path in rooms.modules_of(room, repo_root):
        for statement in rooms.imports_of(module, path):
            entered = rooms.rooms_entered(statement)
            top = statement.module.partition(".")[0]
            if entered - allowed_rooms or (not entered and top not in allowed_parties):
                wrong.append(f"{path.relative_to(repo_root)}:{statement.line} imports {statement.module}")
    assert not wrong, f"{room} may not: " + "; ".join(wrong)


@pytest.mark.parametrize("room", rooms.ROOMS)
def test_room_has_modules_and_is_typed(room: str, repo_root: Path) -> None:
    folder = repo_root / rooms.ROOMS[room]
    assert list(rooms.modules_of(room, repo_root)), f"{folder} is empty"
    top = repo_root / rooms.ROOMS[room.partition(".")[0]]
    assert (top / "py.typed").is_file(), f"{top} has no py.typed"


def test_table_forbids_what_design_forbids() -> None:
    for room, allowed in rooms.MAY_IMPORT.items():
        assert not allowed & {"qtl_export", "qtl_training"}, room
    for room in ("qtl_core", "edge_runtime"):
        assert "qtl_core.nn" not in rooms.MAY_IMPORT[room]
        assert not rooms.THIRD_PARTIES[room] & {"torch", "transformers", "onnx", "safetensors"}


def test_reader_of_imports_sees_lazy_relative_and_from_imports(tmp_path: Path) -> None:
    file = tmp_path / "module.py"
    file.write_text("from qtl_core import nn\ndef f():\n    import torch.nn\n    from . import codes\n")
    found = list(rooms.imports_of("qtl_core.module", file))
    assert {s.module for s in found} == {"qtl_core", "torch.nn"}
    assert set().union(*(rooms.rooms_entered(s) for s in found)) == {"qtl_core", "qtl_core.nn"}
