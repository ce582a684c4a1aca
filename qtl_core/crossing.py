"""What crosses the cut in a step, as payloads: codes or features with texts up, gradients down."""

from __future__ import annotations

import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Final

import msgspec
import numpy as np
from numpy.typing import NDArray

from qtl_core import codes as packing
from qtl_core import entropy
from qtl_core.codes import Codes
from qtl_core.entropy import Tables
from qtl_core.entropy_file import read_tables, tables_name
from qtl_core.errors import CodeError, MalformedMessage
from qtl_core.messages import CODEC_FLOAT16, CODEC_PACKED, CODEC_RANS, Frame
from qtl_core.wire import frame_codes

Crossed = NDArray[np.uint8] | NDArray[np.float16]

VALUES: Final = "v"
TEXTS: Final = "t"
GRADIENT: Final = "g"
WEIGHTS: Final = "w"
OUTPUTS: Final = "o"
MAX_TEXT: Final = 1 << 24
"""Bytes of a micro-batch's texts before compression."""
MAX_WORDS: Final = 1 << 16
"""Characters of a question or an answer."""

_Words = Annotated[str, msgspec.Meta(max_length=MAX_WORDS)]
_Place = Annotated[int, msgspec.Meta(ge=0, lt=1 << 16)]


class Row(msgspec.Struct, frozen=True, array_like=True):
    """Pictures and what is asked about them.

    Attributes:
        pictures: which of the micro-batch's, in the order in which the prompt shows them.
        turns: questions and answers.
        joined: one conversation, whose later turns see earlier ones; otherwise each question stands alone
            behind the one picture.
        places: of a conversation, for each picture in which turn and before which character of its question
            it is shown.
    """

    pictures: tuple[_Place, ...]
    turns: tuple[tuple[_Words, _Words], ...]
    joined: bool = False
    places: tuple[tuple[_Place, Annotated[int, msgspec.Meta(ge=0, le=MAX_WORDS)]], ...] = ()


@dataclass(frozen=True)
class MicroBatch:
    """One micro-batch.

    Attributes:
        pictures: which pictures, indices into the data's.
        rows: what is asked about them.
    """

    pictures: tuple[int, ...]
    rows: tuple[Row, ...]


_ROWS = msgspec.msgpack.Decoder(tuple[Row, ...])


class Crossing:
    """How what crosses is coded, the same on both sides.

    Args:
        tables: of the entropy coder by level count, where the checkpoint brings them.
        shape: of one picture's codes: coded tokens, code_dim.
        features: of one picture's features: tokens, width.
    """

    def __init__(
        self, tables: Mapping[int, Tables], shape: tuple[int, int], features: tuple[int, int]
    ) -> None:
        self._tables, self._shape, self._features = tables, shape, features

    @classmethod
    def of(
        cls, folder: Path | None, levels: Sequence[int], shape: tuple[int, int], features: tuple[int, int]
    ) -> Crossing:
        """With the tables of a checkpoint's folder, as far as it has them."""
        found = {}
        for count in {*levels} - {0}:
            path = None if folder is None else folder / tables_name(count)
            if path is not None and path.is_file():
                tables = read_tables(path)
                if tables.channels == shape[1]:
                    found[count] = tables
        return cls(found, shape, features)

    def shape(self, levels: int) -> tuple[int, int]:
        """Of one picture: [coded tokens, code_dim], or [tokens, width] where ``levels`` is 0."""
        return self._shape if levels else self._features

    def largest(self, pictures: int) -> int:
        """Bytes of the largest payload in either direction for a micro-batch of so many pictures."""
        values = max(self._shape[0] * self._shape[1], self._features[0] * self._features[1])
        return max(4 * pictures * values, MAX_TEXT)

    def up(self, crossed: Crossed, levels: int) -> tuple[Frame, bytes]:
        """The payload of codes or features, in the shortest form there is."""
        if not levels:
            data = np.ascontiguousarray(crossed, "<f2").tobytes()
            return frame_codes(VALUES, data, codec=CODEC_FLOAT16), data
        data, codec = packing.pack(crossed, levels), CODEC_PACKED
        tables = self._tables.get(levels)
        if tables is not None:
            coded = entropy.encode(crossed, tables)
            if len(coded) < len(data):
                data, codec = coded, CODEC_RANS
        return frame_codes(VALUES, data, codec=codec), data

    def bits(self, codes: Codes, levels: int) -> float:
        """Bits that codes cost in full, about."""
        packed, tables = codes.size * packing.bits_of(levels), self._tables.get(levels)
        return packed if tables is None else min(packed, tables.bits(codes))

    def read(self, frame: Frame, data: bytes, levels: int, pictures: int) -> Crossed:
        """What ``up`` made, checked.

        Raises:
            CodeError: another codec, size or range, or a feature that is not finite.
        """
        shape = (pictures, *self.shape(levels))
        if not levels:
            if frame.codec != CODEC_FLOAT16 or len(data) != 2 * int(np.prod(shape)):
                raise CodeError(
                    f"{len(data)} bytes in codec {frame.codec} are no float16 features of shape {shape}"
                )
            features = np.frombuffer(data, "<f2").reshape(shape).astype(np.float16)
            if not np.isfinite(features).all():
                raise CodeError("a feature is not a finite number; nothing was learnt from this step")
            return features
        if frame.codec == CODEC_PACKED:
            return packing.unpack(data, levels, shape)
        tables = self._tables.get(levels)
        if frame.codec != CODEC_RANS or tables is None:
            raise CodeError(f"codes of {levels} levels came in codec {frame.codec}, which has no tables here")
        return entropy.decode(data, tables, shape)


def texts_up(rows: Sequence[Row]) -> tuple[Frame, bytes]:
    """The payload of questions and answers: msgpack, deflated."""
    data = zlib.compress(msgspec.msgpack.encode(rows), 9)
    return frame_codes(TEXTS, data), data


def questions_of(rows: Sequence[Row]) -> tuple[Row, ...]:
    """The rows without their answers: all that crosses where labels are private."""
    return tuple(
        msgspec.structs.replace(row, turns=tuple((question, "") for question, _ in row.turns)) for row in rows
    )


def read_texts(data: bytes, pictures: int, *, private: bool = False) -> tuple[Row, ...]:
    """What ``texts_up`` made, checked.

    Args:
        data: the payload.
        pictures: in the micro-batch.
        private: whether answers stay with the client.

    Raises:
        MalformedMessage: no texts, more than ``MAX_TEXT`` bytes of them, a question without an answer (with
            one, if they are private), or about a picture that is not there; a conversation that shows a
            picture nowhere in its questions.
    """
    inflate = zlib.decompressobj()
    try:
        plain = inflate.decompress(data, MAX_TEXT)
        if not inflate.eof or inflate.unused_data:
            raise MalformedMessage(
                f"the texts do not end within {MAX_TEXT} bytes; send smaller micro-batches"
            )
        rows = _ROWS.decode(plain)
    except (zlib.error, msgspec.MsgspecError) as error:
        raise MalformedMessage(f"the texts of a micro-batch cannot be read: {error}") from error
    if not rows or not all(row.turns for row in rows):
        raise MalformedMessage("a micro-batch needs a question in every row")
    answers = [answer for row in rows for _, answer in row.turns]
    if private and any(answers):
        raise MalformedMessage("an answer came, and labels are private in this stage: send questions alone")
    if not private and not all(answers):
        raise MalformedMessage("a micro-batch needs a question and an answer in every row")
    if any(place >= pictures for row in rows for place in row.pictures):
        raise MalformedMessage(f"a row names a picture beyond the micro-batch's {pictures}")
    if not all(_placed(row) for row in rows):
        raise MalformedMessage("a row shows its pictures at places that its questions do not have")
    return rows


def _placed(row: Row) -> bool:
    """Whether the places of a row's pictures are in order, and in its questions."""
    if not row.joined:
        return not row.places
    return (
        len(row.places) == len(row.pictures)
        and list(row.places) == sorted(row.places)
        and all(turn < len(row.turns) and at <= len(row.turns[turn][0]) for turn, at in row.places)
    )
