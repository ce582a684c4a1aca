"""The rooms of the project and who may enter them: the one table the house tests read."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

# A room is an import prefix; the longest prefix that fits wins, so qtl_core.nn is its own room.
ROOMS = {
    "qtl_core": "qtl_core",
    "qtl_core.nn": "qtl_core/nn",
    "edge_runtime": "edge_runtime",
    "server_runtime": "server_runtime",
    "qtl_export": "export/qtl_export",
    "qtl_training": "training/qtl_training",
}

# room -> other rooms it may import. Nothing imports qtl_export or qtl_training.
MAY_IMPORT = {
    "qtl_core": set[str](),
    "qtl_core.nn": {"qtl_core"},
    "edge_runtime": {"qtl_core"},
    "server_runtime": {"qtl_core", "qtl_core.nn"},
    "qtl_export": {"qtl_core", "qtl_core.nn", "edge_runtime"},
    "qtl_training": {"qtl_core", "qtl_core.nn", "edge_runtime", "server_runtime"},
}

_NN = {"torch", "transformers", "safetensors", "tokenizers", "huggingface_hub"}
_EXPORT = {"onnx", "onnxscript", "onnx_ir", "optimum"}
_TRAIN = {"sklearn", "scipy", "tqdm", "matplotlib", "tomli", "tensorboard", "peft"}
_BENCH = {"vector_quantize_pytorch", "zstandard"}

# room -> third parties it may import, lazily or not, beside the standard library.
THIRD_PARTIES = {
    "qtl_core": {"numpy", "msgspec", "zmq"},
    "qtl_core.nn": {"numpy", "msgspec", "zmq"} | _NN,
    # tokenizers is the [text] extra: only for text = "codes", imported when a question is coded.
    "edge_runtime": {"numpy", "msgspec", "zmq", "onnxruntime", "PIL", "click", "tokenizers"},
    "server_runtime": {"numpy", "msgspec", "zmq", "click"} | _NN,
    "qtl_export": {"numpy", "msgspec", "zmq", "click", "PIL", "onnxruntime", "tqdm"} | _NN | _EXPORT,
    "qtl_training": {"numpy", "msgspec", "zmq", "click", "PIL"} | _NN | _TRAIN | _BENCH,
}

# What a device never has installed. The import test makes these impossible to import.
NOT_ON_DEVICE = frozenset({*_NN, *_EXPORT, *_TRAIN, *_BENCH, "server_runtime", "qtl_export", "qtl_training"})


@dataclass(frozen=True, kw_only=True)
class Import:
    """One import statement: `path:line` imports `module`; `names` are what `from module import` takes."""

    path: Path
    line: int
    module: str
    names: tuple[str, ...]


def modules_of(room: str, root: Path) -> Iterator[tuple[str, Path]]:
    """Dotted name and file of every module in a room (sub-rooms are rooms of their own)."""
    folder = root / ROOMS[room]
    below = [root / other for name, other in ROOMS.items() if name.startswith(room + ".")]
    for path in sorted(folder.rglob("*.py")):
        if any(path.is_relative_to(other) for other in below):
            continue
        parts = path.relative_to(folder).with_suffix("").parts
        if parts and parts[-1] == "__init__":
            parts = parts[:-1]
        yield ".".join([room, *parts]), path


def imports_of(module: str, path: Path) -> Iterator[Import]:
    """Every import in a file, lazy and type-checking ones too; relative ones made absolute."""
    package = module.split(".") if path.name == "__init__.py" else module.split(".")[:-1]
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield Import(path=path, line=node.lineno, module=alias.name, names=())
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            source = ".".join([*base, node.module] if node.module else base)
            yield Import(path=path, line=node.lineno, module=source, names=tuple(a.name for a in node.names))


def room_of(module: str) -> str | None:
    """The room a dotted name lies in; None for third parties and the standard library."""
    fitting = [room for room in ROOMS if module == room or module.startswith(room + ".")]
    return max(fitting, key=len, default=None)


def rooms_entered(statement: Import) -> set[str]:
    """The rooms one statement reaches: `from qtl_core import nn` enters qtl_core.nn, not only qtl_core."""
    targets = [f"{statement.module}.{name}" for name in statement.names] or [statement.module]
    return {room for target in targets if (room := room_of(target)) is not None}
