"""Interleaved rANS for long payloads: many lanes side by side, one numpy operation for all.

Lane i holds a state x of 32 bits, at least 2**16. With a symbol of frequency f and start c of 2**14,

    encoding    x <- (x div f) 2**14 + x mod f + c          decoding    x <- f (x div 2**14) + x mod 2**14 - c

The encoder goes backwards and, where x would outgrow 32 bits, first moves the lower 16 bits out; the decoder
goes forwards and takes them in again where x falls below 2**16. All lanes share one stream of these words.
A decoder that ends elsewhere than where every encoder begins, at x = 2**16 in every lane with no word left,
has read damaged data. After J. Duda, "Asymmetric numeral systems" (arXiv 1311.2540), and F. Giesen,
"Interleaved entropy coders" (arXiv 1402.3392).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from .errors import CodeError
from .range_coder import PRECISION, TOTAL

_LOWEST: Final = 1 << 16
_STATE_BYTES: Final = 4
_WORD_BYTES: Final = 2

U32 = npt.NDArray[np.uint32]
Index = npt.NDArray[np.int64]


def encode(starts: U32, frequencies: U32) -> bytes:
    """Codes symbols, each given as its share of ``2**14``.

    Args:
        starts: uint32 [steps, lanes] in the order of decoding: sum of the frequencies before the symbol in
            its table; 0 where a lane has no symbol.
        frequencies: the same shape; ``2**14`` where there is no symbol.

    Returns:
        The states of all lanes (uint32) and then the words (uint16), both little-endian.
    """
    steps, lanes = frequencies.shape
    state = np.full(lanes, _LOWEST, np.uint32)
    # 32 - 14 bits may lie above f: a state from f 2**18 on would outgrow 32 bits. For f = 2**14 none does.
    most = (frequencies << np.uint32(32 - PRECISION)) - np.uint32(1)
    grow = np.uint32(TOTAL) - frequencies
    words = np.empty((steps, lanes), np.uint16)
    moved = np.empty((steps, lanes), np.bool_)
    quotient = np.empty(lanes, np.uint32)
    sixteen = np.uint32(16)
    for step in range(steps - 1, -1, -1):
        out = moved[step]
        np.greater(state, most[step], out=out)
        words[step] = state
        np.right_shift(state, sixteen, out=state, where=out)
        np.floor_divide(state, frequencies[step], out=quotient)
        quotient *= grow[step]
        state += quotient
        state += starts[step]
    return state.astype("<u4").tobytes() + words[moved].astype("<u2").tobytes()


def check_length(payload: bytes, lanes: int) -> None:
    """Looks whether a payload can be one of so many lanes.

    Raises:
        CodeError: too short, or no whole number of words.
    """
    head = _STATE_BYTES * lanes
    if len(payload) < head or (len(payload) - head) % _WORD_BYTES:
        raise CodeError(
            f"coded data of {lanes} lanes has {head} bytes and an even number more, not {len(payload)}; the "
            "data is incomplete"
        )


class Decoder:
    """Decodes several payloads of the same schedule at once.

    Args:
        payloads: what ``encode`` made; ``check_length`` has passed them.
        lanes: lanes of one payload.
    """

    def __init__(self, payloads: Sequence[bytes], lanes: int) -> None:
        head = _STATE_BYTES * lanes
        states = b"".join(payload[:head] for payload in payloads)
        self._state: U32 = np.frombuffer(states, "<u4").astype(np.uint32)
        self._small = self._state < _LOWEST
        counts = [(len(payload) - head) // _WORD_BYTES for payload in payloads]
        # One word behind the last, for damaged data that asks for more than there is.
        body = b"".join(payload[head:] for payload in payloads) + bytes(_WORD_BYTES)
        self._words: U32 = np.frombuffer(body, "<u2").astype(np.uint32)
        self._ends: Index = np.cumsum(counts, dtype=np.int64)
        self._at: Index = self._ends - counts
        self._lanes = lanes

    def slots(self) -> U32:
        """Where in its table each lane's next symbol lies, uint32 [payloads * lanes]."""
        slots: U32 = self._state & np.uint32(TOTAL - 1)
        return slots

    def take(self, slots: U32, starts: U32, frequencies: U32) -> None:
        """Moves on by one symbol in each lane.

        Args:
            slots: what ``slots`` returned.
            starts: of the symbols found there.
            frequencies: of the same.
        """
        state = (self._state >> np.uint32(PRECISION)) * frequencies
        state += slots
        state -= starts
        hungry = np.flatnonzero(state < _LOWEST)
        if hungry.size:
            state[hungry] = (state[hungry] << np.uint32(16)) | self._words.take(self._next(hungry))
        self._state = state

    def finish(self) -> list[str]:
        """What is wrong with each payload; empty where nothing is."""
        wrong = ((self._state != _LOWEST) | self._small).reshape(-1, self._lanes).any(1)
        wrong |= self._at != self._ends
        said = "the coded data does not end where its codes do; the data is damaged"
        return [said if bad else "" for bad in wrong.tolist()]

    def _next(self, hungry: Index) -> Any:
        """Where the next word of each of these lanes lies."""
        if len(self._at) == 1:
            at = np.arange(hungry.size) + self._at[0]
            self._at[0] += hungry.size
        else:
            counts = np.bincount(hungry // self._lanes, minlength=len(self._at))
            before = np.cumsum(counts) - counts
            at = np.arange(hungry.size) + np.repeat(self._at - before, counts)
            self._at += counts
        return np.minimum(at, len(self._words) - 1)
