"""The device's client: a bundle's client half, a server, and questions about pictures."""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from os import PathLike
from pathlib import Path
from types import TracebackType
from typing import Final

from qtl_core import bundle as bundles
from qtl_core import keys, payloads, wire
from qtl_core import messages as m
from qtl_core.entropy_file import tables_of
from qtl_core.errors import HandshakeRefused, LinkError, ProtocolError, QuestionError
from qtl_core.shipped import BUNDLE, SERVER

from . import picture, tiles
from .answer import Answer, Milliseconds
from .choice import Stored, stored
from .config import EdgeConfig
from .dealer import Dealer
from .encoder import Encoder, onnxruntime_module
from .exchange import Exchange, OnToken, Patience, Reply
from .greeting import hello
from .machine import look
from .session import Session, Traffic
from .text import CodedQuestion, TextEncoder
from .transport import Transport
from .variants import variant

TILES_AT_ONCE: Final = 4
"""Tiles that pass the graph together: enough for a GPU, and memory for a small board."""


@dataclass(frozen=True, eq=False)
class Encoded:
    """A picture as it crosses the cut; any number of questions can be asked about it.

    Attributes:
        payload: what the graph made, ``cut.payload_bytes`` bytes for each tile: packed codes, or features.
        pixels: uint8 [height, width, 3], what the graph saw; the tiles of a grid side by side.
        preprocess_ms: milliseconds of decoding and resizing.
        encode_ms: milliseconds of the graph and the entropy coder.
        coded: the same codes entropy-coded, if that is shorter; it is sent to servers that take it.
        tiles: how many tiles the picture was cut into; 1 where it was not.
        size: width and height of the picture in pixels, if the server has to know it; else empty.
    """

    payload: bytes
    pixels: picture.Pixels
    preprocess_ms: float
    encode_ms: float
    coded: bytes | None = None
    tiles: int = 1
    size: tuple[int, ...] = ()

    @cached_property
    def jpeg_bytes(self) -> int:
        """Bytes of the same resized picture as a JPEG of quality 90."""
        return picture.jpeg_size(self.pixels)


class EdgeClient:
    """Asks a server questions about pictures; only codes leave the device.

    ::

        with EdgeClient("./bundle", "tcp://127.0.0.1:5555") as client:
            print(client.ask("scene.png", "how many red digits are there?"))

    The bundle is checked and loaded at once, the connection made at the first question. One thread at a time.

    Args:
        bundle: the client half, or the bundle that holds it.
        server: the server's address.
        key: this client's ``.key_secret`` file; with ``server_key`` everything is encrypted.
        server_key: the server's ``.key`` file.
        timeout: seconds to wait for the server: to connect, between signs of life, and while it is busy.
        patience: seconds to wait for one whole answer.
        comeback: seconds a server lost in the middle of an answer has to come back.
        threads: threads of the graph; 0 leaves it to onnxruntime.
        providers: onnxruntime execution providers, best first; None means the CPU.
        variant: which of the bundle's graphs, such as "int8-arm64"; "" for the manifest's own.
        measured: run as ``edge_runtime bench`` chose for this bundle on this device, if it has; not together
            with ``threads``, ``providers`` or ``variant``. What was found is in ``stored``.
        insecure: speak plaintext to another machine.
        pad: make each of a question's two frames a multiple of so many bytes long on the connection; 0 does
            not. Of the lengths of picture and question only those multiples show then. It hides neither how
            many messages there are, nor when, nor the length of the answer.
        clock: seconds, monotonic.
        rng: spreads retries.
        transport: makes the connection; a ZeroMQ DEALER if not given.

    Raises:
        InputError: a setting that does not fit.
        BundleError: a half that is missing, damaged or the wrong one.
        MissingExtra: the bundle codes its questions, and the extra ``[text]`` is not installed.
        KeyFileError: a key file that is missing, damaged or readable by others.
    """

    def __init__(
        self,
        bundle: str | PathLike[str] = BUNDLE,
        server: str = SERVER,
        *,
        key: str | PathLike[str] | None = None,
        server_key: str | PathLike[str] | None = None,
        timeout: float = 10.0,
        patience: float = 300.0,
        comeback: float = 2.0,
        threads: int = 0,
        providers: Sequence[str] | None = None,
        variant: str = "",
        measured: bool = False,
        insecure: bool = False,
        pad: int = 0,
        clock: Callable[[], float] = time.monotonic,
        rng: random.Random | None = None,
        transport: Callable[[], Transport] | None = None,
    ) -> None:
        self.config = EdgeConfig(
            bundle=Path(bundle),
            server=server,
            key=None if key is None else Path(key),
            server_key=None if server_key is None else Path(server_key),
            timeout=timeout,
            patience=patience,
            comeback=comeback,
            threads=threads,
            providers=tuple(providers or ()),
            variant=variant,
            measured=measured,
            insecure=insecure,
            pad=pad,
        )
        self._clock = clock
        self._rng = rng
        self._half = bundles.open_half(bundle, "client")
        self.stored = Stored()
        self._encoder = self._loaded()
        self._tables = tables_of(self._half)
        self._text = TextEncoder(self._half) if self.manifest.text.mode == "codes" else None
        self._keys = None if self.config.key is None else keys.load_secret(self.config.key)
        self._server_key = (
            None if self.config.server_key is None else keys.load_public(self.config.server_key)
        )
        self._transport = transport or self._dealer
        self._session: Session | None = None
        self._last_id = 0
        self._handshakes = Traffic()
        self.bytes_up = 0
        self.bytes_down = 0

    def __enter__(self) -> EdgeClient:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    @property
    def manifest(self) -> bundles.Manifest:
        """The manifest of the client half."""
        return self._half.manifest

    @property
    def handshake_bytes(self) -> int:
        """Bytes of all handshakes so far, both ways, framing included."""
        now = self._session.handshakes if self._session is not None else Traffic()
        return self._handshakes.up + self._handshakes.down + now.up + now.down

    def connect(self) -> m.Welcome:
        """Opens the session now and not at the first question.

        Raises:
            LinkError: the server is not there.
            RefusedError: it refused the handshake.
            ProtocolError: what is there speaks another protocol.
        """
        with self._dropping_broken_sessions():
            return self._opened().open()

    def encode(self, image: picture.Source) -> Encoded:
        """A picture to its codes; no server is needed.

        Args:
            image: a path, the bytes of a PNG, JPEG or WebP file, a Pillow image, or a uint8 RGB array.

        Raises:
            PictureError: missing, no picture, broken, truncated or too large.
            BundleError: the graph fails.
        """
        start = self._clock()
        spec = self.manifest.picture
        seen = tiles.prepare(image, spec)
        prepared = self._clock()
        payload = b"".join(
            made
            for start in range(0, len(seen.tiles), TILES_AT_ONCE)
            for made in self._encoder.run(seen.tiles[start : start + TILES_AT_ONCE])
        )
        coded = self._coded(payload, len(seen.tiles))
        done = self._clock()
        return Encoded(
            payload=payload,
            pixels=seen.view,
            preprocess_ms=1000 * (prepared - start),
            encode_ms=1000 * (done - prepared),
            coded=coded,
            tiles=len(seen.tiles),
            size=seen.size if spec.tiled else (),
        )

    def ask(
        self,
        image: picture.Source | Encoded,
        question: str,
        *,
        max_tokens: int = 0,
        on_token: OnToken | None = None,
    ) -> Answer:
        """Asks one question about one picture.

        Args:
            image: a picture as for ``encode``, or what ``encode`` returned.
            question: the question.
            max_tokens: at most so many tokens in the answer; 0 leaves it to the server.
            on_token: called with each piece of the answer's text as it comes.

        Raises:
            QuestionError: empty, not text, or longer than the server or its model takes.
            PictureError: see ``encode``.
            LinkError: the server is not there, or was lost and did not come back.
            RefusedError: the server refused the handshake or the question, or stayed busy.
            ProtocolError: the server's reply breaks the protocol, or the question is too long to be padded.
        """
        check_question(question)
        encoded = image if isinstance(image, Encoded) else self.encode(image)
        # Before the server is asked for anything: a question that cannot be coded never gets there.
        coded_question = None if self._text is None else self._text.encode(question)
        with self._dropping_broken_sessions():
            session = self._opened()
            able = session.open().capabilities
            payload, codec = self._payload(encoded, able)
            ask, frames = self._framed(encoded, payload, codec, coded_question, question, max_tokens)
            if self.config.pad and m.CAN_PAD not in able:
                # Sent as it is, its length would tell what the user wanted hidden.
                raise HandshakeRefused(
                    "protocol",
                    f"the server at {session.endpoint} knows no padded messages; update it, or leave out "
                    "--pad",
                )
            reply = Exchange(
                session,
                ask,
                frames,
                patience=Patience(answer=self.config.patience, comeback=self.config.comeback),
                on_token=on_token,
                rng=self._rng,
                pad=self.config.pad,
            ).run()
        self.bytes_up += reply.traffic.up
        self.bytes_down += reply.traffic.down
        return self._answer(encoded, len(payload), codec, reply)

    def close(self) -> None:
        """Ends the session and the connection. The client can be used again; it then connects anew."""
        session, self._session = self._session, None
        if session is not None:
            self._handshakes.up += session.handshakes.up
            self._handshakes.down += session.handshakes.down
            session.close()

    def _loaded(self) -> Encoder:
        """The graph, as the settings say, or as ``edge_runtime bench`` chose where that is wanted."""
        config = self.config
        graph = variant(self._half, config.variant).graph
        if config.measured:
            self.stored = stored(self._half, onnxruntime=onnxruntime_module().__version__, machine=look().key)
        choice = self.stored.choice
        if choice is None:
            return Encoder(self._half, graph=graph, threads=config.threads, providers=config.providers)
        return Encoder(
            self._half,
            graph=variant(self._half, choice.variant).graph,
            threads=choice.threads,
            providers=(choice.provider,),
        )

    def _coded(self, payload: bytes, count: int) -> bytes | None:
        """The payload's codes entropy-coded, if that is shorter."""
        if self._tables is None:
            return None
        coded = payloads.entropy_coded(payloads.read(payload, self.manifest.cut, count), self._tables)
        return coded if len(coded) < len(payload) else None

    def _payload(self, encoded: Encoded, able: tuple[str, ...]) -> tuple[bytes, int]:
        """What is sent of a picture to a server with these capabilities, and its codec."""
        if encoded.coded is not None and m.CAN_RANS in able:
            return encoded.coded, m.CODEC_RANS
        return encoded.payload, m.CODECS[self.manifest.cut.codec]

    def _framed(
        self,
        encoded: Encoded,
        payload: bytes,
        codec: int,
        coded: CodedQuestion | None,
        question: str,
        max_tokens: int,
    ) -> tuple[m.Ask, list[bytes]]:
        self._last_id += 1
        frames = [wire.frame_codes("v", payload, codec=codec)]
        sent = [payload]
        if coded is not None:
            frames.append(wire.frame_codes("q", coded.payload, count=coded.tokens))
            sent.append(coded.payload)
            question = ""
        ask = m.Ask(
            id=self._last_id,
            frames=tuple(frames),
            question=question,
            max_tokens=max_tokens,
            size=encoded.size,
        )
        return ask, sent

    def _answer(self, encoded: Encoded, payload_bytes: int, codec: int, reply: Reply) -> Answer:
        cut = self.manifest.cut
        round_trip = 1000 * reply.seconds
        return Answer(
            answer=reply.answer.text,
            bits=cut.bits,
            levels=cut.levels,
            tokens=cut.tokens * encoded.tiles,
            code_dim=cut.code_dim,
            payload_bytes=payload_bytes,
            packed_bytes=len(encoded.payload),
            codec=m.CODEC_NAMES[codec],
            bytes_up=reply.traffic.up,
            bytes_down=reply.traffic.down,
            feature_bytes_16bit=cut.feature_bytes_16bit * encoded.tiles,
            jpeg_bytes=encoded.jpeg_bytes,
            ms=Milliseconds(
                preprocess=encoded.preprocess_ms,
                encode=encoded.encode_ms,
                round_trip=round_trip,
                server=reply.answer.server_us / 1000,
                total=encoded.preprocess_ms + encoded.encode_ms + round_trip,
            ),
            finish=reply.answer.finish,
            answer_tokens=reply.answer.tokens,
            tiles=encoded.tiles,
        )

    def _opened(self) -> Session:
        if self._session is None:
            self._session = Session(
                self._transport(),
                hello(self.manifest, self._tables),
                timeout=self.config.timeout,
                clock=self._clock,
            )
        return self._session

    def _dealer(self) -> Transport:
        return Dealer(self.config.server, keys=self._keys, server_key=self._server_key)

    @contextmanager
    def _dropping_broken_sessions(self) -> Iterator[None]:
        """After an error that leaves the session in doubt, the next question starts with a fresh one."""
        try:
            yield
        except (LinkError, HandshakeRefused, ProtocolError):
            self.close()
            raise


def check_question(question: str) -> None:
    """What can be said about a question without a server.

    Raises:
        QuestionError: empty, or no text.
    """
    if not question.strip():
        raise QuestionError('the question is empty; ask something, such as: "how many red digits are there?"')
    try:
        question.encode()
    except UnicodeEncodeError as error:
        raise QuestionError(f"the question {question!r} is no valid UTF-8 text; retype it") from error
