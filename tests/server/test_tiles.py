"""Questions about tiled pictures: what the engine gets, and every way in which tiles and size do not fit."""

from __future__ import annotations

import re
from typing import Any

import msgspec
import numpy as np
import numpy.typing as npt
import pytest

from qtl_core import messages as m
from qtl_core import payloads
from qtl_core.bundle import Manifest
from qtl_core.codes import pack
from qtl_core.entropy import Tables
from qtl_core.tiling import Anyres, Split, Tiling
from qtl_core.wire import frame_codes
from server_runtime import FakeEngine
from tests.server.conftest import CODE_DIM, TOKENS, Connect, Serve, make_manifest
from tests.server.peer import Peer
from tests.server.test_coded import likely

GRIDS = Anyres(grids=((1, 1), (1, 2), (2, 2)))
WIDE, TILES = (40, 20), 3


def tiled(levels: int = 5, tiling: Tiling = GRIDS) -> Manifest:
    manifest = make_manifest(levels)
    return msgspec.structs.replace(
        manifest, picture=msgspec.structs.replace(manifest.picture, tiling=tiling, max_pixels=10_000)
    )


def codes(tiles: int = TILES) -> npt.NDArray[np.uint8]:
    drawn = np.random.default_rng(1).integers(0, 5, (tiles, TOKENS, CODE_DIM), dtype=np.uint8)
    return np.asarray(drawn)


def payload(tiles: int = TILES) -> bytes:
    return b"".join(pack(tile, 5) for tile in codes(tiles))


def opened(serve: Serve, connect: Connect, manifest: Manifest) -> tuple[FakeEngine, Peer]:
    running = serve(manifest)
    peer = connect(running)
    peer.capabilities = (m.CAN_TILE,)
    assert m.CAN_TILE in peer.hello().capabilities
    return running.engine, peer


def ask(peer: Peer, data: bytes, size: tuple[int, ...], *, id: int = 1, count: int = 0) -> None:
    frame = frame_codes("v", data, count=count, codec=m.CODECS[peer.manifest.cut.codec])
    peer.send(m.Ask(id, (frame,), "what?", 0, False, b"", size), [data])


@pytest.mark.parametrize("count", [0, TILES * TOKENS])
def test_the_engine_gets_tiles_and_size(serve: Serve, connect: Connect, count: int) -> None:
    engine, peer = opened(serve, connect, tiled())
    ask(peer, payload(), WIDE, count=count)
    assert peer.answer().text == "four"
    (prompt,) = engine.prompts
    np.testing.assert_array_equal(prompt.vision, codes())
    assert prompt.size == WIDE


def test_features(serve: Serve, connect: Connect) -> None:
    engine, peer = opened(serve, connect, tiled(0))
    features = np.random.default_rng(1).standard_normal((TILES, TOKENS, CODE_DIM)).astype("<f2")
    ask(peer, features.tobytes(), WIDE)
    assert peer.answer().text == "four"
    np.testing.assert_array_equal(engine.prompts[0].vision, features)


def test_the_limit_holds_the_largest_picture_and_no_more(serve: Serve, connect: Connect) -> None:
    manifest = tiled()
    running = serve(manifest)
    peer = connect(running)
    peer.capabilities = (m.CAN_TILE,)
    assert peer.hello().limits.max_payload == 5 * manifest.cut.payload_bytes
    ask(peer, payload(5), (30, 30))
    peer.answer()
    ask(peer, payload(6), (30, 30), id=2)
    assert peer.error().code == "too_large"


BAD: dict[str, tuple[dict[str, Any], str, str]] = {
    "no size": ({"size": ()}, "malformed", "must tell its picture's width and height"),
    "half a size": ({"size": (40,)}, "malformed", "must tell its picture's width and height"),
    "a size of other tiles": ({"size": (20, 20)}, "codes", "take 60 bytes in 5 tiles, got 36"),
    "a tile too few": ({"data": payload(2)}, "codes", "take 36 bytes in 3 tiles, got 24"),
    "a tile too many": ({"data": payload(4)}, "codes", "take 36 bytes in 3 tiles, got 48"),
    "half a tile": ({"data": payload()[:30]}, "codes", "take 36 bytes in 3 tiles, got 30"),
    "tokens of one tile": ({"count": TOKENS}, "codes", "holds 6 tokens, .* have 18 in 3 tiles"),
    "too many pixels": ({"size": (101, 100)}, "codes", "101 x 100 pixels is larger"),
    "pixels beyond 64 bits": ({"size": (2**31 - 1, 2**31 - 1)}, "codes", "is larger"),
    "narrower than a tile has pixels": ({"size": (10_000, 1)}, "codes", "take 24 bytes in 2 tiles, got 36"),
    "a code out of range": ({"data": b"\xff" * 36}, "codes", ""),
}


@pytest.mark.parametrize(("change", "code", "said"), BAD.values(), ids=BAD.keys())
def test_what_does_not_fit_gets_one_error(
    serve: Serve, connect: Connect, change: dict[str, Any], code: str, said: str
) -> None:
    engine, peer = opened(serve, connect, tiled())
    ask(peer, **{"data": payload(), "size": WIDE, **change})
    error = peer.error()
    assert (error.id, error.code) == (1, code)
    assert re.search(said, error.message), error.message
    ask(peer, payload(), WIDE, id=2)
    assert peer.answer().text == "four"
    assert len(engine.prompts) == 1


@pytest.mark.parametrize("size", [(0, 5), (-1, 5), (2**31, 5), (5, 5, 5), "5x5", (1.5, 2), None])
def test_sizes_that_are_none_are_malformed(serve: Serve, connect: Connect, size: Any) -> None:
    _, peer = opened(serve, connect, tiled())
    data = payload()
    frame = frame_codes("v", data)
    header = [4, 1, [[frame.name, frame.size, frame.crc]], "what?", 0, False, b"", size]
    peer.send_frames(msgspec.msgpack.encode(header), data)
    error = peer.error()
    assert (error.id, error.code) == (1, "malformed")
    ask(peer, payload(), WIDE, id=2)
    assert peer.answer().text == "four"


@pytest.mark.parametrize("manifest", [make_manifest(), tiled(tiling=Split(longest=64, split=False))])
def test_a_size_that_nobody_needs_is_refused(serve: Serve, connect: Connect, manifest: Manifest) -> None:
    peer = connect(serve(manifest))
    peer.hello()
    ask(peer, payload(1), WIDE)
    error = peer.error()
    assert error.code == "malformed" and "not cut into tiles" in error.message
    ask(peer, payload(1), (), id=2)
    assert peer.answer().text == "four"


def test_a_client_that_knows_no_tiles_is_told_so(serve: Serve, connect: Connect) -> None:
    peer = connect(serve(tiled()))
    peer.send(peer.hello_message())
    reject = peer.receive()
    assert isinstance(reject, m.Reject) and reject.reason == "protocol" and "tiles" in reject.message


def test_the_same_id_with_another_size_is_another_question(serve: Serve, connect: Connect) -> None:
    _, peer = opened(serve, connect, tiled())
    ask(peer, payload(), WIDE)
    peer.answer()
    ask(peer, payload(), (41, 20))
    assert peer.error().code == "duplicate"


def test_entropy_coded_tiles_are_one_payload(serve: Serve, connect: Connect) -> None:
    tables = Tables.fit(likely(40), 5)
    manifest = msgspec.structs.replace(tiled(), tables=tables.digest.hex())
    running = serve(manifest, tables=tables)
    peer = connect(running)
    peer.capabilities, peer.tables = (m.CAN_TILE, m.CAN_RANS), tables.digest
    peer.send(msgspec.structs.replace(peer.hello_message(), codecs=(m.CODEC_PACKED, m.CODEC_RANS)))
    peer.receive()
    seen = likely(TILES, seed=7)
    data = payloads.entropy_coded(seen, tables)
    assert len(data) < TILES * manifest.cut.payload_bytes
    peer.send(m.Ask(1, (frame_codes("v", data, codec=m.CODEC_RANS),), "what?", 0, False, b"", WIDE), [data])
    assert peer.answer().text == "four"
    np.testing.assert_array_equal(running.engine.prompts[0].vision, seen)
