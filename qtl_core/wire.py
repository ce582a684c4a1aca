"""Messages as ZeroMQ frames: header and payloads joined, and taken apart again with every check.

``split`` is where a peer's bytes first meet us. It looks at sizes before it decodes, and hands out nothing
that was not announced, checked and within the limits.
"""

from __future__ import annotations

import zlib
from bisect import bisect_left
from collections.abc import Callable, Mapping, Sequence
from itertools import accumulate, islice
from typing import Final

from msgspec.structs import replace

from .errors import ChecksumMismatch, MalformedMessage, MessageTooLarge
from .limits import HEADER_CAP as HEADER_CAP
from .limits import MAX_MULTIPLE as MAX_MULTIPLE
from .limits import MAX_PAD as MAX_PAD
from .messages import (
    CODEC_PACKED,
    MAX_FRAMES,
    Ask,
    Frame,
    Grads,
    Limits,
    Message,
    Micro,
    Weights,
    decode_header,
    encode_header,
    kind,
)

_SHORT: Final = 255
CURVE_OVERHEAD: Final = 33
"""What CURVE adds to a frame: 8 command name, 8 nonce, 16 authenticator, 1 flags."""

PIECE: Final = 1 << 18
"""Bytes of a ZeroMQ frame at most that a training message's payload is cut into: ZMTP's heartbeats see whole
frames only, and would end a connection on which one takes longer than they wait."""
PAD: Final = "pad"
"""Name of the padding, the last payload of an ASK that has it. All payloads then travel joined in one frame:
CURVE encrypts frame by frame, and the length of each one shows."""


def frame_codes(name: str, payload: bytes, *, count: int = 0, codec: int = CODEC_PACKED) -> Frame:
    """Describes a payload for the header: its size and CRC-32.

    Args:
        name: "v" vision codes, "q" question codes, "pad" nothing.
        payload: the bytes it announces.
        count: tokens in it; 0 means as many as the manifest says.
        codec: how the bytes are to be read, see ``qtl_core.messages``.
    """
    return Frame(name=name, size=len(payload), crc=zlib.crc32(payload), count=count, codec=codec)


def join(message: Message, payloads: Sequence[bytes] = ()) -> list[bytes]:
    """The frames of a message, ready for ``send_multipart``.

    Args:
        message: the header.
        payloads: one for each of ``message.frames``, in order; empty for messages without.

    Returns:
        The header, then a frame for each payload, in training one for every ``PIECE`` bytes of it; where the
        last of them is padding, one frame for all.

    Raises:
        MalformedMessage: payloads that are not the ones the header announces, padding that is not the last
            of them, or a field out of bounds.
        MessageTooLarge: a header over ``HEADER_CAP``.
    """
    announced = _announced(message)
    if [len(payload) for payload in payloads] != [frame.size for frame in announced]:
        raise MalformedMessage(
            f"the {kind(message)} header announces frames of {[frame.size for frame in announced]} bytes, "
            f"but the payloads have {[len(payload) for payload in payloads]}"
        )
    header = encode_header(message)
    if len(header) > HEADER_CAP:
        raise MessageTooLarge(
            f"the {kind(message)} header takes {len(header)} bytes, more than {HEADER_CAP}; shorten its text",
            about=getattr(message, "id", 0),
        )
    if _is_joined(announced):
        return [header, b"".join(payloads)]
    return [header, *payloads] if isinstance(message, Ask) else [header, *_pieces(payloads)]


def pad(ask: Ask, payloads: Sequence[bytes], multiple: int, curve: bool = False) -> tuple[Ask, list[bytes]]:
    """Pads an ASK, so that each of its two frames is a multiple of some bytes long on the TCP connection.

    The payloads' frame grows by a payload of zeros at its end, the header by its field ``fill``. That hides
    how long payloads and question are, and how many bytes msgpack takes for numbers, up to the multiple.

    Args:
        ask: the header, with room for one more frame.
        payloads: one for each of its frames.
        multiple: 1 to ``MAX_MULTIPLE`` bytes.
        curve: whether the connection is encrypted, which makes frames longer.

    Returns:
        Header and payloads for ``join``; lengths include all framing (``wire_size``).

    Raises:
        MalformedMessage: ``multiple`` out of range, or a field out of bounds.
        MessageTooLarge: the header's next multiple is over ``HEADER_CAP``. With a question of up to 10,000
            bytes it never is, as ``MAX_MULTIPLE`` is half of the cap.
    """
    if not 1 <= multiple <= MAX_MULTIPLE:
        raise MalformedMessage(
            f"messages can be padded to a multiple of 1 to {MAX_MULTIPLE} bytes, not of {multiple}"
        )
    size = sum(map(len, payloads))
    zeros = bytes(_missing(lambda n: _on_tcp(size + n, curve), multiple, _on_tcp(size + MAX_PAD, curve)))
    padded = replace(ask, frames=(*ask.frames, frame_codes(PAD, zeros)))

    def header(fill: int) -> int:
        return _on_tcp(len(encode_header(replace(padded, fill=bytes(fill)))), curve)

    fill = bytes(_missing(header, multiple, _on_tcp(HEADER_CAP, curve)))
    return replace(padded, fill=fill), [*payloads, zeros]


def split(frames: Sequence[bytes], limits: Limits | None = None) -> tuple[Message, dict[str, bytes]]:
    """Takes a received message apart.

    Args:
        frames: what ``recv_multipart`` returned, without the routing id.
        limits: of the session; None where there is none yet, and then no payload frame is accepted.

    Returns:
        The header, and the payloads by name, without the padding.

    Raises:
        MalformedMessage: no header, or frames that are not the ones it announces.
        MessageTooLarge: header, frame or question over its limit.
        ChecksumMismatch: a frame whose CRC-32 is not the announced one.
            All of them carry the request's id in ``about`` where it could be read.
    """
    if not frames:
        raise MalformedMessage("a message without frames; frame 0 must be the header")
    if len(frames) > 1 + MAX_FRAMES:
        raise MalformedMessage(f"a message of {len(frames)} frames; at most {1 + MAX_FRAMES} are allowed")
    if len(frames[0]) > HEADER_CAP:
        raise MessageTooLarge(f"a header of {len(frames[0])} bytes; at most {HEADER_CAP} are allowed")
    message = decode_header(frames[0])
    announced, payloads = _announced(message), frames[1:]
    about = int(getattr(message, "id", 0))
    joined = _is_joined(announced, about)
    whole = joined or isinstance(message, Ask)
    expected = 1 if joined else len(announced) if whole else sum(map(_count, announced))
    if expected != len(payloads):
        raise MalformedMessage(
            f"the {kind(message)} header announces {expected} payload frames, {len(payloads)} followed",
            about=about,
        )
    if announced and limits is None:
        raise MalformedMessage("payload frames before the handshake; send HELLO first", about=about)
    if isinstance(message, Ask) and limits is not None:
        size = len(message.question.encode())
        if size > limits.max_question:
            raise MessageTooLarge(
                f"a question of {size} bytes; this session allows {limits.max_question}", about=about
            )
    if joined:
        payloads = _apart(announced, payloads[0], about)
    elif not whole:
        pieces = iter(payloads)
        payloads = [b"".join(islice(pieces, _count(frame))) for frame in announced]
    named: dict[str, bytes] = {}
    for frame, payload in zip(announced, payloads, strict=True):
        _check(frame, payload, limits, about)
        if frame.name in named:
            raise MalformedMessage(f"two payload frames are named {frame.name!r}", about=about)
        named[frame.name] = payload
    named.pop(PAD, None)
    return message, named


def wire_size(frames: Sequence[bytes], curve: bool = False) -> int:
    """Bytes of a message on the TCP connection, ZMTP framing included.

    Every frame travels as a flags byte, a length of 1 byte (8 above 255) and its body; under CURVE the body
    is 33 bytes longer. TCP, IP and link headers are not counted: they depend on the path. DEALER and ROUTER
    add nothing of their own.

    Args:
        frames: the frames of one message, without a routing id.
        curve: whether the connection is encrypted.
    """
    return sum(_on_tcp(len(frame), curve) for frame in frames)


def by_name(message: Message) -> Mapping[str, Frame]:
    """The announced payload frames of a message by name; empty for messages without."""
    return {frame.name: frame for frame in _announced(message)}


def _pieces(payloads: Sequence[bytes]) -> list[bytes]:
    """The ZeroMQ frames of a training message's payloads."""
    return [
        payload[start : start + PIECE]
        for payload in payloads
        for start in range(0, max(len(payload), 1), PIECE)
    ]


def _count(frame: Frame) -> int:
    """In how many ZeroMQ frames a training message's payload travels."""
    return max(1, -(-frame.size // PIECE))


def _on_tcp(size: int, curve: bool) -> int:
    """Bytes of one frame on the TCP connection."""
    body = size + (CURVE_OVERHEAD if curve else 0)
    return body + (2 if body <= _SHORT else 9)


def _missing(length: Callable[[int], int], multiple: int, most: int) -> int:
    """The fewest bytes with which ``length`` is a multiple; it grows with each by 1, now and then by more.

    Where such a jump leads over a multiple, no number of bytes reaches it, and the next one serves.
    """
    least = length(0)
    for target in range(-(-least // multiple) * multiple, most + 1, multiple):
        size = bisect_left(range(target - least), target, key=length)
        if length(size) == target:
            return size
    raise MessageTooLarge(
        f"a frame of {least} bytes cannot be padded to a multiple of {multiple} bytes: at most {most} are "
        "allowed; shorten the question, or choose a smaller multiple"
    )


def _announced(message: Message) -> tuple[Frame, ...]:
    return message.frames if isinstance(message, Ask | Micro | Grads | Weights) else ()


def _is_joined(announced: Sequence[Frame], about: int = 0) -> bool:
    """Whether the payloads travel in one frame, as they do with padding."""
    names = [frame.name for frame in announced]
    if PAD in names[:-1]:
        raise MalformedMessage(f"frame {PAD!r} must be the last one, and only once: {names}", about=about)
    return names[-1:] == [PAD]


def _apart(announced: Sequence[Frame], joined: bytes, about: int) -> list[bytes]:
    ends = list(accumulate(frame.size for frame in announced))
    if ends[-1] != len(joined):
        raise MalformedMessage(
            f"{len(announced)} joined payloads were announced with {ends[-1]} bytes in all and have "
            f"{len(joined)}",
            about=about,
        )
    return [joined[end - frame.size : end] for frame, end in zip(announced, ends, strict=True)]


def _check(frame: Frame, payload: bytes, limits: Limits | None, about: int) -> None:
    if limits is not None:
        most = MAX_PAD if frame.name == PAD else limits.max_payload
        if len(payload) > most:
            raise MessageTooLarge(
                f"frame {frame.name!r} has {len(payload)} bytes; this session allows {most}", about=about
            )
    if frame.size != len(payload):
        raise MalformedMessage(
            f"frame {frame.name!r} was announced with {frame.size} bytes and has {len(payload)}", about=about
        )
    crc = zlib.crc32(payload)
    if crc != frame.crc:
        raise ChecksumMismatch(
            f"frame {frame.name!r} was announced with CRC-32 {frame.crc:08x} and has {crc:08x}; "
            "send it again",
            about=about,
        )
