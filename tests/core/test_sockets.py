"""Addresses, and two real sockets with a byte-counting proxy between them."""

from __future__ import annotations

import contextlib
import socket as tcp
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
import zmq
from zmq.auth.thread import ThreadAuthenticator
from zmq.utils.monitor import recv_monitor_message

from qtl_core import keys, sockets, wire
from qtl_core.errors import HostError, InputError
from qtl_core.messages import Answer, Ask, Ping, Token

WAIT_MS = 20_000
MAX_PAYLOAD = 100_000


@pytest.mark.parametrize(
    ("text", "host", "port", "loopback"),
    [
        ("tcp://127.0.0.1:5555", "127.0.0.1", 5555, True),
        ("tcp://127.9.9.9:1", "127.9.9.9", 1, True),
        ("tcp://localhost:5555", "localhost", 5555, True),
        ("tcp://LOCALHOST:5555", "LOCALHOST", 5555, True),
        ("tcp://[::1]:5555", "::1", 5555, True),
        ("tcp://127.0.0.1:*", "127.0.0.1", 0, True),
        ("tcp://127.0.0.1:0", "127.0.0.1", 0, True),
        ("tcp://0.0.0.0:5555", "0.0.0.0", 5555, False),
        ("tcp://*:5555", "*", 5555, False),
        ("tcp://[::]:5555", "::", 5555, False),
        ("tcp://[fe80::1%eth0]:5555", "fe80::1%eth0", 5555, False),
        ("tcp://192.168.1.2:5555", "192.168.1.2", 5555, False),
        ("tcp://eth0:5555", "eth0", 5555, False),
        ("tcp://127.0.0.1.example.org:5555", "127.0.0.1.example.org", 5555, False),
        ("tcp://localhost.example.org:5555", "localhost.example.org", 5555, False),
        ("tcp://127.1:5555", "127.1", 5555, False),
        ("ipc:///run/qtl.sock", "", 0, True),
        ("inproc://test", "", 0, True),
    ],
)
def test_addresses(text: str, host: str, port: int, loopback: bool) -> None:
    endpoint = sockets.parse_endpoint(text)
    assert (endpoint.text, endpoint.host, endpoint.port) == (text, host, port)
    assert endpoint.is_loopback is loopback
    assert sockets.is_loopback(text) is loopback


@pytest.mark.parametrize(
    "text",
    [
        "",
        "127.0.0.1:5555",
        "tcp://",
        "tcp://127.0.0.1",
        "tcp://127.0.0.1:",
        "tcp://127.0.0.1:65536",
        "tcp://127.0.0.1:x",
        "tcp://::1:5555",
        "tcp://[::1:5555",
        "tcp://a b:5555",
        "tcp://127.0.0.1:5555\n",
        "tcp://10.0.0.1:0;127.0.0.1:5555",
        "http://127.0.0.1:5555",
        "udp://127.0.0.1:5555",
        "ipc://",
        "ipc://a\0b",
    ],
)
def test_what_is_no_address(text: str) -> None:
    with pytest.raises(InputError, match="tcp://127"):
        sockets.parse_endpoint(text)


class CountingProxy:
    """A TCP relay for one connection that counts what passes, before it passes it on."""

    def __init__(self, port: int) -> None:
        self.up = self.down = 0
        self._server = tcp.create_server(("127.0.0.1", 0))
        self.endpoint = f"tcp://127.0.0.1:{self._server.getsockname()[1]}"
        self._target = ("127.0.0.1", port)
        self._ends: list[tcp.socket] = []
        self._threads = [threading.Thread(target=self._run)]
        self._threads[0].start()

    def _run(self) -> None:
        try:
            near, _ = self._server.accept()
        except OSError:  # closed before anybody connected
            return
        far = tcp.create_connection(self._target)
        self._ends += [near, far]
        back = threading.Thread(target=self._relay, args=(far, near, "down"))
        self._threads.append(back)
        back.start()
        self._relay(near, far, "up")

    def _relay(self, source: tcp.socket, sink: tcp.socket, direction: str) -> None:
        with contextlib.suppress(OSError):  # one end closed; the test is over
            while data := source.recv(65536):
                setattr(self, direction, getattr(self, direction) + len(data))
                sink.sendall(data)
            sink.shutdown(tcp.SHUT_WR)

    def close(self) -> None:
        self._server.close()
        for end in self._ends:
            with contextlib.suppress(OSError):  # the peer was quicker
                end.shutdown(tcp.SHUT_RDWR)
        for thread in self._threads:
            thread.join(20)
        for end in self._ends:
            end.close()


class Pair:
    """A DEALER and a ROUTER of ours, plain or under CURVE, with the proxy between them."""

    def __init__(self, folder: Path, curve: bool) -> None:
        self.context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        self.authenticator: ThreadAuthenticator | None = None
        server = client = None
        if curve:
            keys.generate(folder, "server")
            keys.generate(folder / keys.CLIENTS, "alice")
            server = keys.load_server(folder)
            client = keys.load_secret(folder / keys.CLIENTS / "alice.key_secret")
            self.authenticator = ThreadAuthenticator(self.context)
            self.authenticator.start()
            self.authenticator.configure_curve(domain=sockets.ZAP_DOMAIN, location=folder / keys.CLIENTS)
        self.router = sockets.router(self.context, max_payload=MAX_PAYLOAD, keys=server)
        self.dealer = sockets.dealer(self.context, keys=client, server_key=server.public if server else None)
        for end in (self.router, self.dealer):
            end.setsockopt(zmq.HEARTBEAT_IVL, 0)  # they would be counted, whenever they come
            end.setsockopt(zmq.RCVTIMEO, WAIT_MS)
            end.setsockopt(zmq.SNDTIMEO, WAIT_MS)
        port = self.router.bind_to_random_port("tcp://127.0.0.1")
        self.proxy = CountingProxy(port)
        self.dealer.connect(self.proxy.endpoint)

    def up(self, frames: list[bytes]) -> tuple[bytes, int]:
        """Sends to the router; returns the routing id and the bytes that passed."""
        before = self.proxy.up
        self.dealer.send_multipart(frames)
        peer, *received = self.router.recv_multipart()
        assert received == frames
        return peer, self.proxy.up - before

    def down(self, peer: bytes, frames: list[bytes]) -> int:
        before = self.proxy.down
        self.router.send_multipart([peer, *frames])
        assert self.dealer.recv_multipart() == frames
        return self.proxy.down - before

    def close(self) -> None:
        self.dealer.close(linger=0)
        self.router.close(linger=0)
        self.proxy.close()
        if self.authenticator is not None:
            self.authenticator.stop()
        self.context.term()


@pytest.fixture(params=[False, True], ids=["plain", "curve"])
def pair(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[tuple[Pair, bool]]:
    ends = Pair(tmp_path, request.param)
    yield ends, request.param
    ends.close()


def test_wire_size_is_what_passes_on_tcp(pair: tuple[Pair, bool]) -> None:
    ends, curve = pair
    peer, _ = ends.up(wire.join(Ping(1)))  # the handshakes are over once this has arrived
    ends.down(peer, wire.join(Ping(1)))
    # Around both lengths at which a frame's own length grows from one byte to eight, plain and encrypted.
    for size in (0, 1, 64, 221, 222, 223, 254, 255, 256, 257, 8192, 70_000, MAX_PAYLOAD):
        payload = bytes(size)
        frames = wire.join(Ask(1, (wire.frame_codes("v", payload),), "how many?"), [payload])
        assert ends.up(frames)[1] == wire.wire_size(frames, curve), size
        for reply in (Token(1, 0, "x" * min(size, 9000)), Answer(1, "y" * min(size, 9000), 1, 12345)):
            frames = wire.join(reply)
            assert ends.down(peer, frames) == wire.wire_size(frames, curve), size


def test_the_longest_header_arrives_both_ways(pair: tuple[Pair, bool]) -> None:
    ends, _ = pair
    frames = [b"h" * wire.HEADER_CAP]
    peer, _ = ends.up(frames)
    ends.down(peer, frames)


def test_the_longest_padded_question_arrives(pair: tuple[Pair, bool]) -> None:
    ends, _ = pair
    parts = [bytes(MAX_PAYLOAD), bytes(MAX_PAYLOAD), bytes(wire.MAX_PAD)]
    ends.up(wire.join(Ask(1, tuple(map(wire.frame_codes, ("v", "q", wire.PAD), parts))), parts))


def test_an_oversized_frame_costs_its_sender_the_connection(pair: tuple[Pair, bool]) -> None:
    ends, _ = pair
    ends.up(wire.join(Ping(1)))
    with _watched(ends.router, zmq.EVENT_DISCONNECTED) as events:
        ends.dealer.send_multipart([b"header", bytes(2 * MAX_PAYLOAD + wire.MAX_PAD + 100)])
        assert recv_monitor_message(events)["event"] == zmq.EVENT_DISCONNECTED
    assert ends.router.poll(0) == 0  # nothing of it was delivered


@contextlib.contextmanager
def _watched(socket: zmq.Socket[bytes], events: int) -> Iterator[zmq.Socket[bytes]]:
    monitor: zmq.Socket[bytes] = socket.get_monitor_socket(events)
    monitor.setsockopt(zmq.RCVTIMEO, WAIT_MS)
    try:
        yield monitor
    finally:
        socket.disable_monitor()
        monitor.close(linger=0)  # its context waits for it


def test_curve_needs_both_keys(tmp_path: Path) -> None:
    files = keys.generate(tmp_path, "alice")
    with zmq.Context() as context:
        with pytest.raises(HostError, match="both"):
            sockets.dealer(context, keys=keys.load_secret(files.secret))
        with pytest.raises(HostError, match="both"):
            sockets.dealer(context, server_key=keys.load_public(files.public))


def test_a_constructor_that_fails_leaves_no_socket_open() -> None:
    with zmq.Context() as context:  # would wait for ever on its way out if a socket were left
        with pytest.raises((zmq.ZMQError, ValueError)):
            sockets.dealer(context, keys=keys.KeyPair(b"short", b"short"), server_key=b"short")
        with pytest.raises((zmq.ZMQError, ValueError)):
            sockets.router(context, max_payload=1, keys=keys.KeyPair(b"short", b"short"))


def test_without_an_authenticator_curve_lets_nobody_in(tmp_path: Path) -> None:
    keys.generate(tmp_path, "server")
    alice = keys.load_secret(keys.generate(tmp_path, "alice").secret)
    server = keys.load_server(tmp_path)
    with zmq.Context() as context:
        router = sockets.router(context, max_payload=1, keys=server)
        dealer = sockets.dealer(context, keys=alice, server_key=server.public)
        try:
            failed = zmq.EVENT_HANDSHAKE_FAILED_NO_DETAIL | zmq.EVENT_HANDSHAKE_FAILED_AUTH
            with _watched(router, failed | zmq.EVENT_HANDSHAKE_SUCCEEDED) as events:
                dealer.connect(f"tcp://127.0.0.1:{router.bind_to_random_port('tcp://127.0.0.1')}")
                assert recv_monitor_message(events)["event"] != zmq.EVENT_HANDSHAKE_SUCCEEDED
        finally:
            dealer.close()
            router.close()
