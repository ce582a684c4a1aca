"""Weight files of a checkpoint, read one tensor at a time: safetensors or PyTorch's own, whole or in shards.

A model is built without memory for its parameters (``without_weights``) and then filled, at once or part by
part (``stored``). What a file lacks, and what it has that the model has no place for, is named. PyTorch's
files are pickles: they are read with ``weights_only``, so one that holds anything but tensors is refused,
never run.
"""

from __future__ import annotations

import math
import pickle
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from qtl_core.errors import CheckpointError
from qtl_core.nn.reading import first_line, read_json
from qtl_core.nn.stored import PIECE, Source, load_from, note

SAFETENSORS = "model.safetensors"
PICKLED = "pytorch_model.bin"
_STORED = (torch.float32, torch.float16, torch.bfloat16, torch.float64)
_POINTER = b"version https://git-lfs"
_BUFFERS = ("rotary_emb.inv_freq", "position_ids")  # older files hold what is computed anew
_NAMED = 3
_KEPT = 32 << 20  # bytes read after which files are opened anew

Places = Callable[[str], str | None]
"""From a tensor's name in a file to "PART.NAME" in the model; None where the model has no place for it."""


class Weights(Mapping[str, Tensor]):
    """The tensors of a folder by name; each is read from its file when it is asked for.

    Files are mapped into memory, and what was read of a mapped file counts as memory until the file is
    closed: so they are opened anew every ``_KEPT`` bytes. Tensors that were handed out keep theirs.

    Args:
        folder: where ``model.safetensors`` or ``pytorch_model.bin`` is, or their shards with an index.

    Raises:
        CheckpointError: no weights, a shard that is missing or cut short, a pickle that holds code.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._files: dict[str, Path] = {}
        self._opened: dict[Path, Any] = {}
        self._unmapped: set[Path] = set()
        self._since_opened = 0
        for file, names in _files(folder).items():
            found = self._open(file).keys()
            lost = sorted(names - set(found))
            if lost:
                raise CheckpointError(
                    f"{file} lacks {_some(lost)}, which its index says it has; download it again"
                )
            self._files |= dict.fromkeys(found, file)

    def __getitem__(self, name: str) -> Tensor:
        opened = self._open(self._files[name])
        tensor: Tensor = opened[name] if isinstance(opened, dict) else opened.get_tensor(name)
        return self._count(tensor)

    def __iter__(self) -> Iterator[str]:
        return iter(self._files)

    def __len__(self) -> int:
        return len(self._files)

    def shape(self, name: str) -> tuple[int, ...]:
        """Shape of a tensor, without reading it."""
        source = self._source(name)
        return tuple(source.shape if isinstance(source, Tensor) else source.get_shape())

    def dtype(self, name: str) -> torch.dtype:
        """Type a tensor is stored in, without reading it."""
        source = self._source(name)
        if isinstance(source, Tensor):
            return source.dtype
        none: Tensor = source[0:0] if source.get_shape() else self[name]
        return none.dtype

    def pieces(self, name: str) -> Iterator[Tensor]:
        """A tensor as consecutive blocks of rows, each of which is of use until the next one is asked for."""
        shape = self.shape(name)
        if not shape or not math.prod(shape):
            yield self[name]
            return
        rows = max(1, PIECE * shape[0] // (math.prod(shape) * self.dtype(name).itemsize))
        for start in range(0, shape[0], rows):
            yield self._count(self._source(name)[start : start + rows])

    def _source(self, name: str) -> Any:
        """What has the tensor's shape and type, and its rows by index; reads nothing."""
        opened = self._open(self._files[name])
        return opened[name] if isinstance(opened, dict) else opened.get_slice(name)

    def _open(self, file: Path) -> Any:
        """An open safetensors file, or the named tensors of a mapped one of PyTorch."""
        if self._since_opened > _KEPT:
            self._opened = {one: opened for one, opened in self._opened.items() if one in self._unmapped}
            self._since_opened = 0
        if file not in self._opened:
            if file.suffix == ".safetensors":
                self._opened[file] = _open_safetensors(file)
            else:
                self._opened[file], mapped = _open_pickled(file)
                self._unmapped |= set() if mapped else {file}
        return self._opened[file]

    def _count(self, tensor: Tensor) -> Tensor:
        self._since_opened += tensor.nbytes
        return tensor


def fill(
    parts: Mapping[str, nn.Module],
    weights: Mapping[str, Weights],
    places: Mapping[str, Places],
    *,
    unused: Callable[[str], bool] = lambda place: False,
    load: bool = True,
) -> None:
    """Fills modules that were built without weights, in float32.

    Args:
        parts: the modules by the name of the part; tied parameters are filled once, under the names that the
            files have.
        weights: files by any key.
        places: for each key of ``weights``, where its tensors belong.
        unused: whether a place is of no use to the model, so that its tensor may be there.
        load: whether to read the tensors; without, names, shapes and types are checked and it is noted where
            the tensors lie, for ``stored.load_weights``.

    Raises:
        CheckpointError: tensors that are missing, have no place, another shape, or are stored in a type that
            is no plain floating-point one.
    """
    found: dict[str, tuple[Weights, str]] = {}
    extra: list[str] = []
    folder = next(iter(weights.values())).folder
    wanted = {f"{part}.{name}": tensor for part, module in parts.items() for name, tensor in _own(module)}
    for key, files in weights.items():
        for name in files:
            place = places[key](name)
            if place is not None and place in wanted:
                found[place] = files, name
            elif not name.endswith(_BUFFERS) and (place is None or not unused(place)):
                extra.append(name)
    missing = sorted(wanted.keys() - found.keys() - _tied(parts, found.keys()))
    if missing:
        raise CheckpointError(
            f"checkpoint {folder} lacks {_some(missing)} of the model that its config.json describes; is the "
            "download complete?"
        )
    if extra:
        raise CheckpointError(
            f"checkpoint {folder} has {_some(sorted(extra))}, for which the model that its config.json "
            "describes has no place"
        )
    for part, module in parts.items():
        chosen = {place: source for place, source in found.items() if place.startswith(f"{part}.")}
        for place, (files, name) in chosen.items():
            _check(files, name, wanted[place])
        sources = {place.removeprefix(f"{part}."): Source(*source) for place, source in chosen.items()}
        if load:
            load_from(module, sources)
        else:
            note(module, sources)


@contextmanager
def without_weights() -> Iterator[None]:
    """Modules built inside have parameters without memory, and buffers as usual."""
    register = nn.Module.register_parameter

    def register_on_meta(module: nn.Module, name: str, parameter: nn.Parameter | None) -> None:
        register(module, name, parameter)
        # One that is there already is being tied: it must stay the same object.
        if parameter is not None and not parameter.is_meta:
            module._parameters[name] = nn.Parameter(parameter.to("meta"), parameter.requires_grad)

    nn.Module.register_parameter = register_on_meta  # type: ignore[method-assign, assignment]
    try:
        yield
    finally:
        nn.Module.register_parameter = register  # type: ignore[method-assign]


def _own(module: nn.Module) -> list[tuple[str, Tensor]]:
    return list(module.state_dict(keep_vars=True).items())


def _tied(parts: Mapping[str, nn.Module], found: Any) -> set[str]:
    """Places that share their parameter with one that was found."""
    shared: dict[int, list[str]] = {}
    for part, module in parts.items():
        for name, tensor in _own(module):
            shared.setdefault(id(tensor), []).append(f"{part}.{name}")
    return {place for group in shared.values() if set(group) & set(found) for place in group}


def _check(weights: Weights, name: str, wanted: Tensor) -> None:
    if weights.shape(name) != tuple(wanted.shape):
        raise CheckpointError(
            f"checkpoint {weights.folder}: {name} is {list(weights.shape(name))}, its config.json asks for "
            f"{list(wanted.shape)}"
        )
    dtype = weights.dtype(name)
    if wanted.is_floating_point() and dtype not in _STORED:
        kind = str(dtype).removeprefix("torch.")
        raise CheckpointError(
            f"checkpoint {weights.folder}: {name} is stored as {kind}; give the checkpoint in float32, "
            "float16 or bfloat16, not one that is quantized already"
        )


def _files(folder: Path) -> dict[Path, set[str]]:
    """Weight files of a folder, each with the names that an index says it has."""
    for whole in (SAFETENSORS, PICKLED):
        index = folder / f"{whole}.index.json"
        if (folder / whole).is_file():
            return {folder / whole: set()}
        if not index.is_file():
            continue
        named = read_json(index).get("weight_map")
        if not isinstance(named, dict) or not named:
            raise CheckpointError(f"{index} has no weight_map; download it again")
        files: dict[Path, set[str]] = {}
        for name, file in named.items():
            if not isinstance(file, str) or Path(file).name != file or file in ("", ".."):
                raise CheckpointError(f"{index} names the file {file!r}, which is not one beside it")
            files.setdefault(folder / file, set()).add(name)
        lost = sorted(file.name for file in files if not file.is_file())
        if lost:
            raise CheckpointError(
                f"checkpoint {folder} lacks {len(lost)} of {len(files)} shards: {_some(lost)}; is the "
                "download complete?"
            )
        return files
    raise CheckpointError(
        f"checkpoint {folder} has no {SAFETENSORS} (nor shards of it); is the download complete?"
    )


def _open_safetensors(file: Path) -> Any:
    try:
        return safe_open(str(file), framework="pt")
    except (OSError, SafetensorError) as error:
        raise _broken(file, error) from error


def _open_pickled(file: Path) -> tuple[dict[str, Tensor], bool]:
    """The tensors of a file, and whether it is mapped; one that cannot be lies in memory as a whole."""
    mapped = True
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about the pickle's version; what cannot be read is said below
            try:
                loaded = torch.load(file, map_location="cpu", weights_only=True, mmap=True)
            except RuntimeError:  # a file of before 2020, or a broken one
                mapped = False
                loaded = torch.load(file, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise CheckpointError(
            f"{file} is refused: it is no file of plain tensors, and what else a pickle holds is code; get "
            "the checkpoint as safetensors"
        ) from error
    except Exception as error:  # damaged bytes make the reader raise nearly anything
        raise _broken(file, error) from error
    if not isinstance(loaded, dict) or not all(isinstance(value, Tensor) for value in loaded.values()):
        raise CheckpointError(
            f"{file} holds something else than named tensors; get the checkpoint as safetensors"
        )
    return loaded, mapped


def _broken(file: Path, error: Exception) -> CheckpointError:
    with file.open("rb") as stream:
        if stream.read(len(_POINTER)) == _POINTER:
            return CheckpointError(f"{file} is only a Git LFS pointer; fetch the file itself (git lfs pull)")
    return CheckpointError(
        f"{file} cannot be read: {first_line(error)}; it is damaged or half-downloaded, download it again"
    )


def _some(names: list[str]) -> str:
    more = len(names) - _NAMED
    return ", ".join(names[:_NAMED]) + (f" and {more} more" if more > 0 else "")
