"""Frames: joined, split, and every disagreement between header and payload."""

from __future__ import annotations

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from qtl_core import messages, wire
from qtl_core.errors import ChecksumMismatch, MalformedMessage, MessageTooLarge, ProtocolError
from qtl_core.messages import Answer, Ask, Frame, Limits, Ping

LIMITS = Limits(max_payload=100, max_question=20, max_tokens=8, idle_ms=1000)


def _ask(*payloads: bytes, question: str = "what?") -> Ask:
    names = ("v", "q", "a", "b", "c", "d", "e", "f", "g")
    frames = tuple(wire.frame_codes(name, payload) for name, payload in zip(names, payloads, strict=False))
    return Ask(3, frames, question)


@given(st.lists(st.binary(max_size=100), max_size=messages.MAX_FRAMES))
def test_round_trip(payloads: list[bytes]) -> None:
    message = _ask(*payloads)
    back, named = wire.split(wire.join(message, payloads), LIMITS)
    assert back == message
    assert list(named.values()) == payloads
    assert list(named) == list(wire.by_name(message))


def test_frame_codes_uses_the_crc_of_zlib() -> None:
    # The check value of CRC-32/ISO-HDLC, so that a client in another language knows which one it is.
    assert wire.frame_codes("v", b"123456789", count=9, codec=1) == Frame("v", 9, 0xCBF43926, 9, 1)


def test_every_damaged_byte_of_a_payload_is_noticed() -> None:
    payload = bytes(range(40))
    frames = wire.join(_ask(payload), [payload])
    for index in range(len(payload)):
        damaged = bytearray(payload)
        damaged[index] ^= 0x10
        with pytest.raises(ChecksumMismatch, match="CRC-32") as caught:
            wire.split([frames[0], bytes(damaged)], LIMITS)
        assert (caught.value.about, caught.value.wire_code) == (3, "checksum")


def test_every_truncation_of_a_payload_is_noticed() -> None:
    payload = bytes(range(40))
    header = wire.join(_ask(payload), [payload])[0]
    for length in range(len(payload)):
        with pytest.raises(MalformedMessage, match="announced with 40 bytes") as caught:
            wire.split([header, payload[:length]], LIMITS)
        assert caught.value.about == 3


def test_missing_extra_and_doubled_frames() -> None:
    header, one, two = wire.join(_ask(b"one", b"two"), [b"one", b"two"])
    for frames in ([header], [header, one], [header, one, two, b"three"], [header, two, one]):
        with pytest.raises(ProtocolError) as caught:
            wire.split(frames, LIMITS)
        assert caught.value.about == 3
    twice = Ask(3, (wire.frame_codes("v", b"x"),) * 2)
    with pytest.raises(MalformedMessage, match="two payload frames"):
        wire.split(wire.join(twice, [b"x", b"x"]), LIMITS)
    with pytest.raises(MalformedMessage, match="without frames"):
        wire.split([], LIMITS)
    with pytest.raises(MalformedMessage, match="10 frames"):
        wire.split([header] + [b""] * 9, LIMITS)


def test_messages_without_payloads_take_none() -> None:
    assert wire.split(wire.join(Ping(1))) == (Ping(1), {})
    with pytest.raises(MalformedMessage, match="announces 0"):
        wire.split([*wire.join(Ping(1)), b"stowaway"], LIMITS)


def test_caps() -> None:
    exact, over = bytes(100), bytes(101)
    wire.split(wire.join(_ask(exact), [exact]), LIMITS)
    with pytest.raises(MessageTooLarge, match="101 bytes; this session allows 100") as caught:
        wire.split(wire.join(_ask(over), [over]), LIMITS)
    assert (caught.value.about, caught.value.wire_code) == (3, "too_large")
    wire.split(wire.join(_ask(question="ü" * 10)), LIMITS)
    with pytest.raises(MessageTooLarge, match="question of 22 bytes") as caught:
        wire.split(wire.join(_ask(question="ü" * 11)), LIMITS)
    assert caught.value.about == 3


def test_a_header_over_the_cap_is_not_even_decoded() -> None:
    with pytest.raises(MessageTooLarge, match="a header of"):
        wire.split([b"\xc1" * (wire.HEADER_CAP + 1)], LIMITS)
    with pytest.raises(MessageTooLarge, match="ANSWER header takes"):
        wire.join(Answer(1, "x" * wire.HEADER_CAP, 1, 1))
    room = wire.HEADER_CAP - len(messages.encode_header(Answer(1, "", 1, 1))) - 2
    assert len(wire.join(Answer(1, "x" * room, 1, 1))[0]) == wire.HEADER_CAP


def test_a_payload_before_the_handshake() -> None:
    with pytest.raises(MalformedMessage, match="HELLO"):
        wire.split(wire.join(_ask(b"x"), [b"x"]), None)


def test_join_refuses_payloads_that_are_not_the_announced_ones() -> None:
    with pytest.raises(MalformedMessage, match="announces frames of"):
        wire.join(_ask(b"abc"), [b"ab"])
    with pytest.raises(MalformedMessage, match="announces frames of"):
        wire.join(_ask(b"abc"))
    with pytest.raises(MalformedMessage, match="announces frames of"):
        wire.join(Ping(1), [b"x"])


@given(st.lists(st.binary(max_size=60), max_size=6))
def test_random_frames_do_no_more_than_raise(frames: list[bytes]) -> None:
    try:
        wire.split(frames, LIMITS)
    except ProtocolError as error:
        assert error.wire_code in messages.ERROR_CODES


@given(
    st.integers(0, 2**53 - 1),
    st.lists(st.tuples(st.sampled_from("vq"), st.integers(0, 2**40), st.integers(0, 2**32 - 1)), max_size=3),
    st.lists(st.binary(max_size=8), max_size=3),
)
def test_hostile_announcements(
    number: int, frames: list[tuple[str, int, int]], payloads: list[bytes]
) -> None:
    header = msgspec.msgpack.encode([4, number, frames, "q"])
    try:
        _, named = wire.split([header, *payloads], LIMITS)
    except ProtocolError as error:
        assert error.about in (0, number)
    else:
        assert list(named.values()) == payloads


@pytest.mark.parametrize("curve", [False, True])
@pytest.mark.parametrize("multiple", [1, 2, 7, 16, 64, 100, 128, 129, 255, 256, 257, 512, 1000, 4096, 8192])
def test_padding_makes_every_length_a_multiple(multiple: int, curve: bool) -> None:
    """At most one step longer than need be, for any payload and question."""
    for length in (0, 1, 11, 50, 127, 128, 200, 255, 256, 700, 70_000):
        payload = bytes(range(256)) * 300
        ask = Ask(7, (wire.frame_codes("v", payload[:length], codec=2),), "q" * (length % 300), 16)
        padded, payloads = wire.pad(ask, [payload[:length]], multiple, curve)
        frames = wire.join(padded, payloads)
        size = wire.wire_size(frames, curve)
        assert size % multiple == 0
        # 16 bytes announce the frame, and up to 9 and CURVE's 33 carry it.
        shortest = wire.wire_size(wire.join(ask, [payload[:length]]), curve) + 16 + (42 if curve else 9)
        assert size < shortest + 2 * multiple
        assert padded.frames[:-1] == ask.frames and len(payloads[-1]) <= wire.MAX_PAD
        limits = Limits(70_000, 300, 64, 1000)
        assert wire.split(frames, limits)[0] == padded


@pytest.mark.parametrize("multiple", [0, -1, wire.MAX_MULTIPLE + 1])
def test_impossible_padding(multiple: int) -> None:
    with pytest.raises(MalformedMessage, match="multiple"):
        wire.pad(Ask(1, ()), [], multiple)


@pytest.mark.parametrize("payload", [11, 60, 233_280])
@pytest.mark.parametrize("question", [5, 40, 250, 4000])
@pytest.mark.parametrize("codec", [0, 1, 2])
def test_header_and_framing_take_at_most_64_bytes(payload: int, question: int, codec: int) -> None:
    """Beyond payload and question, checksum included; with the largest id and every field set."""
    data = bytes(payload)
    frame = wire.frame_codes("v", data, count=729, codec=codec)
    ask = Ask(2**53 - 1, (frame,), "q" * question, 64, True)
    frames = wire.join(ask, [data])
    assert wire.wire_size(frames) - payload - question <= 64
    # CURVE makes each of the two frames 33 bytes longer, and may make its length longer to write.
    assert wire.wire_size(frames, curve=True) - payload - question <= 64 + 2 * (33 + 7)
    usual = wire.join(Ask(1, (wire.frame_codes("v", data, codec=codec),), "q" * question), [data])
    assert wire.wire_size(usual) - payload - question <= 44
