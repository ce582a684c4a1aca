"""docs/protocol.md says what the code does: every field, every name, and an example byte for byte.

To write the example anew on purpose, run this file with QTL_WRITE_GOLDEN=1.
"""

from __future__ import annotations

import hashlib
import os
import re
import socket
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
import zmq

from qtl_core import codes, entropy, messages, sockets, wire
from qtl_core.entropy_tables import Tables
from qtl_core.messages import Answer, Ask, Bye, Frame, Hello, Limits, Part, Point, Token, Welcome
from qtl_core.range_coder import TOTAL

PAGE = Path(__file__).resolve().parents[2] / "docs" / "protocol.md"
ERRORS = PAGE.with_name("errors.md")
EXAMPLE = re.compile(r"(<!-- example:start -->\n```\n)(.*?)(```\n<!-- example:end -->)", re.DOTALL)
CODER = re.compile(r"(<!-- coder:start -->\n```\n)(.*?)(```\n<!-- coder:end -->)", re.DOTALL)

CODES = np.array([[0, 1, 2], [3, 2, 1]], dtype=np.uint8)


@pytest.fixture(scope="module")
def page() -> str:
    return PAGE.read_text(encoding="utf-8")


def _number(value: int) -> str:
    power = (value + 1).bit_length() - 1
    return f"2^{power}-1" if value >= 2**31 - 1 and value == 2**power - 1 else str(value)


def _length(kind: Any, unit: str) -> str:
    low, high = kind.min_length or 0, kind.max_length
    if high is None:
        return ""
    size = f"{low}" if low == high else f"{low} to {high}" if low else f"at most {high}"
    return f", {size} {unit}"


def _type(kind: Any) -> str:
    """A field's type as the page writes it."""
    inspect = msgspec.inspect
    if isinstance(kind, inspect.IntType):
        return f"integer, {kind.ge} to {_number(kind.le or 0)}"
    if isinstance(kind, inspect.StrType):
        return "text" + _length(kind, "characters")
    if isinstance(kind, inspect.BytesType):
        return "bytes" + _length(kind, "bytes")
    if isinstance(kind, inspect.FloatType):
        return "float"
    if isinstance(kind, inspect.BoolType):
        return "boolean"
    if isinstance(kind, inspect.StructType):
        return kind.cls.__name__.upper()
    if isinstance(kind, inspect.VarTupleType):
        return f"array{_length(kind, 'items')}: {_type(kind.item_type)}"
    raise TypeError(kind)


def _default(field: Any) -> str:
    if field.required:
        return "required"
    default = field.default
    shown: dict[object, str] = {True: "true", False: "false", b"": "empty", (): "empty", "": "empty"}
    return str(default) if type(default) is int else shown.get(default, f'"{default}"')


def _tables(page: str) -> dict[str, tuple[str, list[list[str]]]]:
    """The page's field tables: message name -> (tag, rows of position, field, type, default)."""
    found = {}
    for name, tag, body in re.findall(r"^### (\w+)(?: \(tag (\d+)\))?\n(.*?)(?=^##|\Z)", page, re.M | re.S):
        rows = re.findall(r"^\| (\d+) \| `(\w+)` \| ([^|]+) \| ([^|]+) \|", body, re.M)
        found[name] = (tag, [[cell.strip() for cell in row] for row in rows])
    return found


STRUCTS: tuple[type[msgspec.Struct], ...] = (*messages.KINDS, Limits, Frame, Part, Point)


@pytest.mark.parametrize("kind", STRUCTS, ids=lambda kind: kind.__name__)
def test_every_field(page: str, kind: type[msgspec.Struct]) -> None:
    info = msgspec.inspect.type_info(kind)
    assert isinstance(info, msgspec.inspect.StructType)
    first = 0 if info.tag is None else 1  # the tag is item 0 of a message
    expected = [
        [str(position), field.name, _type(field.type), _default(field)]
        for position, field in enumerate(info.fields, start=first)
    ]
    tag, rows = _tables(page)[kind.__name__.upper()]
    assert rows == expected
    assert tag == ("" if info.tag is None else str(info.tag))


def test_no_table_of_something_that_does_not_exist(page: str) -> None:
    assert set(_tables(page)) == {kind.__name__.upper() for kind in STRUCTS}


@pytest.mark.parametrize("names", [messages.REJECT_REASONS, messages.ERROR_CODES])
def test_every_reason_and_code_is_on_both_pages(page: str, names: tuple[str, ...]) -> None:
    rows = re.findall(r"^\| `([a-z_]+)` \|", ERRORS.read_text(encoding="utf-8"), re.M)
    for name in names:
        assert f"`{name}`" in page
        assert name in rows


def test_numbers(page: str) -> None:
    assert f"{wire.HEADER_CAP} bytes" in page
    assert f"at most {messages.MAX_FRAMES}. Each travels" in page
    assert f"more than {wire.PIECE} bytes" in page
    assert f"{wire.CURVE_OVERHEAD} bytes" in page
    assert f"protocol version {messages.PROTOCOL}" in page
    assert f"{sockets.HEARTBEAT_MS // 1000} seconds" in page
    assert f"at most {wire.MAX_PAD} bytes" in page
    assert f"more than 2 `max_payload` + {wire.MAX_PAD} bytes" in page
    assert f"1 to {wire.MAX_MULTIPLE}" in page
    assert f"min(T, (T R div 2048) div {entropy.LANE_BYTES}, {entropy.MAX_LANES})" in page
    assert f"If m < {entropy.MIN_LANES}" in page
    for name in (*messages.CAPABILITIES, messages.CAN_TRAIN):
        assert f"`{name}`" in page


def _spaced(data: bytes) -> str:
    return data.hex(" ")


def _on_tcp(frames: list[bytes]) -> bytes:
    """A message as ZMTP 3.1 frames, by hand: flags (1 more, 2 long), length, body."""
    stream = b""
    for index, frame in enumerate(frames):
        more, long = index + 1 < len(frames), len(frame) > 255
        stream += bytes([more | long << 1]) + len(frame).to_bytes(8 if long else 1, "big") + frame
    return stream


def _example() -> str:
    """The page's worked example, from the code."""
    payload = codes.pack(CODES, 4)
    frame = wire.frame_codes("v", payload)
    assert frame.crc == zlib.crc32(payload)
    ask = wire.join(Ask(1, (frame,), "how many?", 16), [payload])
    assert len(_on_tcp(ask)) == wire.wire_size(ask)
    padded = wire.join(*wire.pad(Ask(1, (frame,), "how many?", 16), [payload], 64))
    assert [wire.wire_size([each]) for each in padded] == [64, 64]
    welcome = Welcome(1, bytes(range(0xA0, 0xB0)), Limits(2, 4096, 64, 600_000), 4, "qtl-server/0.1.0")
    lines = [
        ("client: HELLO", wire.join(Hello(1, bytes(range(16)), (0,), "plain", "edge_runtime/0.1.0"))),
        ("server: WELCOME", wire.join(welcome)),
        ("client: ASK", ask),
        ("client: the same ASK, its two frames padded to 64 bytes on TCP", padded),
        ("server: TOKEN", wire.join(Token(1, 0, "3"))),
        ("server: ANSWER", wire.join(Answer(1, "3", 1, 8250))),
        ("client: BYE", wire.join(Bye())),
    ]
    text = ""
    for title, frames in lines:
        text += f"{title}\n"
        for index, data in enumerate(frames):
            for start in range(0, len(data), 24):
                label = f"frame {index}" if start == 0 else ""
                text += f"  {label:<9}{_spaced(data[start : start + 24])}\n"
    return (
        text
        + f"the ASK on TCP, without CURVE ({len(_on_tcp(ask))} bytes)\n"
        + "".join(
            f"  {'':<9}{_spaced(_on_tcp(ask)[start : start + 24])}\n"
            for start in range(0, len(_on_tcp(ask)), 24)
        )
    )


@pytest.mark.parametrize(
    ("block", "written"),
    [(EXAMPLE, lambda: _example()), (CODER, lambda: _coder_example())],
    ids=["wire", "coder"],
)
def test_the_examples_are_what_the_code_writes(block: re.Pattern[str], written: Callable[[], str]) -> None:
    page = PAGE.read_text(encoding="utf-8")
    found = block.search(page)
    assert found is not None
    if os.environ.get("QTL_WRITE_GOLDEN"):
        PAGE.write_text(page[: found.start(2)] + written() + page[found.end(2) :], encoding="utf-8")
        return
    assert found[2] == written()


SHORT_TABLES = Tables(
    4,
    [12288, 4096],
    [
        [[8192, 4096, 2048, 2048], [2048, 8192, 4096, 2048], [4096, 4096, 4096, 4096]],
        [[1024, 1024, 1024, 13312], [2048, 4096, 8192, 2048], [16381, 1, 1, 1]],
    ],
)
SHORT_CODES = np.array([[0, 1, 2], [3, 2, 0], [3, 2, 1], [0, 0, 3]], dtype=np.uint8)
LONG_TABLES = Tables(4, [TOTAL], [[[8192, 4096, 2048, 2048]] * 64])
LONG_CODES = ((np.arange(4096 * 64, dtype=np.uint64) * 2654435761 % 2**32) >> 30).reshape(4096, 64)


def _coder_example() -> str:
    """The page's examples of the entropy coder, from the code."""
    short, long = entropy.encode(SHORT_CODES, SHORT_TABLES), entropy.encode(LONG_CODES, LONG_TABLES)
    chosen = SHORT_TABLES.choose(SHORT_CODES).tolist()
    lines = ["short: L 4, classes 12288 4096"]
    for each, channels in enumerate(SHORT_TABLES.frequencies.tolist()):
        lines.append(f"  class {each}    " + "   ".join(" ".join(map(str, table)) for table in channels))
    symbols = "; ".join(
        f"class {k}, codes {' '.join(map(str, c))}" for k, c in zip(chosen, SHORT_CODES, strict=True)
    )
    lines += [
        f"  digest     {SHORT_TABLES.digest.hex()}",
        f"  symbols    {symbols}",
        f"  payload    {_spaced(short)}",
        "long: L 4, one class, every table 8192 4096 2048 2048",
        f"  digest     {LONG_TABLES.digest.hex()}",
        f"  lanes      {entropy.lanes_for(4096, LONG_TABLES)}",
        f"  codes      {' '.join(map(str, LONG_CODES[0, :16]))} ...",
        f"  payload    {len(long)} bytes: {_spaced(long[:8])} ... {_spaced(long[-8:])}",
        f"  SHA-256    {hashlib.sha256(long).hexdigest()}",
    ]
    return "\n".join(lines) + "\n"


def test_the_example_through_a_bare_tcp_connection(page: str) -> None:
    """The page's bytes, sent by hand behind the shortest ZMTP 3.1 handshake there is, reach our ROUTER."""
    found = EXAMPLE.search(page)
    assert found is not None
    ask = bytes.fromhex("".join(found[2].partition("the ASK on TCP")[2].splitlines(keepends=True)[1:]))
    greeting = b"\xff" + bytes(8) + b"\x7f\x03\x01" + b"NULL".ljust(20, b"\0") + bytes(32)
    ready = b"\x05READY" + b"\x0bSocket-Type" + (6).to_bytes(4, "big") + b"DEALER"
    context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
    router = sockets.router(context, max_payload=2)
    try:
        router.setsockopt(zmq.RCVTIMEO, 20_000)
        port = router.bind_to_random_port("tcp://127.0.0.1")
        with socket.create_connection(("127.0.0.1", port), timeout=20) as connection:
            connection.sendall(greeting)
            _read(connection, len(greeting))
            connection.sendall(b"\x04" + bytes([len(ready)]) + ready)
            # libzmq wants its own READY read before the first message.
            _, length = _read(connection, 2)
            assert _read(connection, length).startswith(b"\x05READY")
            connection.sendall(ask)
            _, *frames = router.recv_multipart()
    finally:
        router.close(linger=0)
        context.term()
    message, payloads = wire.split(frames, Limits(2, 100, 64, 1000))
    assert isinstance(message, Ask)
    assert message.question == "how many?"
    np.testing.assert_array_equal(codes.unpack(payloads["v"], 4, CODES.shape), CODES)


def _read(connection: socket.socket, count: int) -> bytes:
    data = b""
    while len(data) < count:
        piece = connection.recv(count - len(data))
        assert piece, "the router closed the connection"
        data += piece
    return data


def test_the_example_of_packing(page: str) -> None:
    assert f"`{CODES.tolist()}`" in page
    assert f"`{_spaced(codes.pack(CODES, 4))}`" in page
    assert f"`{_spaced(codes.pack(np.array([4, 0, 3]), 5))}`" in page
    assert f"{zlib.crc32(b'123456789'):08x}" in page
