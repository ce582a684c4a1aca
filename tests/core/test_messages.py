"""Headers: what is written is read back, and nothing a stranger sends does more than raise."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from qtl_core import messages
from qtl_core.errors import MalformedMessage
from qtl_core.messages import (
    Answer,
    Ask,
    Begin,
    Busy,
    Bye,
    Error,
    Frame,
    Grads,
    Hello,
    Judge,
    Limits,
    Micro,
    Norm,
    Outputs,
    Ping,
    Point,
    Pong,
    Reject,
    Start,
    Taken,
    Token,
    Total,
    Weights,
    Welcome,
)

GOLDEN = Path(__file__).resolve().parents[1] / "golden" / "messages.txt"

SAMPLES: tuple[messages.Message, ...] = (
    Hello(1, bytes(range(16)), (0, 1), "plain", "edge_runtime/0.1.0", b"12345678", ("later",)),
    Welcome(1, b"12345678", Limits(65536, 1024, 64, 60_000), 4, "qtl-server/0.1.0", True, ()),
    Reject("fingerprint", "the server has 00ff, you have ff00; export both halves together"),
    Ask(7, (Frame("v", 4, 0xDEADBEEF), Frame("q", 2, 1, 5, 0)), "wie spät?", 16, False),
    Token(7, 0, "3"),
    Answer(7, "3", 1, 12_345, "length"),
    Error(7, "checksum", "frame 'v' is damaged"),
    Busy(7, 250),
    Ping(1),
    Pong(1),
    Bye(),
    Begin(1, (Point(0, 0), Point(1, 250))),
    Start(1, Point(1, 250)),
    Micro(2, (Frame("v", 72, 0xDEADBEEF, 0, 2), Frame("t", 40, 7)), 250, 1, 4, True),
    Grads(2, (Frame("g", 300, 9),), 12.5, 20, 9, 10),
    Norm(3, 250, 0.25),
    Total(3, 0.75, True),
    Weights(4, (Frame("w", 5000, 11),)),
    Taken(4),
    Outputs(2, (Frame("o", 600, 13),)),
    Judge(5, (Frame("g", 120, 17),), 250, 1),
)


def _raw(*items: Any) -> bytes:
    return msgspec.msgpack.encode(list(items))


@pytest.mark.parametrize("message", SAMPLES, ids=messages.kind)
def test_round_trip(message: messages.Message) -> None:
    assert messages.decode_header(messages.encode_header(message)) == message


def test_golden_bytes() -> None:
    """The bytes of version 1. To change them on purpose, run this test with QTL_WRITE_GOLDEN=1."""
    found = "".join(f"{messages.kind(m)} {messages.encode_header(m).hex()}\n" for m in SAMPLES)
    if os.environ.get("QTL_WRITE_GOLDEN"):
        GOLDEN.write_text(found)
    assert found == GOLDEN.read_text()


def test_tags_count_from_one() -> None:
    for tag, kind in enumerate(messages.KINDS, start=1):
        assert msgspec.inspect.type_info(kind).tag == tag  # type: ignore[attr-defined]
    assert tuple(type(message) for message in SAMPLES) == messages.KINDS


@pytest.mark.parametrize("message", SAMPLES, ids=messages.kind)
def test_every_truncation_raises(message: messages.Message) -> None:
    data = messages.encode_header(message)
    for length in range(len(data)):
        with pytest.raises(MalformedMessage):
            messages.decode_header(data[:length])


@pytest.mark.parametrize("message", SAMPLES, ids=messages.kind)
def test_every_flipped_bit_raises_or_is_another_message(message: messages.Message) -> None:
    data = messages.encode_header(message)
    for bit in range(len(data) * 8):
        changed = bytearray(data)
        changed[bit // 8] ^= 1 << bit % 8
        try:
            other = messages.decode_header(bytes(changed))
        except MalformedMessage:
            continue
        assert other != message
        messages.encode_header(other)  # still within every bound


@given(st.binary(max_size=200))
@example(b"")
@example(b"\xc1")
@example(b"\xdd\xff\xff\xff\xff\x04\x07")  # an array of four billion items
@example(b"\x93\x04\x07\xdd\xff\xff\xff\xff")  # four billion frames
@example(b"\x93\x05\x01\x00\xdb\xff\xff\xff\xff")  # four gigabytes of text
@example(b"\x93\x04\x07\xdf\xff\xff\xff\xff")
@example(b"\xc9\xff\xff\xff\xff\x01")
def test_random_bytes_do_no_more_than_raise(data: bytes) -> None:
    try:
        messages.decode_header(data)
    except MalformedMessage as error:
        assert "\n" not in str(error)


@pytest.mark.parametrize(
    "data",
    [b"\x91" * 16_000, b"\x96\x09\x01" + b"\x91" * 16_000, b"\x93\x09\x01" + b"\x91" * 15_000 + b"\x01"],
    ids=["bare", "unfinished", "in a field of the future"],
)
def test_deep_nesting(data: bytes) -> None:
    with pytest.raises(MalformedMessage):
        messages.decode_header(data)


@pytest.mark.parametrize(
    ("data", "text", "about"),
    [
        (_raw(99, 5), "unknown message tag 99", 0),
        (_raw(0), "unknown message tag 0", 0),
        (_raw(-1), "unknown message tag -1", 0),
        (_raw("HELLO"), "no message header", 0),
        (_raw(), "no message header", 0),
        (b"\x80", "no message header", 0),
        (b"GET / HTTP/1.1\r\n\r\n", "no message header", 0),
        (_raw(4, 9), "ASK header is malformed", 9),
        (_raw(4, 9, [["v", -1, 0]]), "ASK header is malformed", 9),
        (_raw(4, 9, [["v", 1, 2**32]]), "ASK header is malformed", 9),
        (_raw(4, 9, [["", 1, 1]]), "ASK header is malformed", 9),
        (_raw(4, 9, [["v", 1, 1]] * 9), "ASK header is malformed", 9),
        (_raw(4, 9, [], 5), "ASK header is malformed", 9),
        (_raw(4, 0, []), "ASK header is malformed", 0),
        (_raw(4, 2**53, []), "ASK header is malformed", 0),
        (_raw(4, "9", []), "ASK header is malformed", 0),
        (_raw(4, True, []), "ASK header is malformed", 0),
        (_raw(4, 9, [], "", 0, True, "text"), "ASK header is malformed", 9),
        (_raw(4, 9, [], "", 0, True, bytes(messages.MAX_FILL + 1)), "ASK header is malformed", 9),
        (_raw(1, 1, b"short", [0], "plain", "x"), "HELLO header is malformed", 0),
        (_raw(1, 1, bytes(17), [0], "plain", "x"), "HELLO header is malformed", 0),
        (_raw(1, 1, bytes(16), list(range(65)), "plain", "x"), "HELLO header is malformed", 0),
        (_raw(1, 1, bytes(16), [0], "plain", "x" * 1001), "HELLO header is malformed", 0),
        (_raw(2, 1, b"12345678", [1, 2, 3, 4], 0, "x"), "WELCOME header is malformed", 0),
        (_raw(5, 3, 0, b"bytes, no text"), "TOKEN header is malformed", 3),
        (b"\x94\x05\x03\x00\xa2\xff\xfe", "TOKEN header is malformed", 3),  # not UTF-8
    ],
)
def test_what_is_wrong_is_said(data: bytes, text: str, about: int) -> None:
    with pytest.raises(MalformedMessage, match=text) as caught:
        messages.decode_header(data)
    assert caught.value.about == about
    assert caught.value.wire_code == "malformed"


def test_bytes_after_the_header_raise() -> None:
    with pytest.raises(MalformedMessage, match="trailing"):
        messages.decode_header(messages.encode_header(Ping(1)) + b"\0")


def test_a_newer_end_may_add_fields() -> None:
    assert messages.decode_header(_raw(9, 5, {"new": [1, 2]}, b"x", 1.5, None)) == Ping(5)
    newer = [["v", 4, 1, 0, 0, "new"]]
    assert messages.decode_header(_raw(4, 5, newer, "q?", 0, True, b"", [], "new")) == Ask(
        5, (Frame("v", 4, 1),), "q?"
    )


def test_an_older_end_may_leave_fields_out() -> None:
    assert messages.decode_header(_raw(4, 5, [])) == Ask(5, ())
    assert messages.decode_header(_raw(1, 1, bytes(16), [0], "plain", "old")) == Hello(
        1, bytes(16), (0,), "plain", "old"
    )


def test_only_an_empty_fill_is_left_out() -> None:
    bare = messages.encode_header(Ask(5, ()))
    assert bare == _raw(4, 5, [], "", 0, True)
    for fill in (b"\0", b"anything", bytes(messages.MAX_FILL)):
        filled = messages.encode_header(Ask(5, (), fill=fill))
        assert filled == _raw(4, 5, [], "", 0, True, fill)
        assert messages.decode_header(filled) == Ask(5, (), fill=fill)


@pytest.mark.parametrize(
    "message",
    [
        Ask(0, ()),
        Ask(2**53, ()),
        Ask(-1, ()),
        Ask(1, (), fill=bytes(messages.MAX_FILL + 1)),
        Hello(1, b"", (), "plain", ""),
        Welcome(1, b"", Limits(0, 0, 0, 0), 1, ""),
        Error(0, "internal", "x" * 1001),
        Token(1, 0, "\ud800"),
        Ping(2**70),
    ],
)
def test_our_own_mistakes_are_caught_on_our_side(message: messages.Message) -> None:
    with pytest.raises(MalformedMessage):
        messages.encode_header(message)


@pytest.mark.parametrize("text", ["short", "a\nb\tc", "x" * 5000, "\ud800", ""])
def test_line_makes_any_text_fit(text: str) -> None:
    found = messages.line(text)
    assert "\n" not in found
    error = Error(0, "internal", found)
    assert messages.decode_header(messages.encode_header(error)) == error
