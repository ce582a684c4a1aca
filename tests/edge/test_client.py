"""EdgeClient against a real ROUTER: bytes, keys, loss, restart, and bundles that do not check out."""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable
from pathlib import Path

import msgspec
import numpy as np
import pytest
from PIL import Image

import edge_runtime
from edge_runtime import EdgeClient
from qtl_core import keys
from qtl_core import messages as m
from qtl_core.errors import (
    BundleError,
    HandshakeRefused,
    KeyFileError,
    LinkError,
    MalformedMessage,
    PictureError,
    QuestionError,
    RequestRefused,
    ServerBusy,
    ServerLost,
    ServerUnavailable,
)
from tests.edge import tiny
from tests.edge.peer import Die, Request, ScriptedServer, four

Serve = Callable[..., ScriptedServer]
Connect = Callable[..., EdgeClient]


def test_answer_and_what_it_cost(serve: Serve, connect: Connect, image: Path) -> None:
    server = serve()
    client = connect(server)
    pieces: list[str] = []
    answer = client.ask(image, "how many are red?", on_token=pieces.append)
    assert answer.answer == answer.text == str(answer) == "four red"
    assert pieces == ["four", " red"]
    assert (answer.bits, answer.levels, answer.tokens, answer.code_dim) == (2, 4, 16, 3)
    assert answer.payload_bytes == tiny.PAYLOAD
    assert answer.feature_bytes_16bit == 96
    assert (answer.bytes_up, answer.bytes_down) == (server.bytes_up, server.bytes_down)
    assert (client.bytes_up, client.bytes_down) == (answer.bytes_up, answer.bytes_down)
    assert client.handshake_bytes > 0
    assert answer.finish == "stop" and answer.answer_tokens == 2
    assert answer.ms.server == 1.5
    assert answer.ms.total == pytest.approx(answer.ms.preprocess + answer.ms.encode + answer.ms.round_trip)
    resized = np.asarray(Image.open(image).resize((32, 32), Image.Resampling.BILINEAR))
    assert answer.jpeg_bytes == len(tiny.file_bytes(resized, "JPEG", quality=90))
    (request,) = server.requests
    assert request.payloads == {"v": tiny.payload(resized)}
    assert request.ask.question == "how many are red?" and request.ask.stream
    (hello,) = server.hellos
    assert hello.fingerprint == client.manifest.fingerprint_bytes and hello.text == "plain"


def test_one_connection_one_picture_many_questions(serve: Serve, connect: Connect, image: Path) -> None:
    server = serve()
    client = connect(server)
    encoded = client.encode(image)
    for question in ("one?", "two?", "drei äöü?"):
        assert client.ask(encoded, question, max_tokens=5).text == "four red"
    assert [each.ask.question for each in server.requests] == ["one?", "two?", "drei äöü?"]
    assert [each.ask.id for each in server.requests] == [1, 2, 3]
    assert {each.ask.max_tokens for each in server.requests} == {5}
    assert len(server.hellos) == 1


def test_unquantized_bundle(serve: Serve, connect: Connect, tmp_path: Path) -> None:
    server = serve()
    tiny.write_client(tmp_path / "wide", bits=16)
    pixels = tiny.scene(4)
    answer = connect(server, bundle=tmp_path / "wide").ask(pixels, "what?")
    assert (answer.bits, answer.levels, answer.payload_bytes) == (16, 0, 96)
    assert server.hellos[0].codecs == (m.CODEC_FLOAT16,)
    (request,) = server.requests
    assert request.ask.frames[0].codec == m.CODEC_FLOAT16
    assert request.payloads["v"] == tiny.means(pixels).astype("<f2").tobytes()


def test_encrypted(serve: Serve, connect: Connect, image: Path, tmp_path: Path) -> None:
    me, server_files = keys.generate(tmp_path / "k", "me"), keys.generate(tmp_path / "k", "server")
    server = serve(keys=keys.load_secret(server_files.secret))
    client = connect(server, key=me.secret, server_key=server_files.public)
    answer = client.ask(image, "what?")
    assert answer.text == "four red"
    assert (answer.bytes_up, answer.bytes_down) == (server.bytes_up, server.bytes_down)
    with pytest.raises(KeyFileError):
        connect(server, key=tmp_path / "absent.key_secret", server_key=server_files.public)
    with pytest.raises(KeyFileError):
        connect(server, key=me.secret, server_key=server_files.secret)


def test_encryption_that_does_not_match_is_told_at_once(
    serve: Serve, connect: Connect, image: Path, tmp_path: Path
) -> None:
    me, server_files = keys.generate(tmp_path / "k", "me"), keys.generate(tmp_path / "k", "server")
    encrypting, plain = serve(keys=keys.load_secret(server_files.secret)), serve()
    # Patience of a minute: what follows would take it, if the monitor were not listened to.
    with pytest.raises(HandshakeRefused, match="does not encrypt as we do") as caught:
        connect(encrypting, timeout=60).ask(image, "what?")
    assert caught.value.reason == "auth"
    with pytest.raises(HandshakeRefused, match="does not encrypt as we do"):
        connect(plain, timeout=60, key=me.secret, server_key=server_files.public).ask(image, "what?")
    wrong = keys.generate(tmp_path / "k", "wrong")
    with pytest.raises(ServerUnavailable, match="is --server-key this server's key"):
        connect(encrypting, timeout=2.0, key=me.secret, server_key=wrong.public).ask(image, "what?")


def test_client_that_is_not_let_in(serve: Serve, connect: Connect, image: Path, tmp_path: Path) -> None:
    me, server_files = keys.generate(tmp_path / "k", "me"), keys.generate(tmp_path / "k", "server")
    server = serve(keys=keys.load_secret(server_files.secret), lets_in=False)
    client = connect(server, timeout=60, key=me.secret, server_key=server_files.public)
    with pytest.raises(HandshakeRefused, match="does not know this client's key") as caught:
        client.ask(image, "what?")
    assert caught.value.reason == "auth"


def test_server_absent(connect: Connect, image: Path, nobody: str) -> None:
    with pytest.raises(ServerUnavailable, match=f"{nobody} within 1 s .nothing listens there"):
        connect(nobody, timeout=1.0).ask(image, "what?")
    with pytest.raises(ServerUnavailable):
        connect(nobody, timeout=0.3).connect()


def test_server_that_is_none(connect: Connect, image: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        client = connect(f"tcp://127.0.0.1:{listener.getsockname()[1]}", timeout=0.3)
        with pytest.raises(LinkError, match=r"127\.0\.0\.1"):
            client.ask(image, "what?")


def test_server_that_starts_late(serve: Serve, connect: Connect, image: Path, nobody: str) -> None:
    client = connect(nobody, timeout=20)
    timer = threading.Timer(0.3, lambda: started.append(serve(port=int(nobody.rpartition(":")[2]))))
    started: list[ScriptedServer] = []
    timer.start()
    assert client.ask(image, "what?").text == "four red"
    timer.join()


def test_server_that_dies_in_the_middle(serve: Serve, connect: Connect, image: Path) -> None:
    def die(request: Request) -> None:
        request.tokens("four")
        # Only once the piece has arrived: a socket closed without lingering drops what it still holds.
        arrived.wait(10)
        raise Die

    def hear(piece: str) -> None:
        pieces.append(piece)
        arrived.set()

    pieces: list[str] = []
    arrived = threading.Event()
    client = connect(serve(die), timeout=60, comeback=0.3)
    with pytest.raises(ServerLost, match="lost in the middle of an answer"):
        client.ask(image, "what?", on_token=hear)
    assert pieces == ["four"]


def test_server_that_is_restarted_in_the_middle(serve: Serve, connect: Connect, image: Path) -> None:
    def die(request: Request) -> None:
        raise Die

    first = serve(die)
    client = connect(first, timeout=60, comeback=30)

    def restart() -> None:
        first.dead()
        second.append(serve(port=first.port))

    second: list[ScriptedServer] = []
    thread = threading.Thread(target=restart)
    thread.start()
    assert client.ask(image, "what?").text == "four red"
    thread.join(10)
    assert first.requests[0].ask == second[0].requests[0].ask
    assert len(second[0].hellos[0].resume) == 8


def test_server_that_is_restarted_between_questions(serve: Serve, connect: Connect, image: Path) -> None:
    first = serve()
    client = connect(first, timeout=30)
    client.ask(image, "one?")
    first.stop()
    second = serve(port=first.port)
    assert client.ask(image, "two?").text == "four red"
    assert second.requests[0].ask.id == 2 and second.hellos[0].resume


def test_after_a_loss_the_client_can_be_used_again(serve: Serve, connect: Connect, image: Path) -> None:
    def die(request: Request) -> None:
        raise Die

    first = serve(die)
    client = connect(first, timeout=30, comeback=0.2)
    with pytest.raises(ServerLost):
        client.ask(image, "one?")
    second = serve(port=first.port)
    assert client.ask(image, "two?").text == "four red"
    assert second.requests[0].ask.id == 2
    assert client.handshake_bytes > 0


def test_silent_server(serve: Serve, connect: Connect, image: Path) -> None:
    server = serve(lambda request: None, pongs=False)
    with pytest.raises(ServerLost, match="fell silent"):
        connect(server, timeout=2.0).ask(image, "what?")


def test_slow_server_that_shows_signs_of_life(serve: Serve, connect: Connect, image: Path) -> None:
    server = serve(answer_on_ping=True)
    answer = connect(server, timeout=6.0).ask(image, "what?")
    assert answer.text == "four red"
    assert (answer.bytes_up, answer.bytes_down) == (server.bytes_up, server.bytes_down)
    assert any(isinstance(each, m.Ping) for each in server.received)


def test_busy_server(serve: Serve, connect: Connect, image: Path) -> None:
    def busy(request: Request) -> None:
        if request.number < 2:
            request.send(m.Busy(id=request.ask.id, retry_ms=20))
        else:
            four(request)

    server = serve(busy)
    answer = connect(server).ask(image, "what?")
    assert answer.text == "four red"
    assert {each.ask.id for each in server.requests} == {1}
    assert answer.bytes_up == server.bytes_up  # retries are paid for
    always = serve(lambda request: request.send(m.Busy(id=request.ask.id, retry_ms=5000)))
    with pytest.raises(ServerBusy, match="busy"):
        connect(always, timeout=4.0).ask(image, "what?")


def test_error_replies(serve: Serve, connect: Connect, image: Path) -> None:
    replies = iter(["codes", "question", "checksum", "checksum"])

    def refuse(request: Request) -> None:
        code = next(replies, None)
        if code is None:
            four(request)
        else:
            request.error(code, f"about {code}")

    client = connect(serve(refuse))
    with pytest.raises(RequestRefused, match="about codes"):
        client.ask(image, "what?")
    with pytest.raises(QuestionError, match="about question"):
        client.ask(image, "what?")
    with pytest.raises(RequestRefused, match="about checksum"):
        client.ask(image, "what?")
    assert client.ask(image, "what?").text == "four red"


def test_rejected(serve: Serve, connect: Connect, image: Path) -> None:
    reject = m.Reject(reason="fingerprint", message="the halves do not belong together: aa here, bb there")
    server = serve(welcome=lambda hello: reject)
    with pytest.raises(HandshakeRefused, match="aa here, bb there"):
        connect(server).ask(image, "what?")
    with pytest.raises(ServerUnavailable, match="did not answer our HELLO"):
        connect(serve(welcome=lambda hello: None), timeout=2.0).ask(image, "what?")
    with pytest.raises(MalformedMessage):
        connect(serve(welcome=lambda hello: b"\xffgarbage")).ask(image, "what?")


def test_reply_to_another_request(serve: Serve, connect: Connect, image: Path) -> None:
    def mixed(request: Request) -> None:
        old = m.Answer(id=request.ask.id, text="old", tokens=1, server_us=1)
        if request.ask.id == 2:
            request.send(msgspec.structs.replace(old, id=1))
            four(request)
        elif request.ask.id == 3:
            request.send(msgspec.structs.replace(old, id=9))
        else:
            four(request)

    client = connect(serve(mixed))
    assert client.ask(image, "one?").text == "four red"
    assert client.ask(image, "two?").text == "four red"
    with pytest.raises(MalformedMessage, match="request 9"):
        client.ask(image, "three?")


def test_interrupted_answer_does_not_spoil_the_next(serve: Serve, connect: Connect, image: Path) -> None:
    client = connect(serve())

    def interrupt(_: str) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        client.ask(image, "one?", on_token=interrupt)
    pieces: list[str] = []
    assert client.ask(image, "two?", on_token=pieces.append).text == "four red"
    assert pieces == ["four", " red"]


def test_bad_questions_and_pictures_send_nothing(serve: Serve, connect: Connect, image: Path) -> None:
    server = serve()
    client = connect(server)
    for question in ("", " \n\t"):
        with pytest.raises(QuestionError, match="is empty"):
            client.ask(image, question)
    with pytest.raises(QuestionError, match="UTF-8"):
        client.ask(image, "\udc80")
    with pytest.raises(QuestionError, match="201 bytes, this server takes 200"):
        client.ask(image, "x" * 201)
    with pytest.raises(PictureError):
        client.ask(b"no picture", "what?")
    assert not server.requests
    assert client.ask(image, "x" * 200).text == "four red"


def test_goodbye_is_said(serve: Serve, connect: Connect, image: Path) -> None:
    said = threading.Event()

    class Listening(ScriptedServer):
        def _handle(self, peer: bytes, frames: list[bytes]) -> None:
            super()._handle(peer, frames)
            if isinstance(self.received[-1], m.Bye):
                said.set()

    with Listening() as server:
        with connect(server) as client:
            client.ask(image, "what?")
        assert said.wait(10)


def test_wrong_halves(half: Path, tmp_path: Path) -> None:
    whole = half.parent
    tiny.write_server(whole / "server", EdgeClient(whole, threads=1).manifest)
    EdgeClient(whole, threads=1)  # the bundle itself will do
    with pytest.raises(BundleError, match="is the server half of a bundle; give the client half"):
        EdgeClient(whole / "server")
    with pytest.raises(BundleError, match="does not exist; make one with: qtl-export"):
        EdgeClient(tmp_path / "absent")
    with pytest.raises(BundleError, match=r"holds no manifest\.json"):
        EdgeClient(tmp_path)


def test_tampered_halves(half: Path) -> None:
    manifest = (half / "manifest.json").read_bytes()
    graph = (half / "client.onnx").read_bytes()
    (half / "client.onnx").write_bytes(graph[:-1] + bytes([graph[-1] ^ 1]))
    with pytest.raises(BundleError, match="SHA-256 differs"):
        EdgeClient(half)
    (half / "client.onnx").write_bytes(graph[:-1])
    with pytest.raises(BundleError, match="bytes, the manifest says"):
        EdgeClient(half)
    (half / "client.onnx").write_bytes(graph)
    tiny.edit_manifest(half, schema=99)
    with pytest.raises(BundleError, match="has schema 99"):
        EdgeClient(half)
    (half / "manifest.json").write_bytes(manifest.replace(b'"levels": 4', b'"levels": 400'))
    with pytest.raises(BundleError, match="no valid manifest"):
        EdgeClient(half)
    (half / "manifest.json").write_bytes(manifest)
    EdgeClient(half, threads=1)


def test_package_names() -> None:
    assert set(edge_runtime.__all__) <= set(dir(edge_runtime))
    assert edge_runtime.Answer.__name__ == "Answer"
    assert edge_runtime.Encoded.__name__ == "Encoded"
    with pytest.raises(AttributeError, match="no attribute 'Nothing'"):
        _ = edge_runtime.Nothing
