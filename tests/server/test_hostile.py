"""Hostile bytes: one typed error reply to their sender, and the next client is served as always."""

from __future__ import annotations

import os
import socket
import zlib
from collections.abc import Callable
from typing import Any

import msgspec
import numpy as np
import pytest
import zmq
from hypothesis import given
from hypothesis import strategies as st

from qtl_core.codes import pack
from qtl_core.errors import QtlError
from qtl_core.messages import Answer, Ask, Bye, Error, Frame, Limits, Ping, Pong, Reject, Token, Welcome
from qtl_core.wire import HEADER_CAP, MAX_PAD, frame_codes, join
from server_runtime import FakeEngine
from server_runtime.admission import read_ask
from tests.server.conftest import CODE_DIM, TOKENS, Connect, Serve, make_manifest
from tests.server.peer import PATIENCE_S, Hold, Peer, Running, eventually

Frames = list[bytes]


def header(*fields: object) -> bytes:
    return msgspec.msgpack.encode(list(fields))


def raw_ask(
    peer: Peer, *, id: object = 5, frames: object = None, question: object = "what?", **more: Any
) -> Frames:
    """An ASK written by hand, so that it can be wrong in any way."""
    data = more.pop("data", peer.payload())
    listed = [["v", len(data), zlib.crc32(data)]] if frames is None else frames
    fields = (more.get("max_tokens", 0), more.get("stream", False), more.get("fill", b""))
    return [header(4, id, listed, question, *fields), data]


def padded_ask(peer: Peer, padding: bytes = b"\0\0\0", **changes: Any) -> Frames:
    """A padded ASK written by hand: a right one, but for the changes."""
    vision = peer.payload()
    listed = [[name, len(data), zlib.crc32(data)] for name, data in (("v", vision), ("pad", padding))]
    return raw_ask(peer, **{"frames": listed, "data": vision + padding, "fill": b"\0", **changes})


def _bad_padding(peer: Peer) -> bytes:
    data = bytearray(peer.payload())
    data[-1] |= 0xC0  # 90 bits in 12 bytes: the last 6 are padding
    return bytes(data)


def _out_of_range() -> bytes:
    return pack(np.full((TOKENS, CODE_DIM), 7), 8)  # same 3 bits, but 7 is no code of 5 levels


def _deep(depth: int) -> bytes:
    return b"\x91" * depth + b"\x01"


# name -> (the error's code, the id it is about, the frames)
BAD: dict[str, tuple[str, int, Callable[[Peer], Frames]]] = {
    "empty frame": ("malformed", 0, lambda p: [b""]),
    "random bytes": ("malformed", 0, lambda p: [os.urandom(300)]),
    "not an array": ("malformed", 0, lambda p: [msgspec.msgpack.encode({"a": 1})]),
    "deep nesting": ("malformed", 0, lambda p: [_deep(5_000)]),
    "huge announced array": ("malformed", 0, lambda p: [b"\xdd\xff\xff\xff\xff\x01"]),
    "huge announced text": ("malformed", 0, lambda p: [b"\x92\x04\xdb\xff\xff\xff\xff"]),
    "unknown tag": ("malformed", 0, lambda p: [header(99, 1)]),
    "negative tag": ("malformed", 0, lambda p: [header(-4, 1)]),
    "text as tag": ("malformed", 0, lambda p: [header("ask", 1)]),
    "trailing garbage": ("malformed", 0, lambda p: [header(11) + b"\x00\x01"]),
    "header too large": ("malformed", 0, lambda p: [b"\xc1" * HEADER_CAP]),
    "header over the cap": ("too_large", 0, lambda p: [b"\xc1" * (HEADER_CAP + 1)]),
    "too many frames": ("malformed", 0, lambda p: [header(9, 1), *[b"x"] * 500]),
    "payload after PING": ("malformed", 3, lambda p: [header(9, 3), b"surprise"]),
    "short HELLO": ("malformed", 0, lambda p: [header(1, 1)]),
    "short fingerprint": ("malformed", 0, lambda p: [header(1, 1, b"x", [0], "plain", "a")]),
    "server's WELCOME": (
        "malformed",
        0,
        lambda p: join(Welcome(1, b"12345678", Limits(1, 1, 1, 1), 1, "x")),
    ),
    "server's REJECT": ("malformed", 0, lambda p: join(Reject("full", "go away"))),
    "server's TOKEN": ("malformed", 0, lambda p: join(Token(1, 0, "x"))),
    "server's ANSWER": ("malformed", 0, lambda p: join(Answer(1, "x", 1, 1))),
    "server's ERROR": ("malformed", 0, lambda p: join(Error(1, "internal", "x"))),
    "server's PONG": ("malformed", 0, lambda p: join(Pong(1))),
    "id 0": ("malformed", 0, lambda p: raw_ask(p, id=0)),
    "negative id": ("malformed", 0, lambda p: raw_ask(p, id=-1)),
    "huge id": ("malformed", 0, lambda p: raw_ask(p, id=2**63)),
    "text as id": ("malformed", 0, lambda p: raw_ask(p, id="5")),
    "bytes as question": ("malformed", 5, lambda p: raw_ask(p, question=b"what?")),
    "broken UTF-8": (
        "malformed",
        5,
        lambda p: [raw_ask(p, question="what?")[0].replace(b"what?", b"wh\xff\xfe?"), p.payload()],
    ),
    "negative max_tokens": ("malformed", 5, lambda p: raw_ask(p, max_tokens=-1)),
    "no payload": ("malformed", 5, lambda p: raw_ask(p)[:1]),
    "one payload too many": ("malformed", 5, lambda p: [*raw_ask(p), b"more"]),
    "no frame announced": ("malformed", 5, lambda p: raw_ask(p, frames=[])[:1]),
    "unknown frame": ("malformed", 5, lambda p: raw_ask(p, frames=[["x", 12, zlib.crc32(p.payload())]])),
    "question frame on a plain bundle": (
        "malformed",
        5,
        lambda p: [
            *raw_ask(p, frames=[["v", 12, zlib.crc32(p.payload())], ["q", 1, zlib.crc32(b"a")]]),
            b"a",
        ],
    ),
    "same frame twice": (
        "malformed",
        5,
        lambda p: [*raw_ask(p, frames=[["v", 12, zlib.crc32(p.payload())]] * 2), p.payload()],
    ),
    "announced size differs": (
        "malformed",
        5,
        lambda p: raw_ask(p, frames=[["v", 11, zlib.crc32(p.payload())]]),
    ),
    "nine frames": ("malformed", 5, lambda p: raw_ask(p, frames=[["v", 0, 0]] * 9)),
    "wrong checksum": ("checksum", 5, lambda p: raw_ask(p, frames=[["v", 12, 1]])),
    "flipped bit": (
        "checksum",
        5,
        lambda p: [raw_ask(p)[0], bytes([p.payload()[0] ^ 1]) + p.payload()[1:]],
    ),
    "payload too short": ("codes", 5, lambda p: raw_ask(p, data=p.payload()[:-1])),
    "payload empty": ("codes", 5, lambda p: raw_ask(p, data=b"")),
    "payload too long": ("too_large", 5, lambda p: raw_ask(p, data=p.payload() + b"\0")),
    "payload as large as libzmq lets through": (
        "too_large",
        5,
        lambda p: raw_ask(p, data=b"\0" * (2 * len(p.payload()) + MAX_PAD)),
    ),
    "joined too short": ("malformed", 5, lambda p: padded_ask(p, data=p.payload() + b"\0\0")),
    "joined too long": ("malformed", 5, lambda p: padded_ask(p, data=p.payload() + b"\0\0\0\0")),
    "joined empty": ("malformed", 5, lambda p: padded_ask(p, data=b"")),
    "joined sizes beyond counting": (
        "malformed",
        5,
        lambda p: padded_ask(p, frames=[["v", 2**53 - 1, 0]] * 7 + [["pad", 2**53 - 1, 0]]),
    ),
    "not joined": (
        "malformed",
        5,
        lambda p: [padded_ask(p)[0], p.payload(), b"\0\0\0"],
    ),
    "padding first": (
        "malformed",
        5,
        lambda p: padded_ask(p, frames=[["pad", 3, zlib.crc32(b"\0\0\0")], ["v", 12, 0]]),
    ),
    "padding twice": ("malformed", 5, lambda p: padded_ask(p, frames=[["v", 12, 0], *[["pad", 0, 0]] * 2])),
    "padding alone": (
        "malformed",
        5,
        lambda p: padded_ask(p, frames=[["pad", 3, zlib.crc32(b"\0\0\0")]], data=b"\0\0\0"),
    ),
    "padding too long": ("too_large", 5, lambda p: padded_ask(p, bytes(MAX_PAD + 1))),
    "joined payload too long": (
        "too_large",
        5,
        lambda p: padded_ask(p, frames=[["v", 13, 0], ["pad", 2, 0]]),
    ),
    "joined payload damaged": ("checksum", 5, lambda p: padded_ask(p, data=b"\xff" * 12 + b"\0\0\0")),
    "padding damaged": ("checksum", 5, lambda p: padded_ask(p, data=p.payload() + b"\0\0\1")),
    "fill that is text": ("malformed", 5, lambda p: padded_ask(p, fill="text")),
    "fill over the header's cap": ("too_large", 0, lambda p: padded_ask(p, fill=bytes(HEADER_CAP))),
    "code out of range": ("codes", 5, lambda p: raw_ask(p, data=_out_of_range())),
    "padding not zero": ("codes", 5, lambda p: raw_ask(p, data=_bad_padding(p))),
    "codec not agreed": ("codes", 5, lambda p: raw_ask(p, frames=[["v", 12, zlib.crc32(p.payload()), 0, 1]])),
    "codec unknown": ("codes", 5, lambda p: raw_ask(p, frames=[["v", 12, zlib.crc32(p.payload()), 0, 999]])),
    "wrong token count": ("codes", 5, lambda p: raw_ask(p, frames=[["v", 12, zlib.crc32(p.payload()), 7]])),
    "question too many bytes": ("too_large", 5, lambda p: raw_ask(p, question="x" * 4097)),
    "question too many bytes in UTF-8": ("too_large", 5, lambda p: raw_ask(p, question="ü" * 2049)),
    "question too many tokens": (
        "question",
        5,
        lambda p: raw_ask(p, question="one two three four five six 7 8"),
    ),
    "question empty": ("question", 5, lambda p: raw_ask(p, question="")),
    "question blank": ("question", 5, lambda p: raw_ask(p, question=" \t\n ")),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_message_costs_its_sender_one_error(serve: Serve, connect: Connect, name: str) -> None:
    code, about, build = BAD[name]
    running = serve()
    bad, good = connect(running), connect(running)
    bad.hello()
    good.hello()
    bad.send_frames(*build(bad))
    error = bad.error()
    assert (error.code, error.id) == (code, about), error.message
    assert error.message
    good.ask()
    assert good.answer().text == "four"
    # The sender itself is served too, under the same id: nothing of the bad message was kept.
    bad.ask(id=5)
    assert bad.answer().text == "four"
    assert good.hears_nothing(0.02)
    assert bad.hears_nothing(0.02)
    assert running.server.counts.errors == {code: 1}


@pytest.mark.parametrize("name", [name for name, case in BAD.items() if case[0] in ("malformed", "checksum")])
def test_bad_message_before_hello(serve: Serve, connect: Connect, name: str) -> None:
    running = serve()
    stranger, good = connect(running), connect(running)
    stranger.send_frames(*BAD[name][2](stranger))
    assert stranger.error().code in ("malformed", "checksum", "no_session")
    good.hello()
    good.ask()
    assert good.answer().text == "four"


def test_ask_and_ping_before_hello(serve: Serve, connect: Connect) -> None:
    running = serve()
    stranger, good = connect(running), connect(running)
    stranger.ask(id=9)
    error = stranger.error()
    assert (error.code, error.id) == ("no_session", 9)
    assert "HELLO" in error.message
    stranger.send(Ping(4))
    error = stranger.error()
    assert (error.code, error.id) == ("no_session", 4)
    stranger.send(Bye())
    assert stranger.hears_nothing(0.05)
    good.hello()
    good.ask()
    assert good.answer().text == "four"
    assert len(running.engine.prompts) == 1


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_features_that_are_no_numbers(serve: Serve, connect: Connect, value: float) -> None:
    running = serve(make_manifest(0))
    bad, good = connect(running), connect(running)
    bad.hello()
    good.hello()
    features = np.zeros((TOKENS, CODE_DIM), dtype="<f2")
    features[3, 2] = value
    data = features.tobytes()
    bad.send(Ask(1, (bad.frame(data),), "what?"), [data])
    assert bad.error().code == "codes"
    good.ask()
    assert good.answer().text == "four"
    vision = running.engine.prompts[0].vision
    assert vision.dtype == np.float16
    np.testing.assert_array_equal(vision.tobytes(), good.payload())


def test_features_of_the_wrong_length(serve: Serve, connect: Connect) -> None:
    running = serve(make_manifest(0))
    peer = connect(running)
    peer.hello()
    data = b"\0\0" * (TOKENS * CODE_DIM - 1)
    peer.send(Ask(1, (peer.frame(data),), "what?"), [data])
    assert peer.error().code == "codes"
    peer.ask()
    assert peer.answer().text == "four"


def _coded(peer: Peer, tokens: int, data: bytes, question: str = "", codec: int = 0) -> None:
    vision = peer.payload()
    frames = (peer.frame(vision), frame_codes("q", data, count=tokens, codec=codec))
    peer.send(Ask(1, frames, question), [vision, data])


def test_coded_question(serve: Serve, connect: Connect) -> None:
    running = serve(FakeEngine(make_manifest(text_levels=3), ["yes"]))
    peer, good = connect(running), connect(running)
    peer.hello()
    good.hello()
    codes = np.arange(8).reshape(2, 4) % 3
    data = pack(codes, 3)
    bad: list[tuple[str, int, bytes, str, int]] = [
        ("codes", 2, data[:-1], "", 0),
        ("codes", 2, pack(np.full((2, 4), 3), 4), "", 0),
        ("codes", 2, data, "", 1),
        ("codes", 3, data, "", 0),
        ("question", 0, b"", "", 0),
        ("question", 8, b"\0" * 7, "", 0),
        ("malformed", 2, data, "and as text", 0),
    ]
    for code, tokens, payload, question, codec in bad:
        _coded(peer, tokens, payload, question, codec)
        error = peer.error()
        assert error.code == code, error.message
    peer.ask(question="only as text")
    assert peer.error().code == "malformed"
    _coded(good, 2, data)
    _, answer = good.streamed()
    assert answer.text == "yes"
    [prompt] = running.engine.prompts
    assert prompt.text_codes is not None
    np.testing.assert_array_equal(prompt.text_codes, codes)
    assert prompt.question == ""


def test_oversized_frame_is_cut_off_by_libzmq_and_counted(serve: Serve, connect: Connect) -> None:
    running = serve()
    bad, good = connect(running), connect(running)
    bad.hello()
    good.hello()
    bad.send_frames(b"\0" * (2 * len(bad.payload()) + MAX_PAD + 100))
    assert eventually(lambda: running.server.counts.lost == 1)
    good.ask()
    assert good.answer().text == "four"
    assert bad.hears_nothing(0.05)


def test_bytes_that_are_not_zeromq_are_counted(serve: Serve, connect: Connect) -> None:
    running = serve()
    good = connect(running)
    host, _, port = running.endpoint.removeprefix("tcp://").rpartition(":")
    for greeting in (
        b"GET / HTTP/1.1\r\nHost: x\r\n\r\n" * 5,
        os.urandom(4096),
        b"\xff" + b"\0" * 8 + b"\x7f\x03" * 60,
    ):
        with socket.create_connection((host, int(port)), timeout=10) as stranger:
            stranger.sendall(greeting)
    with socket.create_connection((host, int(port)), timeout=10):
        pass
    good.hello()
    good.ask()
    assert good.answer().text == "four"
    # Four strangers left without Bye; how many of them libzmq takes for a peer of 2010 is its own affair.
    assert eventually(lambda: running.server.counts.lost == 4)
    assert running.server.counts.bad_handshakes >= 1


def test_peer_that_vanishes_in_the_middle_of_its_answer(serve: Serve, connect: Connect) -> None:
    hold = Hold()
    running = serve(FakeEngine(make_manifest(), "abc", before_piece=hold))
    gone, good = connect(running), connect(running)
    gone.hello()
    good.hello()
    gone.ask(stream=True)
    hold.wait_reached()
    gone.close()
    assert eventually(lambda: running.server.counts.lost == 1)
    hold.let(6)
    good.ask()
    assert good.answer().text == "abc"
    # Three tokens and the answer had nobody to go to.
    assert running.server.counts.unsent == 4
    assert running.server.counts.answered == 2


def test_flood_of_garbage_does_not_keep_others_from_their_answers(serve: Serve, connect: Connect) -> None:
    running = serve()
    flood, good = connect(running), connect(running)
    good.hello()
    for _ in range(500):
        flood.send_frames(b"\xc1garbage")
    good.ask()
    assert good.answer().text == "four"
    for _ in range(500):
        assert flood.error().code == "malformed"


def test_peer_that_never_reads_is_dropped_not_buffered_for(serve: Serve, connect: Connect) -> None:
    running = serve()
    deaf, good = connect(running), connect(running)
    deaf.socket.close(linger=0)
    deaf.socket = deaf.context.socket(zmq.DEALER)
    deaf.socket.setsockopt(zmq.RCVHWM, 1)
    deaf.socket.setsockopt(zmq.RCVBUF, 4096)
    deaf.socket.setsockopt(zmq.SNDTIMEO, round(PATIENCE_S * 1000))
    deaf.socket.connect(running.endpoint)
    hello = msgspec.structs.replace(deaf.hello_message(), codecs=tuple(range(60_000, 60_064)))
    # Long refusals pile up until the server's queue for this peer is full; then they are counted and dropped.
    sent = 0
    while not running.server.counts.unsent and sent < 200_000:
        deaf.send(hello)
        sent += 1
    assert running.server.counts.unsent
    good.hello()
    good.ask()
    assert good.answer().text == "four"


def test_engine_that_fails_costs_one_question(
    serve: Serve, connect: Connect, caplog: pytest.LogCaptureFixture
) -> None:
    def pieces(prompt: Any) -> list[str]:
        if prompt.question == "fail":
            raise ZeroDivisionError("secret detail")
        return ["fine"]

    running = serve(FakeEngine(make_manifest(), pieces))
    bad, good = connect(running), connect(running)
    bad.hello()
    good.hello()
    bad.ask(question="fail")
    error = bad.error()
    assert (error.code, error.id) == ("internal", 1)
    assert "ZeroDivisionError" in error.message
    assert "secret" not in error.message
    assert "secret detail" in caplog.text  # the operator sees all of it
    good.ask()
    assert good.answer().text == "fine"
    bad.ask(question="fail")  # an error is not an answer: the retry is computed again
    assert bad.error().code == "internal"


def test_answer_too_long_for_a_message(serve: Serve, connect: Connect) -> None:
    running = serve(FakeEngine(make_manifest(), lambda p: ["x" * 9000] * (2 if p.question == "long" else 1)))
    peer = connect(running)
    peer.hello()
    peer.ask(1, "long")
    assert peer.error().code == "too_large"
    peer.ask(2, "short")
    assert peer.answer().text == "x" * 9000


@given(st.binary(max_size=40), st.integers(0, 2**16), st.integers(0, 3), st.sampled_from(["", " ", "what?"]))
def test_no_payload_gets_past_admission_unless_it_is_right(
    data: bytes, count: int, codec: int, question: str
) -> None:
    for manifest in (make_manifest(5), make_manifest(0), make_manifest(256)):
        ask = Ask(1, (Frame("v", len(data), zlib.crc32(data), count, codec),), question)
        try:
            prompt = read_ask(ask, {"v": data}, manifest)
        except QtlError:
            continue
        assert prompt.vision.shape == (TOKENS, CODE_DIM)
        assert question.strip()


def test_a_padded_question_by_hand_is_answered(serve: Serve, connect: Connect) -> None:
    """What the broken ones above are variants of."""
    peer = connect(serve())
    peer.hello()
    peer.send_frames(*padded_ask(peer))
    assert peer.answer().text == "four"


def test_running_is_what_it_says(serve: Serve) -> None:
    running = serve()
    assert isinstance(running, Running)
    assert running.endpoint.startswith("tcp://127.0.0.1:")
    running.stop()
    assert running.engine.closed
