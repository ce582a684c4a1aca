"""What a question gets: the answer, and what it cost."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Milliseconds:
    """Where the time went. ``server`` (by its own clock) is part of ``round_trip``.

    ``encode`` is the graph and the entropy coder. ``total`` is preprocess + encode + round_trip: what one
    question about a fresh picture takes on an open connection. Several questions about one encoded picture
    each carry its preprocess and encode.
    """

    preprocess: float
    encode: float
    round_trip: float
    server: float
    total: float


@dataclass(frozen=True, kw_only=True)
class Answer:
    """The answer to one question and what it cost.

    Attributes:
        answer: the text; also ``text`` and ``str()``.
        bits: bits per code; 16 without a quantizer.
        levels: L; 0 without a quantizer.
        tokens: tokens of the picture as coded.
        code_dim: codes per token.
        payload_bytes: bytes of the picture's payload frame, as it was sent.
        packed_bytes: bytes of the same picture's codes packed at fixed length (or of its features).
        codec: how they were sent: "rans" (entropy-coded), "packed" or "float16".
        bytes_up: bytes of this question's messages to the server: headers, payload and ZMTP framing, retries
            and heartbeats included; the handshake is ``EdgeClient.handshake_bytes``.
        bytes_down: the same from the server.
        feature_bytes_16bit: bytes of the same picture's features at 16 bit.
        jpeg_bytes: bytes of the same resized picture as a JPEG of quality 90.
        ms: where the time went.
        finish: "stop" (the model ended) or "length" (``max_tokens`` were reached).
        answer_tokens: tokens the model produced.
        tiles: tiles the picture was cut into; 1 where it was not. ``tokens`` are those of all of them.
    """

    answer: str
    bits: int
    levels: int
    tokens: int
    code_dim: int
    payload_bytes: int
    packed_bytes: int
    codec: str
    bytes_up: int
    bytes_down: int
    feature_bytes_16bit: int
    jpeg_bytes: int
    ms: Milliseconds
    finish: str = "stop"
    answer_tokens: int = 0
    tiles: int = 1

    @property
    def text(self) -> str:
        """The text of the answer."""
        return self.answer

    def __str__(self) -> str:
        return self.answer
