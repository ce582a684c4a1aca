"""The device's side of entropy coding and padding: what is sent to whom, and what it cost."""

from __future__ import annotations

import json
import threading
import zlib
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest

from edge_runtime import EdgeClient
from qtl_core import bundle, codes, entropy, keys, wire
from qtl_core import messages as m
from qtl_core.entropy_file import NAME
from qtl_core.errors import BundleError, HandshakeRefused, InputError
from tests.edge import tiny
from tests.edge.peer import LIMITS, ScriptedServer
from tests.edge.test_cli import Run, run

__all__ = ["run"]

Serve = Callable[..., ScriptedServer]
Connect = Callable[..., EdgeClient]

BOTH = (m.CAN_RANS, m.CAN_PAD)


@pytest.fixture
def half(tmp_path: Path) -> Path:
    """A client half with tables of dark pictures."""
    tiny.write_client(tmp_path / "bundle" / "client", tables=tiny.dark_tables())
    return tmp_path / "bundle" / "client"


def able(*capabilities: str) -> Callable[[m.Hello], m.Message]:
    """The WELCOME of a server with these capabilities."""
    return lambda hello: m.Welcome(
        protocol=m.PROTOCOL,
        session=b"12345678",
        limits=LIMITS,
        credits=2,
        agent="scripted",
        capabilities=capabilities,
    )


def test_the_shorter_of_two_is_sent(serve: Serve, connect: Connect) -> None:
    server = serve(welcome=able(*BOTH))
    client = connect(server)
    tables = tiny.dark_tables()
    dark, bright = tiny.dark(3), tiny.scene(3)
    answer = client.ask(dark, "what?")
    assert (answer.codec, answer.packed_bytes) == ("rans", tiny.PAYLOAD)
    expected = codes.unpack(tiny.payload(dark), tiny.LEVELS, (tiny.TOKENS, tiny.CODE_DIM))
    assert answer.payload_bytes == len(entropy.encode(expected, tables)) < tiny.PAYLOAD
    other = client.ask(bright, "what?")
    assert (other.codec, other.payload_bytes, other.packed_bytes) == ("packed", tiny.PAYLOAD, tiny.PAYLOAD)
    coded, packed = server.requests
    assert coded.ask.frames[0].codec == m.CODEC_RANS
    np.testing.assert_array_equal(entropy.decode(coded.payloads["v"], tables, expected.shape), expected)
    assert packed.ask.frames[0].codec == m.CODEC_PACKED
    assert packed.payloads["v"] == tiny.payload(bright)
    assert (client.bytes_up, client.bytes_down) == (server.bytes_up, server.bytes_down)
    (hello,) = server.hellos
    assert (hello.codecs, hello.tables) == ((m.CODEC_PACKED, m.CODEC_RANS), tables.digest)
    assert set(hello.capabilities) == set(BOTH)


def test_a_server_of_before_gets_packed_codes(serve: Serve, connect: Connect) -> None:
    server = serve()
    answer = connect(server).ask(tiny.dark(3), "what?")
    assert (answer.codec, answer.payload_bytes) == ("packed", tiny.PAYLOAD)
    assert server.requests[0].payloads == {"v": tiny.payload(tiny.dark(3))}


def test_a_half_without_tables_says_so(serve: Serve, connect: Connect, tmp_path: Path) -> None:
    tiny.write_client(tmp_path / "plain")
    server = serve(welcome=able(*BOTH))
    answer = connect(server, bundle=tmp_path / "plain").ask(tiny.dark(3), "what?")
    assert answer.codec == "packed"
    (hello,) = server.hellos
    assert (hello.codecs, hello.tables, hello.capabilities) == ((m.CODEC_PACKED,), b"", (m.CAN_PAD,))


def test_unquantized_features_are_not_coded(serve: Serve, connect: Connect, tmp_path: Path) -> None:
    tiny.write_client(tmp_path / "wide", bits=16)
    answer = connect(serve(welcome=able(*BOTH)), bundle=tmp_path / "wide").ask(tiny.dark(3), "what?")
    assert (answer.codec, answer.payload_bytes, answer.packed_bytes) == ("float16", 96, 96)


def test_encoding_once_for_servers_of_both_kinds(serve: Serve, connect: Connect) -> None:
    old, new = connect(serve()), connect(serve(welcome=able(*BOTH)))
    encoded = old.encode(tiny.dark(5))
    assert encoded.coded is not None and len(encoded.coded) < len(encoded.payload)
    assert old.ask(encoded, "what?").codec == "packed"
    assert new.ask(encoded, "what?").codec == "rans"


@pytest.mark.parametrize("multiple", [1, 16, 64, 100, 256, 1000, 8192])
@pytest.mark.parametrize("encrypted", [False, True])
def test_messages_are_padded(
    serve: Serve, connect: Connect, tmp_path: Path, multiple: int, encrypted: bool
) -> None:
    options: dict[str, Any] = {}
    settings: dict[str, Any] = {}
    if encrypted:
        me, its = keys.generate(tmp_path / "k", "me"), keys.generate(tmp_path / "k", "server")
        options["keys"] = keys.load_secret(its.secret)
        settings |= {"key": me.secret, "server_key": its.public}
    server = serve(welcome=able(*BOTH), **options)
    client = connect(server, pad=multiple, **settings)
    seen = set()
    for scene, question in (
        (tiny.dark(5), "what?"),
        (tiny.scene(3), "how many red digits are there in the picture?"),
        (tiny.dark(6), "x" * 150),
    ):
        answer = client.ask(scene, question)
        request = server.requests[-1]
        lengths = tuple(wire.wire_size([frame], encrypted) for frame in request.frames)
        assert len(lengths) == 2 and all(length % multiple == 0 for length in lengths)
        assert answer.bytes_up == sum(lengths) < answer.payload_bytes + len(question) + 170 + 2 * multiple
        assert request.payloads.keys() == {"v"}
        padding = request.ask.frames[-1]
        assert (padding.name, padding.crc) == ("pad", zlib.crc32(bytes(padding.size)))
        assert not any(request.ask.fill)
        seen.add(lengths)
    assert client.bytes_up == server.bytes_up
    assert len({len(each.payloads["v"]) for each in server.requests}) > 1
    assert len(seen) == 1 or multiple < 256


def test_padding_that_the_server_does_not_know(serve: Serve, connect: Connect) -> None:
    server = serve()
    client = connect(server, pad=64)
    with pytest.raises(HandshakeRefused, match="leave out --pad"):
        client.ask(tiny.dark(), "what?")
    assert not server.requests


@pytest.mark.parametrize("multiple", [-1, 8193])
def test_impossible_padding(connect: Connect, multiple: int) -> None:
    with pytest.raises(InputError, match="pad is"):
        connect("tcp://127.0.0.1:1", pad=multiple)


def test_damaged_tables_are_said_before_anything_is_sent(half: Path) -> None:
    whole = (half / NAME).read_bytes()
    (half / NAME).write_bytes(whole[:-1])
    with pytest.raises(BundleError, match="bytes, the manifest says"):
        EdgeClient(half)
    (half / NAME).unlink()
    with pytest.raises(BundleError, match="missing"):
        EdgeClient(half)
    # A hash of the wrong file is still right; the tables' own digest is not.
    (half / NAME).write_bytes(whole)
    tiny.edit_manifest(half, tables="0123456789abcdef")
    with pytest.raises(BundleError, match="the manifest says 0123456789abcdef"):
        EdgeClient(half)


def test_command(run: Run, serve: Serve, tmp_path: Path, half: Path) -> None:
    picture = tmp_path / "dark.png"
    picture.write_bytes(tiny.file_bytes(tiny.dark(3)))
    server = serve(welcome=able(*BOTH))
    found = run("ask", "--pad", "128", "--image", picture, "--json", "what?", server=server.endpoint)
    assert found.code == 0
    answer = json.loads(found.out)
    assert answer["codec"] == "rans"
    assert answer["payload_bytes"] < answer["packed_bytes"] == tiny.PAYLOAD
    assert answer["bytes_up"] == 2 * 128
    plain = run("ask", "--image", picture, "what?", server=server.endpoint)
    assert f"{tiny.PAYLOAD} B packed" in plain.err


# --------------------------------------------------------------------------- the real server's front


def test_the_real_server_decodes_what_the_client_codes(half: Path, connect: Connect) -> None:
    server_runtime = pytest.importorskip("server_runtime")
    manifest = msgspec.structs.replace(bundle.open_half(half, "client").manifest, half="server")
    with ExitStack() as stack:

        def start(tables: entropy.Tables | None) -> Any:
            engine = server_runtime.FakeEngine(manifest, ("four", " red"))
            config = server_runtime.ServerConfig(bind="tcp://127.0.0.1:*")
            server = server_runtime.Server(config, engine, tables=tables)
            thread = threading.Thread(target=server.serve)
            thread.start()
            stack.callback(thread.join, 20)
            stack.callback(server.stop)
            server.fake = engine
            return server

        server = start(tiny.dark_tables())
        client = connect(server.endpoint, pad=64)
        for seed, codec in ((1, "rans"), (2, "rans")):
            answer = client.ask(tiny.dark(seed), "what?")
            assert (answer.text, answer.codec) == ("four red", codec)
            assert answer.bytes_up % 64 == 0
            expected = codes.unpack(tiny.payload(tiny.dark(seed)), tiny.LEVELS, (tiny.TOKENS, tiny.CODE_DIM))
            np.testing.assert_array_equal(server.fake.prompts[-1].vision, expected)
        client.close()
        with pytest.raises(HandshakeRefused, match="tables of the entropy coder") as caught:
            connect(start(tiny.dark_tables(seed=2000)).endpoint).ask(tiny.dark(), "what?")
        assert caught.value.reason == "codec"
        with pytest.raises(HandshakeRefused, match="half has none"):
            connect(start(None).endpoint).ask(tiny.dark(), "what?")
