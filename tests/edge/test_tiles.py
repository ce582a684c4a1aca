"""Tiled pictures on the device: every tile through the graph, the size in the question, what is reported."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from PIL import Image

from edge_runtime import EdgeClient
from edge_runtime.client import TILES_AT_ONCE
from edge_runtime.doctor.bundle import described
from edge_runtime.tiles import prepare
from qtl_core import bundle, codes
from qtl_core.errors import HandshakeRefused, PictureError
from qtl_core.tiling import Anyres, Split, Tiling
from tests.edge import tiny
from tests.edge.test_cli import Run, run
from tests.edge.test_real_server import Start, start

__all__ = ["run", "start"]

Connect = Callable[..., EdgeClient]
GRIDS = Anyres(grids=((1, 1), (2, 3), (1, 2)))
SPLIT = Split(longest=90)


def tiled(tiling: Tiling | None) -> bundle.Picture:
    return msgspec.structs.replace(tiny.PICTURE, tiling=tiling)


@pytest.fixture
def half(tmp_path: Path, request: pytest.FixtureRequest) -> Path:
    folder = tmp_path / "bundle" / "client"
    tiling = getattr(request, "param", GRIDS)
    tiny.write_client(folder, picture=tiled(tiling))
    return folder


@pytest.mark.parametrize("half", [GRIDS, SPLIT], indirect=True, ids=["anyres", "split"])
@pytest.mark.parametrize("size", [(96, 64), (30, 30), (200, 20)])
def test_every_tile_arrives(start: Start, connect: Connect, half: Path, size: tuple[int, int]) -> None:
    server = start()
    picture = Image.fromarray(tiny.scene(3, size[1], size[0]))
    answer = connect(server.endpoint).ask(picture, "what?")
    seen = prepare(picture, bundle.open_half(half, "client").manifest.picture)
    (prompt,) = server.fake.prompts
    expected = [
        codes.unpack(tiny.payload(one), tiny.LEVELS, (tiny.TOKENS, tiny.CODE_DIM)) for one in seen.tiles
    ]
    np.testing.assert_array_equal(prompt.vision, np.stack(expected))
    assert prompt.size == size
    tiles = len(seen.tiles)
    assert (answer.tiles, answer.tokens) == (tiles, tiles * tiny.TOKENS)
    assert answer.payload_bytes == answer.packed_bytes == tiles * tiny.PAYLOAD
    assert answer.feature_bytes_16bit == tiles * tiny.TOKENS * 3 * 2
    assert size != (96, 64) or tiles > TILES_AT_ONCE


@pytest.mark.parametrize("half", [Split(longest=90, split=False)], indirect=True, ids=["whole"])
def test_a_picture_of_one_tile_tells_no_size(start: Start, connect: Connect) -> None:
    server = start()
    answer = connect(server.endpoint).ask(tiny.scene(3, 64, 96), "what?")
    (prompt,) = server.fake.prompts
    assert prompt.size is None and prompt.vision.shape == (tiny.TOKENS, tiny.CODE_DIM)
    assert (answer.tiles, answer.tokens) == (1, tiny.TOKENS)


def test_command(run: Run, start: Start, image: Path) -> None:
    outcome = run("ask", "--image", image, "--json", "what?", server=start().endpoint)
    assert outcome.code == 0
    told = json.loads(outcome.out)
    assert told["tiles"] > 1 and told["tokens"] == told["tiles"] * tiny.TOKENS
    outcome = run("ask", "--image", image, "what?", server=start().endpoint)
    assert f"({told['tiles']} tiles x {tiny.TOKENS} tokens x 3 codes x 2 bit)" in outcome.err


def test_a_server_of_before_tiles_is_no_match(start: Start, connect: Connect, half: Path) -> None:
    """A server half whose pictures are not cut does not belong to a client half whose are."""
    other = bundle.fingerprint(tiny.cut(), tiny.PICTURE, tiny.PLAIN, tiny.TEMPLATE, "0" * 64, "0" * 64)
    server = start(change={"picture": tiny.PICTURE, "fingerprint": other})
    with pytest.raises(HandshakeRefused, match="two halves of one export"):
        connect(server.endpoint).ask(tiny.scene(), "what?")


def test_doctor_tells_tiles(half: Path) -> None:
    assert "up to 7 tiles" in described(bundle.open_half(half, "client")).said


def test_a_picture_too_narrow_to_be_resized_is_refused() -> None:
    spec = msgspec.structs.replace(tiled(GRIDS), max_pixels=300)
    with pytest.raises(PictureError, match="too long and narrow"):
        prepare(Image.new("RGB", (1, 300)), spec)


@pytest.mark.parametrize("several", [["a.png", "b.png"], (1, 2)])
def test_several_pictures_are_not_supported(connect: Connect, several: Any) -> None:
    with pytest.raises(PictureError, match="one picture"):
        connect("tcp://127.0.0.1:1").encode(several)


def test_videos_are_not_supported(connect: Connect, tmp_path: Path) -> None:
    for data in (b"\0\0\0\x18ftypmp42" + bytes(64), b"\x1a\x45\xdf\xa3" + bytes(64), b"RIFF\0\0\0\0AVI LIST"):
        (tmp_path / "film").write_bytes(data)
        with pytest.raises(PictureError, match="videos are not supported"):
            connect("tcp://127.0.0.1:1").encode(tmp_path / "film")


def test_old_manifests_have_no_tiles_and_their_fingerprint() -> None:
    old = msgspec.to_builtins(tiny.PICTURE)
    del old["tiling"]
    assert msgspec.convert(old, bundle.Picture) == tiny.PICTURE
    plain = bundle.fingerprint(tiny.cut(), tiny.PICTURE, tiny.PLAIN, tiny.TEMPLATE, "0" * 64, "0" * 64)
    assert plain == "a98caff366d4d0d9457b220a4a6b7239"  # of the first version
    assert plain != bundle.fingerprint(
        tiny.cut(), tiled(GRIDS), tiny.PLAIN, tiny.TEMPLATE, "0" * 64, "0" * 64
    )


@pytest.mark.parametrize(
    "change",
    [
        {"tiling": {"type": "anyres", "grids": []}},
        {"tiling": {"type": "anyres", "grids": [[0, 1]]}},
        {"tiling": {"type": "anyres", "grids": [[256, 256]]}},
        {"tiling": {"type": "split", "longest": 5000}},
        {"tiling": {"type": "split", "longest": 4096}, "height": 32, "width": 32},
        {"tiling": {"type": "other"}},
        {"tiling": {"type": "split", "longest": 90}, "width": 30},
        {"tiling": {"type": "split", "longest": 90}, "fit": "pad"},
    ],
)
def test_a_manifest_that_cuts_otherwise_is_refused(change: dict[str, Any]) -> None:
    with pytest.raises(msgspec.ValidationError):
        msgspec.convert({**msgspec.to_builtins(tiny.PICTURE), **change}, bundle.Picture)
