"""Files of a benchmark's folder as they were published: JSON lines, JSON documents, folders of pictures."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from qtl_core.errors import BenchmarkError

_SHOWN = 60


@dataclass(frozen=True)
class Record:
    """One question, problem or annotation of a file.

    Attributes:
        where: file and line or entry, for messages.
        fields: what stands there.
    """

    where: str
    fields: dict[str, Any]

    def text(self, key: str) -> str:
        """A text that is not empty.

        Raises:
            BenchmarkError: missing, no text, or empty.
        """
        value = self.fields.get(key)
        if not isinstance(value, str) or not value.strip():
            raise self.wrong(key, "a text")
        return value

    def identity(self, key: str) -> str | int:
        """A text or an integer that names something.

        Raises:
            BenchmarkError: missing, or of another type.
        """
        value = self.fields.get(key)
        if isinstance(value, bool) or not isinstance(value, str | int):
            raise self.wrong(key, "a text or a whole number")
        return value

    def texts(self, key: str) -> list[str]:
        """A list of texts, at least one.

        Raises:
            BenchmarkError: missing, empty, or holding something else.
        """
        value = self.fields.get(key)
        if not isinstance(value, list) or not value or not all(isinstance(item, str) for item in value):
            raise self.wrong(key, "a list of texts")
        return value

    def picture(self, folder: Path, key: str = "image") -> Path:
        """The path of a picture below ``folder``; whether it is there is checked for all at once.

        Raises:
            BenchmarkError: missing, or a path that leads out of the folder.
        """
        name = PurePosixPath(self.text(key))
        if name.is_absolute() or ".." in name.parts:
            raise self.wrong(key, "a path inside the picture folder")
        return folder / name

    def wrong(self, key: str, wanted: str) -> BenchmarkError:
        """The error for a field that does not fit."""
        found = repr(self.fields[key]) if key in self.fields else "missing"
        found = found if len(found) <= _SHOWN else found[:_SHOWN] + "..."
        return BenchmarkError(f"{self.where}: {key!r} is {found}, it should be {wanted}")


def need_folder(folder: Path, name: str) -> Path:
    """``folder`` itself, if it is one.

    Raises:
        BenchmarkError: it is not.
    """
    if not folder.is_dir():
        raise BenchmarkError(f"there is no folder {folder}; give the one with the files of {name}")
    return folder


def find(folder: Path, *names: str) -> Path:
    """The first of ``names`` that is in the folder.

    Raises:
        BenchmarkError: none is; the message has the first, and where the layout is described.
    """
    for name in names:
        if (folder / name).exists():
            return folder / name
    raise BenchmarkError(f"{folder / names[0]} is missing; docs/benchmarks.md lists the files that go there")


def json_lines(path: Path) -> list[Record]:
    """Every line of a file as an object; blank lines are skipped.

    Raises:
        BenchmarkError: unreadable, no line at all, or a line that is no JSON object; its number is named.
    """
    records = []
    for number, line in enumerate(_bytes(path).split(b"\n"), 1):
        if line.strip():
            where = f"{path} line {number}"
            records.append(Record(where, _object(where, line)))
    if not records:
        raise BenchmarkError(f"{path} is empty; download it again")
    return records


def json_entries(path: Path, key: str | None = None) -> list[Record]:
    """Every entry of the list in a JSON document, or of the list that it has under ``key``.

    Raises:
        BenchmarkError: unreadable, no such list, or an entry that is no object; its number is named.
    """
    entries = _json(str(path), _bytes(path))
    if key is not None:
        entries = entries.get(key) if isinstance(entries, dict) else None
    if not isinstance(entries, list) or not entries:
        raise BenchmarkError(
            f"{path} has no list of entries{f' under {key!r}' if key else ''}; download it again"
        )
    records = []
    for number, entry in enumerate(entries, 1):
        if not isinstance(entry, dict):
            raise BenchmarkError(f"{path} entry {number}: a JSON object should stand there")
        records.append(Record(f"{path} entry {number}", entry))
    return records


def json_object(path: Path) -> Record:
    """A JSON document that is one object.

    Raises:
        BenchmarkError: unreadable, or something else.
    """
    return Record(str(path), _object(str(path), _bytes(path)))


def text_lines(path: Path) -> list[str]:
    """The lines of a text file that are not blank.

    Raises:
        BenchmarkError: unreadable, or no UTF-8.
    """
    try:
        text = _bytes(path).decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise BenchmarkError(f"{path} is no UTF-8 text ({error}); download it again") from error
    return [line for line in text.splitlines() if line.strip()]


def check_pictures(pictures: Sequence[tuple[str, Path]]) -> None:
    """Makes sure that every picture is there before the first question is asked.

    Args:
        pictures: for each question with a picture, where it stands in its file and the picture's path.

    Raises:
        BenchmarkError: one is missing; the message has the first, its line, and how many more there are.
    """
    there: dict[Path, bool] = {}
    missing: dict[Path, str] = {}
    for where, path in pictures:
        if path not in there:
            there[path] = path.is_file()
        if not there[path]:
            missing.setdefault(path, where)
    if missing:
        path, where = next(iter(missing.items()))
        more = f", and {len(missing) - 1} more are missing" if len(missing) > 1 else ""
        raise BenchmarkError(f"the picture {path} of {where} is missing{more}; download the pictures again")


def _bytes(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise BenchmarkError(f"cannot read {path}: {error.strerror}") from error


def _object(where: str, data: bytes) -> dict[str, Any]:
    value = _json(where, data)
    if not isinstance(value, dict):
        raise BenchmarkError(f"{where}: a JSON object should stand there")
    return value


def _json(where: str, data: bytes) -> Any:
    try:
        return json.loads(data)
    except ValueError as error:  # broken JSON and broken UTF-8 alike
        raise BenchmarkError(f"{where} is no JSON ({error}); download the file again") from error
    except RecursionError as error:
        raise BenchmarkError(f"{where} is nested too deeply; download the file again") from error
