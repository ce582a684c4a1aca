"""What the server lets in: a handshake that fits its bundle, and questions that fit its model.

Everything here looks at a peer's message and either returns what the engine may rely on, or says what is
wrong.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from qtl_core import payloads as contents
from qtl_core.bundle import Manifest
from qtl_core.codes import packed_size, unpack
from qtl_core.entropy import Tables
from qtl_core.errors import CodeError, MalformedMessage, RequestRefused
from qtl_core.messages import (
    CAN_RANS,
    CAN_TILE,
    CAPABILITIES,
    CODEC_PACKED,
    CODEC_RANS,
    CODECS,
    PROTOCOL,
    Ask,
    Frame,
    Hello,
    Limits,
    Reject,
)
from qtl_core.wire import by_name
from server_runtime.config import ServerConfig
from server_runtime.engine import Prompt

VISION = "v"
QUESTION = "q"


def limits_of(manifest: Manifest, config: ServerConfig, longest_answer: int) -> Limits:
    """What every session may send, and get.

    Args:
        manifest: Of the server's half.
        config: The server's own limits.
        longest_answer: The model's limit in tokens.
    """
    return Limits(
        max_payload=largest_payload(manifest),
        max_question=config.max_question,
        max_tokens=min(config.max_tokens, longest_answer),
        idle_ms=round(config.idle_s * 1000),
    )


def largest_payload(manifest: Manifest) -> int:
    """Bytes of the largest payload frame that this bundle has a use for."""
    largest, text = manifest.cut.payload_bytes * manifest.picture.most_tiles, manifest.text
    if text.mode == "codes":
        largest = max(largest, packed_size(text.max_tokens * text.code_dim, text.levels))
    return largest


def refuse_hello(hello: Hello, manifest: Manifest, tables: Tables | None = None) -> Reject | None:
    """The reason why this client and this bundle half, with these tables, do not fit; None where they do."""
    if hello.protocol < PROTOCOL:
        text = f"this server speaks protocol {PROTOCOL}, the client {hello.protocol}: update the client"
        return Reject("protocol", text)
    if hello.fingerprint != manifest.fingerprint_bytes:
        return Reject(
            "fingerprint",
            f"the client half has fingerprint {hello.fingerprint.hex()}, this server's half "
            f"{manifest.fingerprint}: use two halves of one export",
        )
    codec = CODECS[manifest.cut.codec]
    if codec not in hello.codecs:
        text = f"this bundle needs codec {codec} ({manifest.cut.codec}), the client has {list(hello.codecs)}"
        return Reject("codec", f"{text}: update the client")
    own = b"" if tables is None else tables.digest
    # Without tables a client sends packed codes, which every server of the cut takes.
    if hello.tables and hello.tables != own:
        return Reject(
            "codec",
            f"the client's tables of the entropy coder have the digest {hello.tables.hex()}, this server's "
            f"{own.hex() or 'half has none'}: use two halves of one export",
        )
    if manifest.picture.tiled and CAN_TILE not in hello.capabilities:
        return Reject(
            "protocol", "this bundle's pictures are cut into tiles, and the client cannot: update the client"
        )
    if hello.text != manifest.text.mode:
        text = f"this bundle takes questions as {manifest.text.mode!r}, the client sends {hello.text!r}"
        return Reject("text", f"{text}: use the client half of the same export")
    return None


def common_capabilities(hello: Hello, tables: Tables | None) -> tuple[str, ...]:
    """The optional features that both ends have."""
    same_tables = tables is not None and hello.tables == tables.digest and CODEC_RANS in hello.codecs
    return tuple(
        name for name in CAPABILITIES if name in hello.capabilities and (name != CAN_RANS or same_tables)
    )


def read_ask(
    ask: Ask, payloads: Mapping[str, bytes], manifest: Manifest, tables: Tables | None = None
) -> Prompt:
    """The checked prompt of a question.

    Args:
        ask: The header.
        payloads: The payloads by name, without padding; sizes and checksums are those the header announces.
        manifest: Of the server's half.
        tables: Of the entropy coder, where the half has them.

    Raises:
        MalformedMessage: Frames that this bundle has no use for, or that are missing.
        CodeError: Wrong codec, number of codes, tiles or bytes, a code out of range, a feature that is not
            finite, a picture of a size that this bundle does not take.
        RequestRefused: ("question") an empty question, or one that is too long.
    """
    wanted = {VISION, QUESTION} if manifest.text.mode == "codes" else {VISION}
    if set(payloads) != wanted:
        raise MalformedMessage(
            f"this bundle takes the payload frames {sorted(wanted)}, this question has {sorted(payloads)}"
        )
    frames = by_name(ask)
    vision = _vision(frames[VISION], payloads[VISION], manifest, tables, _tiles(ask, manifest))
    size = (ask.size[0], ask.size[1]) if ask.size else None
    if manifest.text.mode == "codes":
        if ask.question:
            raise MalformedMessage("the question came as codes and as text: leave the text empty")
        text_codes = _text(frames[QUESTION], payloads[QUESTION], manifest)
        return Prompt(vision=vision, text_codes=text_codes, size=size)
    if not ask.question.strip():
        raise RequestRefused("question", "the question is empty: ask something")
    return Prompt(vision=vision, question=ask.question, size=size)


def digest(ask: Ask, payloads: Mapping[str, bytes]) -> bytes:
    """Identifies what was asked, so that a retry can be told from another question under the same id.

    Padding is no part of it: the same question may come again with other padding.
    """
    state = hashlib.blake2b(digest_size=16)
    for part in (ask.question.encode(), *(data for _, data in sorted(payloads.items()))):
        state.update(len(part).to_bytes(8, "little"))
        state.update(part)
    for number in (ask.max_tokens, *ask.size):
        state.update(number.to_bytes(8, "little"))
    return state.digest()


def _tiles(ask: Ask, manifest: Manifest) -> int:
    """How many tiles the picture of a question has, by the size that it tells.

    Raises:
        MalformedMessage: No size where one is needed, or one where none is.
        CodeError: More pixels than this bundle takes.
    """
    spec = manifest.picture
    if not spec.tiled:
        if ask.size:
            raise MalformedMessage("this bundle's pictures are not cut into tiles: leave the size empty")
        return 1
    if len(ask.size) != 2:
        raise MalformedMessage(
            "this bundle's pictures are cut into tiles: the question must tell its picture's width and height"
        )
    width, height = ask.size
    if width * height > spec.max_pixels:
        raise CodeError(
            f"a picture of {width} x {height} pixels is larger than this bundle takes ({spec.max_pixels})"
        )
    return spec.tiles(width, height)


def _vision(
    frame: Frame, data: bytes, manifest: Manifest, tables: Tables | None, tiles: int
) -> npt.NDArray[Any]:
    """Codes or features, [tiles, tokens, code_dim]; [tokens, code_dim] where pictures are not cut."""
    cut = manifest.cut
    coded = tables is not None and frame.codec == CODEC_RANS
    if not coded:
        _check_codec(frame, CODECS[cut.codec])
    tokens = tiles * cut.tokens
    if frame.count not in (0, tokens):
        cut_in = f" in {tiles} tiles" if tiles > 1 else ""
        raise CodeError(
            f"frame {frame.name!r} holds {frame.count} tokens, this bundle's pictures have {tokens}{cut_in}"
        )
    found = contents.read(data, cut, tiles, tables if coded else None)
    return found if manifest.picture.tiled else found[0]


def _text(frame: Frame, data: bytes, manifest: Manifest) -> npt.NDArray[np.uint8]:
    text = manifest.text
    _check_codec(frame, CODEC_PACKED)
    if frame.count < 1:
        raise RequestRefused("question", "the question has no tokens: ask something")
    if frame.count > text.max_tokens:
        raise RequestRefused(
            "question",
            f"the question has {frame.count} tokens, this model takes {text.max_tokens}: shorten it",
        )
    return unpack(data, text.levels, (frame.count, text.code_dim))


def _check_codec(frame: Frame, wanted: int) -> None:
    if frame.codec != wanted:
        raise CodeError(f"frame {frame.name!r} has codec {frame.codec}, this bundle takes codec {wanted}")
