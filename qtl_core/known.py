"""What both sides of a training run know of its pictures: their last codes, which need not cross again.

A picture is named by its number. It crosses as the codes that the server has, as a difference to them, or in
full, whichever is shortest. Both sides take up the codes of a step when the step is taken, and forget all of
them where a stage or a session begins: so they always have the same.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import numpy as np
import numpy.typing as npt

from qtl_core import codes as packing
from qtl_core import differences
from qtl_core.codes import Codes
from qtl_core.crossing import VALUES, Crossed, Crossing
from qtl_core.errors import CodeError
from qtl_core.messages import CODEC_KNOWN, Frame
from qtl_core.wire import frame_codes

FULL: Final = 0
SAME: Final = 1
CHANGED: Final = 2
_MIXED: Final = 3
_ENTRY: Final = 128
"""Bytes that an entry takes beside its codes, about."""
_LENGTH: Final = 4

Modes = npt.NDArray[np.uint8]


class Known:
    """The last codes of a stage's pictures, on either side.

    Args:
        crossing: how codes cross in full.
        room: bytes of memory for them, the same on both sides; 0: nothing is kept, nobody is named. When it
            is full, new pictures are not taken in.
    """

    def __init__(self, crossing: Crossing, room: int) -> None:
        self._crossing, self._room = crossing, room
        self._held: dict[tuple[int, int], bytes] = {}
        self._used = 0
        self._staged: dict[int, tuple[int, tuple[int, ...], Codes]] = {}

    def up(self, micro: int, pictures: Sequence[int], crossed: Crossed, levels: int) -> tuple[Frame, bytes]:
        """The payload of a micro-batch, in the shortest form there is.

        Args:
            micro: its number in the step.
            pictures: their numbers, below 2**32.
            crossed: uint8 codes [pictures, tokens, code_dim], or float16 features.
            levels: L; 0 for features, which are not kept.
        """
        if not levels or not self._room or not pictures:
            return self._crossing.up(crossed, levels)
        codes = crossed.astype(np.uint8)
        modes, share = self._modes(pictures, codes, levels)
        data = _head(pictures, modes)
        some = modes == CHANGED
        if some.any():
            chosen = np.flatnonzero(some).tolist()
            before = np.stack([self._last(pictures[at], levels) for at in chosen])
            rows = (-1, codes.shape[-1])
            coded = differences.encode(codes[some].reshape(rows), before.reshape(rows), levels, share)
            data += bytes([share]) + len(coded).to_bytes(_LENGTH, "little") + coded
        if (modes == FULL).any():
            frame, full = self._crossing.up(codes[modes == FULL], levels)
            data += bytes([frame.codec]) + full
        self._staged[micro] = levels, tuple(pictures), codes
        return frame_codes(VALUES, data, codec=CODEC_KNOWN), data

    def read(self, micro: int, frame: Frame, data: bytes, levels: int, pictures: int) -> Crossed:
        """What ``up`` made, checked; also where it was made without keeping anything.

        Raises:
            CodeError: bytes that are no codes of so many pictures, or a picture that is not known here.
        """
        if frame.codec != CODEC_KNOWN:
            return self._crossing.read(frame, data, levels, pictures)
        if not levels or not self._room:
            raise CodeError("pictures are named by number where nothing is kept of them: the recipes differ")
        numbers, modes, at = _read_head(data, pictures)
        codes = np.empty((pictures, *self._crossing.shape(levels)), np.uint8)
        for place in np.flatnonzero(modes != FULL).tolist():
            codes[place] = self._last(numbers[place], levels)
        some = modes == CHANGED
        if some.any():
            begin = at + 1 + _LENGTH
            end = begin + int.from_bytes(data[at + 1 : begin], "little")
            if end > len(data):
                raise CodeError("the payload ends before its differences do; the data is incomplete")
            before = codes[some].reshape(-1, codes.shape[-1])
            codes[some] = differences.decode(data[begin:end], before, levels, data[at]).reshape(
                codes[some].shape
            )
            at = end
        if (modes == FULL).any():
            if at >= len(data):
                raise CodeError("the payload ends before its pictures do; the data is incomplete")
            inner = frame_codes(VALUES, b"", codec=data[at])
            count = int((modes == FULL).sum())
            codes[modes == FULL] = self._crossing.read(inner, data[at + 1 :], levels, count)
        elif at != len(data):
            raise CodeError(f"{len(data) - at} bytes follow the last picture; the data is damaged")
        self._staged[micro] = levels, numbers, codes
        return codes

    def commit(self) -> None:
        """Takes up the codes of a step that is taken now."""
        for micro in sorted(self._staged):
            levels, pictures, codes = self._staged[micro]
            for picture, one in zip(pictures, codes, strict=True):
                key, data = (levels, picture), packing.pack(one, levels)
                if key not in self._held:
                    if self._used + len(data) + _ENTRY > self._room:
                        continue
                    self._used += len(data) + _ENTRY
                self._held[key] = data
        self._staged.clear()

    def _last(self, picture: int, levels: int) -> Codes:
        data = self._held.get((levels, picture))
        if data is None:
            raise CodeError(f"picture {picture} with {levels} levels is not known here: send it in full")
        return packing.unpack(data, levels, self._crossing.shape(levels))

    def _modes(self, pictures: Sequence[int], codes: Codes, levels: int) -> tuple[Modes, int]:
        """How each picture crosses, and the share under which changed ones are coded."""
        modes = np.full(len(pictures), FULL, np.uint8)
        known = [at for at, picture in enumerate(pictures) if (levels, picture) in self._held]
        before = {at: self._last(pictures[at], levels) for at in known}
        changed = [at for at in known if (before[at] != codes[at]).any()]
        modes[known], share = SAME, 0
        if changed:
            last = np.stack([before[at] for at in changed])
            share, bits = differences.best_share(codes[changed], last, levels)
            full = [self._crossing.bits(codes[at], levels) for at in changed]
            modes[changed] = np.where(bits < full, CHANGED, FULL)
            chosen = modes[changed] == CHANGED
            if chosen.any():
                share, _ = differences.best_share(codes[changed][chosen], last[chosen], levels)
        return modes, share


def _head(pictures: Sequence[int], modes: Modes) -> bytes:
    """Numbers and modes of a micro-batch's pictures."""
    bits = max(pictures).bit_length()
    uniform = (modes == modes[0]).all()
    numbers = np.array(pictures, "<u4")[:, None].view(np.uint8)
    stream = np.unpackbits(numbers, axis=1, count=bits, bitorder="little") if bits else numbers[:, :0]
    packed = np.packbits(stream.reshape(-1), bitorder="little").tobytes()
    head = bytes([bits | (int(modes[0]) if uniform else _MIXED) << 6])
    return head + packed + (b"" if uniform else packing.pack(modes, 3))


def _read_head(data: bytes, pictures: int) -> tuple[tuple[int, ...], Modes, int]:
    """Numbers and modes, and where they end."""
    bits, kind = (data[0] & 63, data[0] >> 6) if data else (64, 0)
    at = 1 + (bits * pictures + 7) // 8
    end = at + (packing.packed_size(pictures, 3) if kind == _MIXED else 0)
    if bits > 32 or end > len(data):
        raise CodeError("the payload ends before its pictures' numbers do; the data is incomplete")
    stream = np.unpackbits(np.frombuffer(data, np.uint8)[1:at], bitorder="little")
    if stream[bits * pictures :].any():
        raise CodeError("the bits behind the pictures' numbers are not zero; the data is damaged")
    numbers = np.zeros((pictures, 32), np.uint8)
    numbers[:, :bits] = stream[: bits * pictures].reshape(pictures, bits)
    whole = np.packbits(numbers, axis=1, bitorder="little").view("<u4").reshape(-1)
    if kind == _MIXED:
        return tuple(whole.tolist()), packing.unpack(data[at:end], 3, pictures), end
    return tuple(whole.tolist()), np.full(pictures, kind, np.uint8), end
