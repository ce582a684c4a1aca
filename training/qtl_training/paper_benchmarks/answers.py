"""The folder of one run: its answers as they come, so that a killed run goes on where it was.

    OUTPUT/
      run.json          whose answers these are: benchmark, bundle, questions
      answers.jsonl     a line for each answer, in the form of TinyLLaVA Factory's answer files

A line is written in one piece as soon as its answer is there; a kill can only cut the last one, which is
asked again. One process at a time holds the folder.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO, Final

import msgspec

from qtl_core.errors import BenchmarkError, StorageError

from .benchmark import Question

RUN: Final = "run.json"
ANSWERS: Final = "answers.jsonl"


class RunIdentity(msgspec.Struct, frozen=True, kw_only=True):
    """What must agree for a run to go on.

    Attributes:
        benchmark: its name.
        fingerprint: of the bundle.
        questions: SHA-256 of the questions and the names of their pictures, in hexadecimal.
        max_tokens: asked for, of an answer.
    """

    benchmark: str
    fingerprint: str
    questions: str
    max_tokens: int


class Cost(msgspec.Struct, frozen=True, kw_only=True):
    """What one answer cost; it stands in the line's ``metadata``.

    Attributes:
        index: place of the question in its file, from 0.
        finish: "stop", "length" (cut short) or "refused".
        refused: the server's reason where it refused the question; its answer is then empty.
        payload_bytes: of the picture's payload.
        bytes_up: of the question's messages, framing included.
        bytes_down: of the answer's.
    """

    index: int
    finish: str
    refused: str = ""
    payload_bytes: int = 0
    bytes_up: int = 0
    bytes_down: int = 0


class AnswerLine(msgspec.Struct, frozen=True, kw_only=True):
    """One line of the answer file."""

    question_id: str | int
    prompt: str
    text: str
    answer_id: str
    model_id: str
    metadata: Cost


def digest(questions: Sequence[Question]) -> str:
    """SHA-256 of what is asked, and about which pictures, in hexadecimal."""
    state = hashlib.sha256()
    for question in questions:
        picture = question.picture.name if question.picture is not None else None
        state.update(msgspec.json.encode((question.id, question.text, picture)) + b"\n")
    return state.hexdigest()


class AnswerFile:
    """The answers of one run; made by ``open_answers``.

    Attributes:
        lines: by the place of the question in its file.
    """

    def __init__(self, path: Path, questions: Sequence[Question]) -> None:
        self._path, self._questions = path, questions
        self.lines: dict[int, AnswerLine] = {}
        self._recover()

    def append(self, line: AnswerLine) -> None:
        """Writes one answer; it survives a kill of this process from here on.

        Raises:
            StorageError: the disk is full or the folder went away.
        """
        try:
            with self._path.open("ab", buffering=0) as file:
                _write(file, msgspec.json.encode(line) + b"\n")
        except OSError as error:
            raise StorageError(f"cannot write {self._path}: {error.strerror}; free some space") from error
        self.lines[line.metadata.index] = line

    def sort(self) -> None:
        """Puts the lines into the order of the questions, which published scorers count on.

        Raises:
            StorageError: the disk is full or the folder went away.
        """
        lines = (msgspec.json.encode(self.lines[index]) + b"\n" for index in sorted(self.lines))
        write_whole(self._path, b"".join(lines))

    def _recover(self) -> None:
        data = self._path.read_bytes() if self._path.exists() else b""
        whole = data[: data.rfind(b"\n") + 1]
        for number, row in enumerate(whole.splitlines(), 1):
            where = f"{self._path} line {number}"
            try:
                line = msgspec.json.decode(row, type=AnswerLine)
            except msgspec.MsgspecError as error:
                raise BenchmarkError(
                    f"{where} is no answer of this command ({error}); delete the folder or name another with "
                    "--output"
                ) from error
            index = line.metadata.index
            if not 0 <= index < len(self._questions) or self._questions[index].id != line.question_id:
                raise BenchmarkError(
                    f"{where} answers question {line.question_id!r}, which is not number {index} of this "
                    "benchmark; delete the folder or name another with --output"
                )
            self.lines[index] = line
        if len(whole) < len(data):
            os.truncate(self._path, len(whole))


@contextmanager
def open_answers(folder: Path, identity: RunIdentity, questions: Sequence[Question]) -> Iterator[AnswerFile]:
    """Opens the folder of a run, makes it if it is new, and keeps others out.

    Args:
        folder: of the run.
        identity: whose answers belong in it.
        questions: of the benchmark.

    Raises:
        BenchmarkError: it holds answers of another run, damaged ones, or is in use.
        StorageError: it cannot be made or written.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        held = (folder / RUN).open("a+b")
    except OSError as error:
        raise StorageError(
            f"cannot make the folder {folder}: {error.strerror}; name another with --output"
        ) from error
    with held:
        try:
            fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise BenchmarkError(f"another qtl-eval is at work in {folder}; wait for it") from error
        _check(held, folder, identity)
        yield AnswerFile(folder / ANSWERS, questions)


def write_whole(path: Path, data: bytes) -> None:
    """Writes a file in one step: it is there whole, or as it was.

    Raises:
        StorageError: the disk is full or the folder not writable.
    """
    fresh = path.with_name(path.name + ".new")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        fresh.write_bytes(data)
        os.replace(fresh, path)
    except OSError as error:
        raise StorageError(
            f"cannot write {path}: {error.strerror}; free some space or name another folder"
        ) from error


def _check(held: BinaryIO, folder: Path, identity: RunIdentity) -> None:
    held.seek(0)
    data = held.read()
    if not data:
        # A kill before the first byte leaves it empty, and then no answer either.
        if (folder / ANSWERS).exists():
            raise BenchmarkError(
                f"{folder / ANSWERS} is of another program; name another folder with --output"
            )
        _write(held, msgspec.json.format(msgspec.json.encode(identity), indent=2) + b"\n")
        held.flush()
        return
    try:
        found = msgspec.json.decode(data, type=RunIdentity)
    except msgspec.MsgspecError as error:
        raise BenchmarkError(f"{folder / RUN} is damaged ({error}); delete the folder {folder}") from error
    for field in RunIdentity.__struct_fields__:
        here, there = getattr(identity, field), getattr(found, field)
        if here != there:
            raise BenchmarkError(
                f"{folder} holds answers of another run: {field} is {there}, and now {here}; "
                "name another folder with --output"
            )


def _write(file: BinaryIO, data: bytes) -> None:
    left = memoryview(data)
    while left:
        left = left[file.write(left) :]
