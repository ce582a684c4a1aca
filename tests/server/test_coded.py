"""Entropy-coded pictures and padded messages: who may send them, and every way they can be wrong."""

from __future__ import annotations

from typing import Any

import msgspec
import numpy as np
import numpy.typing as npt
import pytest

from qtl_core import entropy
from qtl_core.codes import pack
from qtl_core.entropy import Tables
from qtl_core.messages import CAN_PAD, CAN_RANS, CODEC_FLOAT16, CODEC_PACKED, CODEC_RANS, Ask, Reject
from qtl_core.wire import MAX_MULTIPLE, MAX_PAD, frame_codes, join, pad, wire_size
from server_runtime import Prompt
from tests.server.conftest import CODE_DIM, TOKENS, Connect, Serve, make_manifest
from tests.server.peer import Peer

LEVELS = 5
BOTH = (CAN_RANS, CAN_PAD)


def likely(count: int, seed: int = 0) -> npt.NDArray[np.uint8]:
    """Codes [count, tokens, code_dim] that are mostly 0."""
    rng = np.random.default_rng(seed)
    return rng.choice(LEVELS, (count, TOKENS, CODE_DIM), p=[0.9, 0.04, 0.03, 0.02, 0.01]).astype(np.uint8)


@pytest.fixture(scope="module")
def tables() -> Tables:
    return Tables.fit(likely(40), LEVELS)


@pytest.fixture
def peer(serve: Serve, connect: Connect, tables: Tables) -> Peer:
    """A client with the server's tables, that has not said HELLO."""
    peer = connect(serve(tables=tables))
    peer.capabilities, peer.tables = BOTH, tables.digest
    return peer


def _hello(peer: Peer, **changes: Any) -> Any:
    hello = msgspec.structs.replace(peer.hello_message(), codecs=(CODEC_PACKED, CODEC_RANS))
    peer.send(msgspec.structs.replace(hello, **changes))
    return peer.receive()


def _ask(peer: Peer, data: bytes, codec: int = CODEC_RANS, id: int = 1) -> None:
    peer.send(Ask(id, (frame_codes("v", data, codec=codec),), "how many?"), [data])


def test_coded_and_packed_pictures_are_the_same_prompt(
    serve: Serve, connect: Connect, tables: Tables
) -> None:
    running = serve(tables=tables)
    peer = connect(running)
    peer.capabilities, peer.tables = BOTH, tables.digest
    assert _hello(peer).capabilities == BOTH
    (codes,) = likely(1, seed=9)
    coded, packed = entropy.encode(codes, tables), pack(codes, LEVELS)
    assert len(coded) < len(packed)
    _ask(peer, coded)
    peer.streamed()
    _ask(peer, packed, CODEC_PACKED, id=2)
    peer.streamed()
    prompts: list[Prompt] = running.engine.prompts
    assert len(prompts) == 2
    for prompt in prompts:
        assert prompt.vision.dtype == np.uint8
        np.testing.assert_array_equal(prompt.vision, codes)


def test_capabilities_are_what_both_ends_have(serve: Serve, connect: Connect, tables: Tables) -> None:
    with_tables, without = serve(tables=tables), serve()
    digest = tables.digest
    for running, has, says, gets in (
        (with_tables, digest, BOTH, BOTH),
        (with_tables, digest, (CAN_RANS, "later"), (CAN_RANS,)),
        (with_tables, digest, (), ()),
        (with_tables, b"", BOTH, (CAN_PAD,)),
        (without, b"", BOTH, (CAN_PAD,)),
    ):
        assert _hello(connect(running), capabilities=says, tables=has).capabilities == gets
    # Who names the capability and not the codec cannot mean it.
    only_packed = connect(with_tables)
    assert _hello(only_packed, codecs=(CODEC_PACKED,), capabilities=BOTH, tables=digest).capabilities == (
        CAN_PAD,
    )


@pytest.mark.parametrize("has", [True, False])
def test_other_tables_are_refused_and_both_digests_named(
    serve: Serve, connect: Connect, tables: Tables, has: bool
) -> None:
    running = serve(tables=tables if has else None)
    reject = _hello(connect(running), tables=b"\xab" * 8)
    assert isinstance(reject, Reject)
    assert reject.reason == "codec"
    assert "abababababababab" in reject.message
    assert (tables.digest.hex() if has else "none") in reject.message
    assert running.server.counts.rejected == {"codec": 1}


def test_client_of_before_works_with_packed_codes(serve: Serve, connect: Connect, tables: Tables) -> None:
    running = serve(tables=tables)
    peer = connect(running)
    whole = msgspec.structs.astuple(peer.hello_message())
    peer.send_frames(msgspec.msgpack.encode([1, *whole[:5]]))  # as it was before there were tables
    assert peer.receive().capabilities == ()  # type: ignore[union-attr]
    peer.ask()
    assert peer.answer().text == "four"


def _damaged(data: bytes) -> dict[str, bytes]:
    return {
        "empty": b"",
        "cut short": data[:-1],
        "extended": data + b"\0",
        "longer than packed": data + bytes(40),
        "noise": bytes(range(7, 7 + len(data))),
    }


@pytest.mark.parametrize("damage", _damaged(b"x"))
def test_damaged_data_costs_its_sender_an_error(peer: Peer, tables: Tables, damage: str) -> None:
    _hello(peer)
    data = entropy.encode(likely(1)[0], tables)
    _ask(peer, _damaged(data)[damage])
    error = peer.error()
    # Over the session's limit, or no codes: both are said before anything is computed.
    assert (error.code, error.id) == ("too_large" if damage == "longer than packed" else "codes", 1)
    _ask(peer, data, id=2)
    peer.streamed()


def test_longer_than_packed_is_refused_where_the_limit_does_not(
    serve: Serve, connect: Connect, tables: Tables
) -> None:
    """Coded questions may be longer than a picture, and so is the limit then."""
    manifest = make_manifest(LEVELS, text_levels=256)
    peer = connect(serve(manifest, tables=tables))
    peer.capabilities, peer.tables = BOTH, tables.digest
    _hello(peer)
    picture, question = bytes(manifest.cut.payload_bytes + 1), bytes(4)
    frames = (frame_codes("v", picture, codec=CODEC_RANS), frame_codes("q", question, count=1))
    peer.send(Ask(1, frames), [picture, question])
    error = peer.error()
    assert error.code == "codes"
    assert "longer than packed" in error.message


@pytest.mark.parametrize(("codec", "own"), [(CODEC_RANS, False), (CODEC_FLOAT16, True), (3, True)])
def test_codecs_that_were_not_agreed_on(
    serve: Serve, connect: Connect, tables: Tables, codec: int, own: bool
) -> None:
    peer = connect(serve(tables=tables if own else None))
    peer.hello()
    _ask(peer, entropy.encode(likely(1)[0], tables), codec)
    error = peer.error()
    assert error.code == "codes"
    assert f"codec {codec}" in error.message


def test_coded_questions_stay_packed(serve: Serve, connect: Connect, tables: Tables) -> None:
    peer = connect(serve(make_manifest(LEVELS, text_levels=4), tables=tables))
    peer.capabilities, peer.tables = BOTH, tables.digest
    _hello(peer)
    picture, question = entropy.encode(likely(1)[0], tables), pack(np.zeros((3, 4), np.uint8), 4)
    frame = frame_codes("v", picture, codec=CODEC_RANS)
    peer.send(Ask(1, (frame, frame_codes("q", question, count=3, codec=CODEC_RANS))), [picture, question])
    assert peer.error().code == "codes"
    peer.send(Ask(2, (frame, frame_codes("q", question, count=3))), [picture, question])
    peer.streamed()


def test_padding_is_ignored_but_for_its_size(peer: Peer, tables: Tables) -> None:
    _hello(peer)
    data = entropy.encode(likely(1)[0], tables)
    for number, multiple in enumerate((1, 64, 1000, MAX_MULTIPLE), start=1):
        ask = Ask(number, (frame_codes("v", data, codec=CODEC_RANS),), "how many?")
        peer.send(*pad(ask, [data], multiple))
        peer.streamed()
    for number, padding in enumerate((b"anything at all", b"", bytes(MAX_PAD)), start=7):
        frames = (frame_codes("v", data, codec=CODEC_RANS), frame_codes("pad", padding))
        peer.send(Ask(number, frames, "?", fill=padding[:99]), [data, padding])
        peer.streamed()


def test_other_padding_does_not_make_another_question(serve: Serve, connect: Connect, tables: Tables) -> None:
    running = serve(tables=tables)
    peer = connect(running)
    peer.capabilities, peer.tables = BOTH, tables.digest
    _hello(peer)
    data = entropy.encode(likely(1)[0], tables)
    ask = Ask(1, (frame_codes("v", data, codec=CODEC_RANS),), "how many?")
    peer.send(ask, [data])
    first = peer.streamed()
    for multiple in (64, 256):
        peer.send(*pad(ask, [data], multiple))
        assert peer.streamed() == first
    peer.send(*pad(msgspec.structs.replace(ask, question="how much?"), [data], 64))
    assert peer.error().code == "duplicate"
    assert len(running.engine.prompts) == 1


def test_bytes_are_counted_as_they_pass(serve: Serve, connect: Connect, tables: Tables) -> None:
    running = serve(tables=tables)
    peer = connect(running)
    peer.capabilities, peer.tables = BOTH, tables.digest
    _hello(peer)
    before = running.server.counts.bytes_in
    data = entropy.encode(likely(1)[0], tables)
    ask, payloads = pad(Ask(1, (frame_codes("v", data, codec=CODEC_RANS),), "how many?"), [data], 256)
    peer.send(ask, payloads)
    peer.streamed()
    assert running.server.counts.bytes_in - before == wire_size(join(ask, payloads)) == 2 * 256
