"""The typed messages of the wire: frame 0 of every message, as one union of frozen structs.

A header is a msgpack array ``[tag, field, field, ...]``. The tag says which message it is; fields come in
the order written here. New fields come last and have defaults, so that old and new ends understand each
other: a shorter array takes the defaults, a longer one is read as far as known. ``docs/protocol.md`` is this
file for people who write a client in another language; a test keeps the two together.
"""

from __future__ import annotations

from typing import Annotated, Final, TypeAlias

import msgspec
from msgspec import Meta

from .errors import MalformedMessage

PROTOCOL: Final = 1
"""Version of the wire. It changes only when old clients could misread new bytes."""

CODEC_PACKED: Final = 0
"""Codes, fixed-length packing (``qtl_core.codes``)."""
CODEC_FLOAT16: Final = 1
"""IEEE half-precision features, little-endian, C order: the unquantized baseline."""
CODEC_RANS: Final = 2
"""Codes, entropy-coded under the bundle's tables (``qtl_core.entropy``); never longer than packed."""
CODEC_KNOWN: Final = 3
"""Codes of pictures named by number, in full or as they differ (``qtl_core.known``); for training only."""
CODECS: Final = {"packed": CODEC_PACKED, "float16": CODEC_FLOAT16, "rans": CODEC_RANS}
"""Codec numbers by name. A manifest names the first two; the third goes in place of packed codes."""
CODEC_NAMES: Final = {number: name for name, number in CODECS.items()}

CAN_RANS: Final = "rans"
"""Capability: both ends hold the same tables, so that codes may come entropy-coded."""
CAN_PAD: Final = "pad"
"""Capability: an ASK may announce a frame "pad", and then has its payloads joined (``qtl_core.wire``)."""
CAN_TILE: Final = "tiles"
"""Capability: pictures are cut into tiles as the manifest says, and an ASK tells the picture's size."""
CAPABILITIES: Final = (CAN_RANS, CAN_PAD, CAN_TILE)
CAN_TRAIN: Final = "train"
"""Capability of a training run: messages from BEGIN on. Servers that answer questions do not have it."""

REJECT_REASONS: Final = ("protocol", "fingerprint", "codec", "text", "auth", "full")
ERROR_CODES: Final = (
    "no_session",
    "malformed",
    "checksum",
    "codes",
    "question",
    "too_large",
    "internal",
    "closing",
    "cancelled",
    "duplicate",
    "order",
    "diverged",
)

MAX_FRAMES: Final = 8
"""Payload frames one message may announce."""

MAX_LINE: Final = 1000
"""Characters of an ``agent`` or ``message`` field."""

MAX_FILL: Final = 16 * 1024
"""Bytes of an ASK's ``fill``: as many as a header may have."""

# Bounds that a decoder enforces before anybody looks at a value. Ids stay below 2**53 so that languages whose
# only number is a double hold them exactly.
Id: TypeAlias = Annotated[int, Meta(ge=0, le=2**53 - 1)]
RequestId: TypeAlias = Annotated[int, Meta(ge=1, le=2**53 - 1)]
Count: TypeAlias = Annotated[int, Meta(ge=0, le=2**53 - 1)]
U32: TypeAlias = Annotated[int, Meta(ge=0, le=2**32 - 1)]
Small: TypeAlias = Annotated[int, Meta(ge=0, le=65535)]
Name: TypeAlias = Annotated[str, Meta(min_length=1, max_length=32)]
Line: TypeAlias = Annotated[str, Meta(max_length=MAX_LINE)]
Fingerprint: TypeAlias = Annotated[bytes, Meta(min_length=16, max_length=16)]
Session: TypeAlias = Annotated[bytes, Meta(min_length=8, max_length=16)]
Resume: TypeAlias = Annotated[bytes, Meta(max_length=16)]
Digest: TypeAlias = Annotated[bytes, Meta(max_length=8)]
Fill: TypeAlias = Annotated[bytes, Meta(max_length=MAX_FILL)]
Side: TypeAlias = Annotated[int, Meta(ge=1, le=2**31 - 1)]
Names: TypeAlias = Annotated[tuple[Name, ...], Meta(max_length=64)]


class Limits(msgspec.Struct, frozen=True, array_like=True):
    """What one session may send, told in WELCOME; clients check before they send.

    Attributes:
        max_payload: bytes of one payload frame.
        max_question: UTF-8 bytes of a question in ASK.
        max_tokens: tokens of one answer.
        idle_ms: a session that says nothing for this many milliseconds is forgotten.
    """

    max_payload: Count
    max_question: Count
    max_tokens: Count
    idle_ms: Count


class Frame(msgspec.Struct, frozen=True, array_like=True):
    """One payload that follows the header, in the same order: a frame, or a part of one in a padded ASK.

    Attributes:
        name: "v" vision codes, "q" question codes, "pad" nothing; that one comes last. In training also
            "t" texts, "g" gradients, "w" weights, "o" outputs.
        size: bytes of the frame.
        crc: CRC-32 of the frame (the one of zlib, gzip and PNG).
        count: tokens in it; 0 means as many as the manifest says (for each tile).
        codec: 0 packed codes, 1 float16 features, 2 entropy-coded codes, 3 codes of known pictures.
    """

    name: Name
    size: Count
    crc: U32
    count: Count = 0
    codec: Small = CODEC_PACKED


class Part(msgspec.Struct, frozen=True, array_like=True):
    """Something that client and server of a training run must have in common.

    Attributes:
        name: what it is, for people.
        digest: 8 bytes that are the same where it is.
    """

    name: Name
    digest: Digest


class Hello(msgspec.Struct, frozen=True, array_like=True, tag=1):
    """Client to server: who I am and which bundle half I hold; the first message on a connection.

    Attributes:
        protocol: version of the wire the client speaks.
        fingerprint: the pair's fingerprint from the manifest, 16 bytes.
        codecs: codec numbers the client may send.
        text: "plain" (questions travel as text) or "codes" (quantized on the device).
        agent: program and version, for the server's log.
        resume: the session to take up again after a reconnect; empty for a new one.
        capabilities: names of optional features; unknown ones are ignored.
        tables: digest of the entropy coder's tables; empty where the client has none.
        parts: of a training run, what goes into the fingerprint, so that a server can say what differs.
    """

    protocol: Small
    fingerprint: Fingerprint
    codecs: Annotated[tuple[Small, ...], Meta(max_length=64)]
    text: Name
    agent: Line
    resume: Resume = b""
    capabilities: Names = ()
    tables: Digest = b""
    parts: Annotated[tuple[Part, ...], Meta(max_length=64)] = ()


class Welcome(msgspec.Struct, frozen=True, array_like=True, tag=2):
    """Server to client: the session is open.

    Attributes:
        protocol: version of the wire the server will speak, at most the client's.
        session: name of the session, 8 to 16 random bytes.
        limits: what this session may send.
        credits: requests the client may have in flight.
        agent: program and version of the server.
        resumed: the session named in ``resume`` was found; answers computed before are still there.
        capabilities: optional features both ends have.
    """

    protocol: Small
    session: Session
    limits: Limits
    credits: Annotated[int, Meta(ge=1, le=2**31 - 1)]
    agent: Line
    resumed: bool = False
    capabilities: Names = ()


class Reject(msgspec.Struct, frozen=True, array_like=True, tag=3):
    """Server to client: no session. ``reason`` is one of REJECT_REASONS, ``message`` says what to do."""

    reason: Name
    message: Line


class Ask(msgspec.Struct, frozen=True, array_like=True, tag=4):
    """Client to server: a question about a picture. The payload frames follow, joined if one is "pad".

    Attributes:
        id: chosen by the client, 1 or more, unique in the session; a retry uses the same one.
        frames: the payload frames, in order.
        question: the text, unless a "q" frame carries it.
        max_tokens: at most so many tokens in the answer; 0 leaves it to the server.
        stream: send each piece of text as TOKEN before the ANSWER.
        fill: makes the header longer and says nothing; zeros by custom.
        size: width and height of the picture in pixels, where the bundle's pictures are cut into tiles.
    """

    id: RequestId
    frames: Annotated[tuple[Frame, ...], Meta(max_length=MAX_FRAMES)]
    question: str = ""
    max_tokens: Count = 0
    stream: bool = True
    fill: Fill = b""
    size: Annotated[tuple[Side, ...], Meta(max_length=2)] = ()


class Token(msgspec.Struct, frozen=True, array_like=True, tag=5):
    """Server to client: piece ``index`` (from 0) of the answer to ``id``; all pieces joined are its text."""

    id: RequestId
    index: Count
    text: str


class Answer(msgspec.Struct, frozen=True, array_like=True, tag=6):
    """Server to client: the whole answer, and the end of the request.

    Attributes:
        id: the request.
        text: the whole text, also when it was streamed.
        tokens: tokens the model produced.
        server_us: microseconds from the request's arrival to this message.
        finish: "stop" (the model ended) or "length" (``max_tokens`` were reached).
    """

    id: RequestId
    text: str
    tokens: Count
    server_us: Count
    finish: Name = "stop"


class Error(msgspec.Struct, frozen=True, array_like=True, tag=7):
    """Server to client: the request failed. ``id`` 0 is about no request; ``code`` is one of ERROR_CODES."""

    id: Id
    code: Name
    message: Line


class Busy(msgspec.Struct, frozen=True, array_like=True, tag=8):
    """Server to client: not now; send the same request again after ``retry_ms`` milliseconds."""

    id: Id
    retry_ms: Count


class Ping(msgspec.Struct, frozen=True, array_like=True, tag=9):
    """Client to server: are you there? Answered at once, also while the model computes."""

    id: Id


class Pong(msgspec.Struct, frozen=True, array_like=True, tag=10):
    """Server to client: yes; the id of the PING comes back."""

    id: Id


class Bye(msgspec.Struct, frozen=True, array_like=True, tag=11):
    """Either side: the session ends; nothing is answered after it."""


class Point(msgspec.Struct, frozen=True, array_like=True):
    """A moment of a training run.

    Attributes:
        stage: index of the stage, from 0.
        step: its next step, from 0.
    """

    stage: Small
    step: Count


class Begin(msgspec.Struct, frozen=True, array_like=True, tag=12):
    """Client to training server: go on from the newest of these moments that you hold too.

    Attributes:
        id: the request.
        holds: moments of which the client has a snapshot, oldest first.
    """

    id: RequestId
    holds: Annotated[tuple[Point, ...], Meta(max_length=16)]


class Start(msgspec.Struct, frozen=True, array_like=True, tag=13):
    """Training server to client: both go on from here; whatever came after is forgotten."""

    id: RequestId
    point: Point


class Micro(msgspec.Struct, frozen=True, array_like=True, tag=14):
    """Client to training server: a micro-batch. Frames: "v" what crosses the cut, "t" its texts.

    Attributes:
        id: the request.
        frames: the payload frames, in order.
        step: of the stage.
        micro: its number in the step, from 0.
        levels: L of the codes; 0 for float16 features.
        score: held-out data: only say how well it is answered; GRADS then has no frame.
    """

    id: RequestId
    frames: Annotated[tuple[Frame, ...], Meta(max_length=MAX_FRAMES)]
    step: Count
    micro: Small
    levels: Small
    score: bool = False


class Grads(msgspec.Struct, frozen=True, array_like=True, tag=15):
    """Training server to client: what a micro-batch came to. Frame: "g" the gradient of what crossed.

    Attributes:
        id: the request.
        frames: the payload frames, in order.
        loss: sum of the answer tokens' cross-entropies, in nats.
        tokens: answer tokens, ends included.
        right: turns whose every answer token was the likeliest.
        turns: questions in it.
    """

    id: RequestId
    frames: Annotated[tuple[Frame, ...], Meta(max_length=MAX_FRAMES)]
    loss: float
    tokens: Count
    right: Count
    turns: Count


class Norm(msgspec.Struct, frozen=True, array_like=True, tag=16):
    """Client to training server: all gradients of a step are in; take it, clipped over both partitions.

    Attributes:
        id: the request.
        step: of the stage.
        squared: squared norm of the client partition's gradients.
    """

    id: RequestId
    step: Count
    squared: float


class Total(msgspec.Struct, frozen=True, array_like=True, tag=17):
    """Training server to client: the step is taken here; take it there.

    Attributes:
        id: the request.
        squared: squared norm of both partitions' gradients.
        save: the server has a snapshot from after this step; make one too.
    """

    id: RequestId
    squared: float
    save: bool


class Weights(msgspec.Struct, frozen=True, array_like=True, tag=18):
    """Client to training server: the trained client partition at the run's end, or the decoder half of a
    fitted quantizer before a stage's first step. Frame: "w" its tensors as safetensors.
    """

    id: RequestId
    frames: Annotated[tuple[Frame, ...], Meta(max_length=MAX_FRAMES)]


class Taken(msgspec.Struct, frozen=True, array_like=True, tag=19):
    """Training server to client: the weights are taken over (at the end, the checkpoint is written)."""

    id: RequestId


class Outputs(msgspec.Struct, frozen=True, array_like=True, tag=20):
    """Training server to client, where labels are private: what the model says to a micro-batch. Frame: "o".

    Attributes:
        id: the MICRO.
        frames: the payload frames, in order.
    """

    id: RequestId
    frames: Annotated[tuple[Frame, ...], Meta(max_length=MAX_FRAMES)]


class Judge(msgspec.Struct, frozen=True, array_like=True, tag=21):
    """Client to training server: the gradient of the loss with respect to OUTPUTS. Frame: "g".

    Attributes:
        id: the request; the reply is GRADS, without a loss.
        frames: the payload frames, in order.
        step: of the stage.
        micro: number of the micro-batch in the step, from 0.
    """

    id: RequestId
    frames: Annotated[tuple[Frame, ...], Meta(max_length=MAX_FRAMES)]
    step: Count
    micro: Small


Message: TypeAlias = (
    Hello | Welcome | Reject | Ask | Token | Answer | Error | Busy | Ping | Pong | Bye
    | Begin | Start | Micro | Grads | Norm | Total | Weights | Taken | Outputs | Judge
)  # fmt: skip
# The one union a header is decoded into.

KINDS: Final[tuple[type[msgspec.Struct], ...]] = (
    Hello,
    Welcome,
    Reject,
    Ask,
    Token,
    Answer,
    Error,
    Busy,
    Ping,
    Pong,
    Bye,
    Begin,
    Start,
    Micro,
    Grads,
    Norm,
    Total,
    Weights,
    Taken,
    Outputs,
    Judge,
)
"""Every message type, by tag: ``KINDS[tag - 1]``."""

_ENCODER = msgspec.msgpack.Encoder()
_DECODER = msgspec.msgpack.Decoder(Message)


def encode_header(message: Message) -> bytes:
    """Frame 0 of a message.

    Raises:
        MalformedMessage: a field is outside its bounds, so that no reader would accept it; the bug is ours.
    """
    try:
        data = _ENCODER.encode(message)
    except (msgspec.MsgspecError, UnicodeError, OverflowError, TypeError) as error:
        raise MalformedMessage(f"a {kind(message)} message cannot be encoded: {error}") from error
    if isinstance(message, Hello) and not message.parts:
        data = bytes([data[0] - 1]) + data[1:-1]
    elif isinstance(message, Ask) and not message.size:
        # Defaults may be left out from the end, as above: a byte less for every picture that is not cut
        # into tiles, and two more for every question that is not padded.
        left_out, spared = (1, 1) if message.fill else (2, 3)
        data = bytes([data[0] - left_out]) + data[1:-spared]
    # Structs check nothing when built. Reading back what was written costs a microsecond, and keeps
    # mistakes on the side that made them.
    decode_header(data)
    return data


def decode_header(data: bytes) -> Message:
    """Reads frame 0 of a message. The caller has checked its size.

    Raises:
        MalformedMessage: not msgpack, an unknown tag, a field that is missing, of the wrong type or
            outside its bounds. ``about`` holds the request's id where it can be read.
    """
    try:
        message: Message = _DECODER.decode(data)
    except (msgspec.MsgspecError, UnicodeError, RecursionError) as error:
        raise _explained(data, error) from error
    return message


def line(text: str) -> str:
    """Text as a REJECT or ERROR message may carry it: one line, cut to what its field holds."""
    flat = " ".join(text.encode("utf-8", "replace").decode().split())
    return flat if len(flat) <= MAX_LINE else flat[: MAX_LINE - 3] + "..."


def kind(message: Message) -> str:
    """The name of a message's type as docs/protocol.md writes it: ``HELLO``, ``ASK``, ..."""
    return type(message).__name__.upper()


class _Opening(msgspec.Struct, array_like=True):
    """The first two items of any header, read when the whole cannot be."""

    tag: int
    first: msgspec.Raw = msgspec.Raw(b"\xc0")


def _explained(data: bytes, error: Exception) -> MalformedMessage:
    try:
        opening = msgspec.msgpack.decode(data, type=_Opening)
    except (msgspec.MsgspecError, UnicodeError, RecursionError):
        return MalformedMessage(f"frame 0 is no message header ({error}); see docs/protocol.md")
    if not 1 <= opening.tag <= len(KINDS):
        return MalformedMessage(
            f"unknown message tag {opening.tag}; this end knows 1 to {len(KINDS)} (protocol {PROTOCOL})"
        )
    name = KINDS[opening.tag - 1].__name__.upper()
    return MalformedMessage(f"the {name} header is malformed: {error}", about=_id(opening))


def _id(opening: _Opening) -> int:
    """The request a broken header is about: field 0 of every message that has an id."""
    if "id" not in KINDS[opening.tag - 1].__struct_fields__:
        return 0
    try:
        return msgspec.msgpack.decode(opening.first, type=Id)
    except msgspec.MsgspecError:
        return 0
