"""Messages as ZeroMQ frames: header and payloads joined, and taken apart again with every check.

``split`` is where a peer's bytes first meet us. It looks at sizes before it decodes, and hands out nothing
that was not announced, checked and within the limits.
"""

from __future__ import annotations

import zlib
from collections.abc import Mapping, Sequence
from typing import Final

from msgspec.structs import replace

from .errors import ChecksumMismatch, MalformedMessage, MessageTooLarge
from .messages import (
    CODEC_PACKED,
    MAX_FRAMES,
    Ask,
    Frame,
    Limits,
    Message,
    decode_header,
    encode_header,
    kind,
)

HEADER_CAP: Final = 16 * 1024
"""Bytes of frame 0 at most: a header with the longest question or answer the limits allow."""

_SHORT: Final = 255
CURVE_OVERHEAD: Final = 33
"""What CURVE adds to a frame: 8 command name, 8 nonce, 16 authenticator, 1 flags."""

PAD: Final = "pad"
"""Name of the frame that makes an ASK longer; only its size is looked at."""
MAX_PAD: Final = HEADER_CAP
"""Bytes of a frame "pad" at most: as much as any server takes in a frame."""
MAX_MULTIPLE: Final = MAX_PAD // 2
"""Bytes of which a message may be padded to a multiple; a frame "pad" of twice as many always does it."""


def frame_codes(name: str, payload: bytes, *, count: int = 0, codec: int = CODEC_PACKED) -> Frame:
    """Describes a payload for the header: its size and CRC-32.

    Args:
        name: "v" vision codes, "q" question codes, "pad" nothing.
        payload: the bytes of the frame.
        count: tokens in it; 0 means as many as the manifest says.
        codec: how the bytes are to be read, see ``qtl_core.messages``.
    """
    return Frame(name=name, size=len(payload), crc=zlib.crc32(payload), count=count, codec=codec)


def join(message: Message, payloads: Sequence[bytes] = ()) -> list[bytes]:
    """The frames of a message, ready for ``send_multipart``.

    Args:
        message: the header.
        payloads: one for each of ``message.frames``, in order; empty for messages without.

    Raises:
        MalformedMessage: payloads that are not the ones the header announces, or a field out of bounds.
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
    return [header, *payloads]


def pad(ask: Ask, payloads: Sequence[bytes], multiple: int, curve: bool = False) -> tuple[Ask, list[bytes]]:
    """Makes an ASK a multiple of some bytes long on the TCP connection, by a frame of zeros at its end.

    Args:
        ask: the header, with room for one more frame.
        payloads: one for each of its frames.
        multiple: 1 to ``MAX_MULTIPLE``.
        curve: whether the connection is encrypted, which makes frames longer.

    Returns:
        Header and payloads; the length includes all framing (``wire_size``).

    Raises:
        MalformedMessage: ``multiple`` out of range.
    """
    if not 1 <= multiple <= MAX_MULTIPLE:
        raise MalformedMessage(
            f"messages can be padded to a multiple of 1 to {MAX_MULTIPLE} bytes, not of {multiple}"
        )

    def padded(size: int) -> tuple[Ask, list[bytes], int]:
        zeros = bytes(size)
        longer = replace(ask, frames=(*ask.frames, frame_codes(PAD, zeros)))
        frames = [*payloads, zeros]
        return longer, frames, wire_size(join(longer, frames), curve)

    shortest = padded(0)[2]
    target = -(-shortest // multiple) * multiple
    while True:
        size = target - shortest
        # A longer frame takes a few bytes more to announce; where that skips the target, the next one serves.
        for _ in range(4):
            longer, frames, length = padded(size)
            if length == target:
                return longer, frames
            size = max(0, size - (length - target))
        target += multiple


def split(frames: Sequence[bytes], limits: Limits | None = None) -> tuple[Message, dict[str, bytes]]:
    """Takes a received message apart.

    Args:
        frames: what ``recv_multipart`` returned, without the routing id.
        limits: of the session; None where there is none yet, and then no payload frame is accepted.

    Returns:
        The header, and the payload frames by name.

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
    if len(announced) != len(payloads):
        raise MalformedMessage(
            f"the {kind(message)} header announces {len(announced)} payload frames, {len(payloads)} followed",
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
    named: dict[str, bytes] = {}
    for frame, payload in zip(announced, payloads, strict=True):
        _check(frame, payload, limits, about)
        if frame.name in named:
            raise MalformedMessage(f"two payload frames are named {frame.name!r}", about=about)
        named[frame.name] = payload
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
    bodies = [len(frame) + (CURVE_OVERHEAD if curve else 0) for frame in frames]
    return sum(body + (2 if body <= _SHORT else 9) for body in bodies)


def by_name(message: Message) -> Mapping[str, Frame]:
    """The announced payload frames of a message by name; empty for messages without."""
    return {frame.name: frame for frame in _announced(message)}


def _announced(message: Message) -> tuple[Frame, ...]:
    return message.frames if isinstance(message, Ask) else ()


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
