"""Frames: joined, split, and every disagreement between header and payload."""

from __future__ import annotations

import zlib

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from qtl_core import messages, wire
from qtl_core.errors import ChecksumMismatch, MalformedMessage, MessageTooLarge, ProtocolError
from qtl_core.messages import Answer, Ask, Frame, Limits, Micro, Ping

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


@pytest.mark.parametrize("size", [0, 1, wire.PIECE - 1, wire.PIECE, wire.PIECE + 1, 3 * wire.PIECE, 700_000])
def test_long_payloads_travel_in_pieces(size: int) -> None:
    payloads = [bytes(range(256)) * (size // 256) + bytes(size % 256), b"short"]
    header = messages.Micro(1, tuple(map(wire.frame_codes, "vt", payloads)), 0, 0, 4)
    frames = wire.join(header, payloads)
    assert len(frames) == 2 + max(1, -(-size // wire.PIECE)) and max(map(len, frames)) <= wire.PIECE
    limits = messages.Limits(max_payload=max(size, 5), max_question=0, max_tokens=0, idle_ms=0)
    assert wire.split(frames, limits) == (header, dict(zip("vt", payloads, strict=True)))


def test_pieces_of_other_lengths_are_refused() -> None:
    payload = bytes(2 * wire.PIECE + 10)
    header = messages.Micro(1, (wire.frame_codes("v", payload),), 0, 0, 4)
    limits = messages.Limits(max_payload=len(payload), max_question=0, max_tokens=0, idle_ms=0)
    first, *rest = wire.join(header, [payload])
    for wrong in ([payload], [rest[0], rest[1] + rest[2]], [rest[2], rest[0], rest[1]], [*rest, b""]):
        with pytest.raises(MalformedMessage, match="frames"):
            wire.split([first, *wrong], limits)
    small = msgspec.structs.replace(limits, max_payload=len(payload) - 1)
    with pytest.raises(MessageTooLarge):
        wire.split([first, *rest], small)


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
    st.lists(
        st.tuples(st.sampled_from(["v", "q", "pad"]), st.integers(0, 2**40), st.integers(0, 2**32 - 1))
        | st.tuples(st.sampled_from(["v", "q", "pad"]), st.just(1), st.just(zlib.crc32(b"x"))),
        max_size=3,
    ),
    st.lists(st.binary(max_size=8) | st.sampled_from([b"x", b"xx", b"xxx"]), max_size=3),
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
        padding = sum(size for name, size, _ in frames if name == "pad")
        joined = b"".join(payloads)
        assert b"".join(named.values()) == joined[: len(joined) - padding]


def _padded(sizes: list[int], question: int, multiple: int, curve: bool) -> None:
    """Pads a message, and checks that it is exact, no longer than need be, and read back."""
    payloads = [bytes([number + 1]) * size for number, size in enumerate(sizes)]
    names = ("v", "q")[: len(sizes)]
    described = tuple(wire.frame_codes(name, data) for name, data in zip(names, payloads, strict=True))
    ask = Ask(7, described, "q" * question, 16)
    padded, parts = wire.pad(ask, payloads, multiple, curve)
    header, joined = frames = wire.join(padded, parts)
    bare = messages.encode_header(msgspec.structs.replace(padded, fill=b""))
    for frame, least in ((header, bare), (joined, b"".join(payloads))):
        length, shortest = wire.wire_size([frame], curve), wire.wire_size([least], curve)
        assert length % multiple == 0
        # The next multiple, or one soon after: growing fields lead over 10 lengths, in three places.
        assert length < shortest + 3 * multiple + 10
    assert joined.startswith(b"".join(payloads)) and not any(joined[sum(sizes) :])
    assert padded.frames[:-1] == described and padded.frames[-1].name == wire.PAD
    back, named = wire.split(frames, Limits(70_000, 10_000, 64, 1000))
    assert back == padded
    assert named == dict(zip(names, payloads, strict=True))


@given(
    st.lists(st.integers(0, 600) | st.integers(0, 70_000), max_size=2),
    st.integers(0, 600) | st.integers(0, 10_000),
    st.integers(1, 300) | st.integers(1, wire.MAX_MULTIPLE),
    st.booleans(),
)
def test_padding_makes_both_frames_multiples(
    sizes: list[int], question: int, multiple: int, curve: bool
) -> None:
    _padded(sizes, question, multiple, curve)


@pytest.mark.parametrize("curve", [False, True])
@pytest.mark.parametrize(("size", "question"), [(11, 30), (253, 180), (200, 10_000)])
def test_every_multiple_can_be_padded_to(size: int, question: int, curve: bool) -> None:
    for multiple in range(1, wire.MAX_MULTIPLE + 1):
        _padded([size], question, multiple, curve)


@pytest.mark.parametrize("curve", [False, True])
def test_padding_around_every_length_that_grows(curve: bool) -> None:
    """ZMTP's length field grows at 256 bytes, msgpack's at 32 (text) and 256 (text, bytes)."""
    for length in range(300):
        for multiple in (1, 2, 3, 64, 255, 256, 257, 258, 264, 265, 300):
            _padded([length], 40, multiple, curve)
            _padded([11], length, multiple, curve)


def test_padding_hides_sizes_up_to_the_multiple() -> None:
    """Payloads, questions and ids whose announcements are not of one length give frames that are."""
    seen = set()
    sent = ((0, 1, 1), (1, 31, 127), (127, 32, 128), (128, 255, 2**20), (300, 256, 2**40))
    for size, question, number in sent:
        data = bytes(size)
        ask = Ask(number, (wire.frame_codes("v", data),), "?" * question)
        seen.add(tuple(map(len, wire.join(*wire.pad(ask, [data], 512, curve=True)))))
    assert len(seen) == 1


def test_a_question_too_long_to_be_padded() -> None:
    """The header stays within its cap, and nothing is sent half hidden."""
    with pytest.raises(MessageTooLarge, match="cannot be padded to a multiple of 6000 bytes"):
        wire.pad(Ask(1, (), "q" * 12_000), [], 6000)
    padded, payloads = wire.pad(Ask(1, (), "q" * 12_000), [], wire.MAX_MULTIPLE)
    assert len(wire.join(padded, payloads)[0]) == 2 * wire.MAX_MULTIPLE - 9 <= wire.HEADER_CAP


def _joined() -> tuple[Ask, bytes]:
    parts = [b"vision", b"question", b"\1\2\3"]
    ask = Ask(3, tuple(map(wire.frame_codes, ("v", "q", wire.PAD), parts)), fill=b"any content")
    header, joined = wire.join(ask, parts)
    assert messages.decode_header(header) == ask and joined == b"".join(parts)
    return ask, joined


def test_joined_payloads_are_split_at_the_announced_sizes() -> None:
    ask, joined = _joined()
    header = messages.encode_header(ask)
    assert wire.split([header, joined], LIMITS) == (ask, {"v": b"vision", "q": b"question"})
    for wrong in (*(joined[:length] for length in range(len(joined))), joined + b"\0"):
        with pytest.raises(MalformedMessage, match="announced with 17 bytes in all") as caught:
            wire.split([header, wrong], LIMITS)
        assert (caught.value.about, caught.value.wire_code) == (3, "malformed")
    for frames in ([header], [header, b"vision", b"question", b"\1\2\3"], [header, joined, b""]):
        with pytest.raises(MalformedMessage, match="announces 1 payload frames"):
            wire.split(frames, LIMITS)


def test_every_damaged_byte_of_joined_payloads_is_noticed() -> None:
    ask, joined = _joined()
    for index, name in enumerate(["v"] * 6 + ["q"] * 8 + ["pad"] * 3):
        damaged = bytearray(joined)
        damaged[index] ^= 0x10
        with pytest.raises(ChecksumMismatch, match=f"frame '{name}'"):
            wire.split([messages.encode_header(ask), bytes(damaged)], LIMITS)


@pytest.mark.parametrize("names", [("pad", "v"), ("v", "pad", "q"), ("v", "pad", "pad")])
def test_padding_comes_last_and_once(names: tuple[str, ...]) -> None:
    ask = Ask(3, tuple(wire.frame_codes(name, b"x") for name in names))
    payloads = [b"x"] * len(names)
    with pytest.raises(MalformedMessage, match="must be the last one"):
        wire.join(ask, payloads)
    for frames in (payloads, [b"".join(payloads)]):
        with pytest.raises(MalformedMessage, match="must be the last one") as caught:
            wire.split([messages.encode_header(ask), *frames], LIMITS)
        assert caught.value.about == 3


def test_caps_of_joined_payloads() -> None:
    """Each payload has its own limit, as if it came alone, and so has the padding."""

    def sent(vision: int, padding: int) -> None:
        parts = [bytes(vision), bytes(100), bytes(padding)]
        ask = Ask(3, tuple(map(wire.frame_codes, ("v", "q", wire.PAD), parts)))
        wire.split(wire.join(ask, parts), LIMITS)

    sent(100, wire.MAX_PAD)
    with pytest.raises(MessageTooLarge, match="'v' has 101 bytes; this session allows 100"):
        sent(101, 0)
    with pytest.raises(MessageTooLarge, match=f"'pad' has {wire.MAX_PAD + 1} bytes"):
        sent(100, wire.MAX_PAD + 1)


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


@pytest.mark.parametrize(
    "sizes", [[0, 3], [wire.PIECE, wire.PIECE + 1], [3 * wire.PIECE, 0], [5 * wire.PIECE - 1]]
)
def test_large_payloads_of_training_travel_in_pieces(sizes: list[int]) -> None:
    payloads = [bytes([number]) * size for number, size in enumerate(sizes, 1)]
    frames = tuple(wire.frame_codes(f"p{number}", data) for number, data in enumerate(payloads))
    micro = Micro(1, frames, 0, 0, 4)
    sent = wire.join(micro, payloads)
    assert all(len(piece) <= wire.PIECE for piece in sent[1:])
    assert len(sent) - 1 == sum(max(1, -(-size // wire.PIECE)) for size in sizes)
    limits = Limits(5 * wire.PIECE, 0, 0, 0)
    assert wire.split(sent, limits) == (micro, {f"p{number}": data for number, data in enumerate(payloads)})
    for wrong in (sent[:-1], [*sent, b""]):
        with pytest.raises(MalformedMessage, match=r"announces \d+ payload frames, \d+ followed"):
            wire.split(wrong, limits)
    with pytest.raises(ProtocolError):
        wire.split([*sent[:-1], sent[-1] + b"more"], limits)
