"""What an eavesdropper sees of a real encrypted connection is what the audit says he sees."""

from __future__ import annotations

import socket
import threading
from contextlib import ExitStack, closing

import pytest
import zmq

from qtl_core import messages as m
from qtl_core import wire
from qtl_core.keys import KeyPair
from qtl_core.sockets import dealer
from qtl_training.audit.observing import frame_lengths

_GREETING = 64
_LONG, _COMMAND = 2, 4
_MESSAGE = b"\x07MESSAGE"
_PATIENCE_MS = 10_000


class Tap:
    """A relay in front of a port that keeps what the client sends."""

    def __init__(self, port: int) -> None:
        self._to = ("127.0.0.1", port)
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = self._listener.getsockname()[1]
        self.heard = bytearray()
        self._ends: list[socket.socket] = [self._listener]
        self._threads = [threading.Thread(target=self._serve, daemon=True)]
        self._threads[0].start()

    def close(self) -> None:
        for end in self._ends:
            end.close()

    def _serve(self) -> None:
        client, _ = self._listener.accept()
        server = socket.create_connection(self._to)
        self._ends += [client, server]
        threading.Thread(target=self._copy, args=(server, client, None), daemon=True).start()
        self._copy(client, server, self.heard)

    @staticmethod
    def _copy(source: socket.socket, sink: socket.socket, kept: bytearray | None) -> None:
        try:
            while data := source.recv(65536):
                if kept is not None:
                    kept += data
                sink.sendall(data)
        except OSError:
            pass


def encrypted_frames(stream: bytes) -> list[tuple[int, int]]:
    """The encrypted frames in a ZMTP 3 byte stream, read without any key: bytes of framing, and of body."""
    at, sizes = _GREETING, []
    while at < len(stream):
        flags = stream[at]
        head = 9 if flags & _LONG else 2
        size = int.from_bytes(stream[at + 1 : at + head], "big")
        body = stream[at + head : at + head + size]
        if not flags & _COMMAND and body.startswith(_MESSAGE):
            sizes.append((head, size))
        at += head + size
    return sizes


def heard(payload: int, question: str, pad: int, number: int = 1) -> list[tuple[int, int]]:
    """What a tap sees of one question over a real encrypted connection."""
    data = (bytes(range(256)) * (payload // 256 + 1))[:payload]
    frame = wire.frame_codes("v", data, codec=m.CODEC_PACKED)
    ask, payloads = m.Ask(id=number, frames=(frame,), question=question), [data]
    if pad:
        ask, payloads = wire.pad(ask, payloads, pad, curve=True)
    public, secret = zmq.curve_keypair()
    with ExitStack() as stack:
        context = stack.enter_context(zmq.Context())
        server = stack.enter_context(context.socket(zmq.ROUTER))
        server.curve_server, server.curve_secretkey = True, secret
        tap = stack.enter_context(closing(Tap(server.bind_to_random_port("tcp://127.0.0.1"))))
        keys = KeyPair(*zmq.curve_keypair())
        client = stack.enter_context(dealer(context, keys=keys, server_key=public))
        client.connect(f"tcp://127.0.0.1:{tap.port}")
        assert client.poll(_PATIENCE_MS, zmq.POLLOUT), "no connection"
        client.send_multipart(wire.join(ask, payloads))
        assert server.poll(_PATIENCE_MS), "nothing arrived"
        _, *frames = server.recv_multipart()
        back, named = wire.split(frames, m.Limits(payload, 1000, 64, 1000))
        assert isinstance(back, m.Ask) and back.question == question and named == {"v": data}
        return encrypted_frames(bytes(tap.heard))


@pytest.mark.parametrize(
    ("payload", "question", "pad"),
    [
        (11, "is there a 0?", 0),
        (72, "x" * 90, 0),
        (9216, "?", 0),
        (11, "is there a 0?", 64),
        (72, "x" * 90, 100),
        (9216, "?", 256),
    ],
)
def test_every_frame_shows_its_length(payload: int, question: str, pad: int) -> None:
    seen = heard(payload, question, pad)
    assert [body for _, body in seen] == list(frame_lengths(question, payload, m.CODEC_PACKED, pad=pad))
    assert not pad or all((head + body) % pad == 0 for head, body in seen)


def test_padding_makes_pictures_and_questions_alike() -> None:
    """Two sizes of picture, two lengths of question: four messages, or one."""
    payloads, questions = (11, 72), (("is there a 0?", 1), ("how many red digits are there?" * 2, 300))
    asked = [(payload, *question) for payload in payloads for question in questions]
    plain = [tuple(heard(payload, text, 0, number)) for payload, text, number in asked]
    assert len(set(plain)) == 4
    padded = {tuple(heard(payload, text, 256, number)) for payload, text, number in asked}
    assert len(padded) == 1
