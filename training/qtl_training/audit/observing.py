"""What an eavesdropper under CURVE sees of a question: the length of each frame of its message.

libzmq encrypts every frame by itself, and the framing round it, with its length, is in the clear: so he
sees the header's and the payload's length, not only their sum. In a padded message both are multiples.
``tests/training/test_audit_wire.py`` takes a real encrypted connection apart and finds these numbers.
"""

from __future__ import annotations

from qtl_core import messages as m
from qtl_core import wire


def frame_lengths(question: str, payload: int, codec: int, *, pad: int = 0) -> tuple[int, ...]:
    """Lengths of the encrypted frames of one ASK, in bytes.

    Args:
        question: the question's text.
        payload: bytes of the vision payload.
        codec: its codec number.
        pad: the multiple that each frame, with its framing on TCP, is padded to; 0 for none.
    """
    data = bytes(payload)
    ask = m.Ask(id=1, frames=(wire.frame_codes("v", data, codec=codec),), question=question)
    payloads = [data]
    if pad:
        ask, payloads = wire.pad(ask, payloads, pad, curve=True)
    frames = wire.join(ask, payloads)
    return tuple(len(frame) + wire.CURVE_OVERHEAD for frame in frames)
