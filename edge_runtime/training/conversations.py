r"""People's own training data: conversations about pictures in LLaVA's JSON, read and checked. No PyTorch.

    [{"id": "7", "image": "kitchen.jpg", "conversations": [
        {"from": "human", "value": "<image>\nIs the oven on?"}, {"from": "gpt", "value": "No."}]}, ...]

or one such object on each line. ``image`` is a name in the picture folder, a list of names, or absent; a
human's text has a marker ``<image>`` for each picture, in their order.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, Final, Literal, NoReturn, TypeAlias

import msgspec

from qtl_core.crossing import MAX_WORDS, Row
from qtl_core.errors import QtlError, SampleError

MARKER: Final = "<image>"
"""Stands for a picture in a human's text."""

OnBad: TypeAlias = Literal["stop", "skip"]
Check: TypeAlias = Callable[["Conversation"], None]

_LEADING: Final = re.compile(rf"(?:\s*{MARKER})+[ \t]*\n?")


@dataclass(frozen=True)
class Conversation:
    """One sample.

    Attributes:
        index: its place in the file, from 0; of JSON lines without counting blank ones.
        id: as the file has it, or ``index``.
        pictures: their files, in the order in which they are shown; one may be there twice.
        turns: questions without markers, and answers; later ones see those before them.
        places: for each picture in which turn, and before which character of its question, it is shown.
        names: of the pictures, as the file has them.
    """

    index: int
    id: str
    pictures: tuple[Path, ...]
    turns: tuple[tuple[str, str], ...]
    places: tuple[tuple[int, int], ...]
    names: tuple[str, ...]

    def row(self, place_of: Mapping[Path, int]) -> Row:
        """As it crosses.

        Args:
            place_of: where in the micro-batch each picture is.
        """
        return Row(tuple(place_of[path] for path in self.pictures), self.turns, True, self.places)


@dataclass(frozen=True)
class Bad:
    """A sample that cannot be trained on: its index, and what is wrong with it in one line."""

    index: int
    why: str


@dataclass(frozen=True)
class Conversations:
    """What a file holds.

    Attributes:
        file: it.
        samples: those to train on, in the file's order; at least one.
        bad: those that were left out.
    """

    file: Path
    samples: tuple[Conversation, ...]
    bad: tuple[Bad, ...] = ()

    @property
    def pictures(self) -> tuple[Path, ...]:
        """Every picture once, in the order of their first samples."""
        return tuple(dict.fromkeys(path for sample in self.samples for path in sample.pictures))

    @property
    def digest(self) -> str:
        """32 hex digits that change with texts, order and names of pictures, not with where they lie."""
        state = hashlib.sha256()
        for one in self.samples:
            state.update(msgspec.msgpack.encode((one.names, one.turns, one.places)))
        return state.hexdigest()[:32]

    def checked(
        self,
        check: Check,
        on_bad: OnBad,
        follow: Callable[[Sequence[Conversation]], Iterable[Conversation]] = iter,
    ) -> Conversations:
        """Those of which ``check`` raises no ``QtlError``.

        Args:
            check: looks at one sample: that its pictures can be decoded, or its length.
            on_bad: what becomes of the others.
            follow: wraps the walk over the samples, for a progress bar.

        Raises:
            SampleError: the first bad one, under "stop"; or none is left.
        """
        kept, bad = [], list(self.bad)
        for sample in follow(self.samples):
            try:
                check(sample)
                kept.append(sample)
            except QtlError as error:
                _refuse(self.file, sample.index, sample.id, str(error), on_bad, bad)
        return _some(Conversations(self.file, tuple(kept), tuple(bad)))


def read_conversations(
    file: Path, folder: Path, *, on_bad: OnBad = "stop", most_pictures: int | None = None
) -> Conversations:
    """Reads a file of conversations. That pictures are there is checked, that they can be decoded is not.

    Args:
        file: a JSON list, or JSON lines.
        folder: that pictures are looked for in; no name leads out of it.
        on_bad: "stop" at the first sample that cannot be trained on, or "skip" those.
        most_pictures: that a sample may show.

    Raises:
        SampleError: the file cannot be read, a bad sample under "stop", or no sample is left.
    """
    if not folder.is_dir():
        raise SampleError(f"the picture folder {folder} is not there; name another one with --pictures")
    root = folder.resolve()
    samples: list[Conversation] = []
    bad: list[Bad] = []
    known: dict[str, Path] = {}
    for index, value in enumerate(_values(file)):
        name = ""
        try:
            if isinstance(value, _Broken):
                raise SampleError(f"line {value.line} is no JSON ({value.why})")
            if not isinstance(value, dict):
                raise SampleError(f"it is {_kind(value)}, and not an object")
            name = str(value.get("id", index))
            samples.append(_conversation(value, index, name, root, known, most_pictures))
        except SampleError as error:
            _refuse(file, index, name, str(error), on_bad, bad)
    return _some(Conversations(file, tuple(samples), tuple(bad)))


def _refuse(file: Path, index: int, name: str, why: str, on_bad: OnBad, bad: list[Bad]) -> None:
    named = f" (id {name!r})" if name and name != str(index) else ""
    if on_bad == "stop":
        raise SampleError(
            f"{file}, sample {index}{named}: {why}; correct it, or leave out what is bad with "
            "--on-bad-sample skip"
        )
    bad.append(Bad(index, f"sample {index}{named}: {why}"))


def _some(found: Conversations) -> Conversations:
    if not found.samples:
        first = f"; the first: {found.bad[0].why}" if found.bad else ""
        raise SampleError(f"{found.file} holds no sample that can be trained on{first}")
    return found


@dataclass(frozen=True)
class _Broken:
    line: int
    why: str


def _values(file: Path) -> Sequence[Any]:
    try:
        data = file.read_bytes()
    except OSError as error:
        raise SampleError(f"the samples {file} cannot be read: {error.strerror or error}") from error
    data = data.removeprefix(b"\xef\xbb\xbf")
    if data.lstrip()[:1] != b"[":
        lines = [(number, line) for number, line in enumerate(data.split(b"\n"), 1) if line.strip()]
        return [_value(number, line) for number, line in lines]
    try:
        values: list[Any] = msgspec.json.decode(data, type=list[Any])
    except (msgspec.MsgspecError, UnicodeError, RecursionError) as error:
        raise SampleError(
            f"{file} is no JSON ({error}); write it again, or one object on each line"
        ) from error
    return values


def _value(number: int, line: bytes) -> Any:
    try:
        return msgspec.json.decode(line)
    except (msgspec.MsgspecError, UnicodeError, RecursionError) as error:
        return _Broken(number, str(error))


def _conversation(
    value: dict[str, Any], index: int, name: str, root: Path, known: dict[str, Path], most: int | None
) -> Conversation:
    names = value.get("image")
    names = [] if names is None else [names] if isinstance(names, str) else names
    if not isinstance(names, list) or not all(isinstance(one, str) for one in names):
        raise SampleError(f'"image" is {_kind(value["image"])}, and neither a name nor a list of names')
    if most is not None and len(names) > most:
        raise SampleError(f"it shows {len(names)} pictures, and the recipe's max_pictures is {most}")
    turns, places = _turns(value.get("conversations"))
    if len(places) != len(names):
        raise SampleError(f"its texts have {len(places)} times {MARKER}, and it names {len(names)} pictures")
    for one in names:
        if one not in known:
            known[one] = _inside(root, one)
    return Conversation(
        index, name, tuple(known[one] for one in names), tuple(turns), tuple(places), tuple(names)
    )


def _turns(said: Any) -> tuple[list[tuple[str, str]], list[tuple[int, int]]]:
    if not isinstance(said, list) or not said:
        raise SampleError('"conversations" is missing, empty or no list')
    texts = [_said(one, "human" if number % 2 == 0 else "gpt") for number, one in enumerate(said)]
    if len(texts) % 2:
        raise SampleError("its last question has no answer")
    turns, places = [], []
    for number, (question, answer) in enumerate(zip(texts[::2], texts[1::2], strict=True)):
        if not answer.strip():
            raise SampleError(f"its question {number + 1} has an empty answer")
        if MARKER in answer:
            raise SampleError(f"its answer {number + 1} has a {MARKER}; pictures stand in questions only")
        text, offsets = _unmarked(question)
        if not text.strip() and not offsets:
            raise SampleError(f"its question {number + 1} is empty")
        turns.append((text, answer))
        places += [(number, offset) for offset in offsets]
    return turns, places


def _said(one: Any, who: str) -> str:
    if not isinstance(one, dict) or not isinstance(one.get("value"), str):
        raise SampleError('its "conversations" are not all objects with "from" and a text as "value"')
    if one.get("from") != who:
        raise SampleError(
            f'it has "from": {one.get("from")!r} where {who!r} is due; human and gpt take turns, human first'
        )
    text: str = one["value"]
    if len(text) > MAX_WORDS:
        raise SampleError(f"a text has {len(text)} characters, more than {MAX_WORDS}")
    return text


def _unmarked(text: str) -> tuple[str, list[int]]:
    """A human's text without its markers, and where they stood.

    Pictures at the front lose the line break behind them: the model's template puts there what it was trained
    with. A single picture at the end goes to the front, as LLaVA's own training has it.
    """
    if text.count(MARKER) == 1 and text.rstrip().endswith(MARKER):
        return text.replace(MARKER, "").strip(), [0]
    front = _LEADING.match(text)
    offsets: list[int] = []
    if front is not None:
        offsets = [0] * front.group().count(MARKER)
        text = text[front.end() :]
    pieces = text.split(MARKER)
    at = 0
    for piece in pieces[:-1]:
        at += len(piece)
        offsets.append(at)
    return "".join(pieces), offsets


def _inside(root: Path, name: str) -> Path:
    """The picture ``name`` in the folder ``root``, which is resolved."""
    parts = PurePosixPath(name).parts
    if not parts or ".." in parts or parts[0] == "/" or any(one in name for one in "\\:\0"):
        _outside(name)
    path = root.joinpath(*parts)
    try:
        resolved = path.resolve(strict=True)
    except (OSError, RuntimeError) as error:  # RuntimeError: links in a circle, before Python 3.13
        raise SampleError(f"there is no picture {name!r} in the folder {root}") from error
    if not resolved.is_relative_to(root):
        _outside(name)
    if not resolved.is_file():
        raise SampleError(f"the picture {name!r} is no file")
    return path


def _outside(name: str) -> NoReturn:
    raise SampleError(f"the picture {name!r} is not in the picture folder; names lead from there on, not out")


def _kind(value: Any) -> str:
    names = {dict: "an object", list: "a list", str: "a text", bool: "true or false", type(None): "null"}
    return names.get(type(value), "a number")
