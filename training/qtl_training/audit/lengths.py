"""Lengths: what an eavesdropper under CURVE learns about the picture from the sizes of messages alone.

Codes packed at a fixed length, and 16-bit features, always take the same bytes. Entropy-coded ones take
fewer, and how many depends on the picture. The question's length shows too, as a multiple where messages are
padded; so everything here is measured for questions of one length at a time, which leaves what the sizes
tell beyond it.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from qtl_core import entropy
from qtl_core import messages as m
from qtl_core.entropy_file import read_tables, tables_name
from qtl_core.nn.checkpoint import QUANTIZERS_FOLDER
from qtl_training.audit.information import accuracy, entropy_of, information
from qtl_training.audit.mail import Ints, Mail, half_empty, unsent
from qtl_training.audit.observing import frame_lengths
from qtl_training.audit.representations import Representation
from qtl_training.audit.target import Piece, Target
from qtl_training.digits.questions import every_wording

PROPERTIES = ("digits", "colours", "empty", "same_picture")
"""How many digits, how many different colours, whether there is nothing at all, and whether two messages
are about the same picture."""

CONTROL = "planted"
"""Payloads whose size is the number of digits: a leak the attack must find."""

_WORDINGS = 6
_PROBES = (1, 20, 100, 200, 300)
_CONTROL_BYTES = 40


class Lengths:
    """The attack on one target.

    Args:
        target: what is attacked.
    """

    def __init__(self, target: Target) -> None:
        self._target = target
        self.key = f"lengths-{_framing(target.pads):08x}"
        self.subjects = (CONTROL, *(one.name for one in target.representations))
        self._mail: tuple[str, Mail] | None = None

    def make(self, subject: str, seed: int) -> Piece:
        """What the lengths tell in every way of sending one representation.

        Returns:
            ``ways``, each with ``coding`` ("float16", "packed" or "coded"), ``pad`` (0: none), the mean,
            least and most ``payload_bytes``, and what ``eavesdrop`` found. For ``CONTROL``, what was found
            of a planted leak.
        """
        shuffles = self._target.effort.shuffles
        if subject == CONTROL:
            return Piece(control(self._contents(), seed, shuffles))
        one = self._target.named(subject)
        fixed = self._contents().at(one.packed_bytes)
        if not one.levels:
            return Piece({"ways": [_way("float16", 0, fixed, m.CODEC_FLOAT16, seed, shuffles)]})
        ways = [_way("packed", 0, fixed, m.CODEC_PACKED, seed, shuffles)]
        mail = self._coded(one)
        for pad in (0, *self._target.pads):
            ways.append(_way("coded", pad, mail, m.CODEC_RANS, seed, shuffles))
        return Piece({"ways": ways})

    def _contents(self) -> Mail:
        """The scenes, with no payload yet."""
        gallery, effort = self._target.gallery, self._target.effort
        first = effort.table_scenes
        train = unsent(gallery.train.scenes).some(np.arange(first, first + effort.sized_scenes))
        others = (gallery.test, gallery.empty_train, gallery.empty_test)
        return Mail(train, *(unsent(pictures.scenes) for pictures in others))

    def _coded(self, one: Representation) -> Mail:
        """Entropy-coded sizes, under the checkpoint's tables, or else such as it would be given.

        Those are measured on scenes the eavesdropper does not learn from.
        """
        if self._mail is None or self._mail[0] != one.name:
            target, effort = self._target, self._target.effort
            gallery = target.gallery
            codes = target.cut.codes(one, gallery.train.features[: effort.table_scenes + effort.sized_scenes])
            tables = _brought(target.checkpoint.path, one)
            if tables is None:
                tables = entropy.Tables.fit(codes[: effort.table_scenes].numpy(), one.levels)
            sent = [codes[effort.table_scenes :]]
            others = (gallery.test, gallery.empty_train, gallery.empty_test)
            sent += [target.cut.codes(one, pictures.features) for pictures in others]
            sizes = [coded_sizes(part, tables, one.packed_bytes) for part in sent]
            self._mail = (one.name, self._contents().sent(*sizes))
        return self._mail[1]


def _framing(pads: tuple[int, ...]) -> int:
    """Tells ways of framing and padding messages apart, so that kept results of another are not taken up."""
    seen = [
        (pad, size, frame_lengths(text, size, m.CODEC_RANS, pad=pad))
        for pad in (0, *pads)
        for size in _PROBES
        for text in wordings()
    ]
    return zlib.crc32(repr(seen).encode())


def _brought(checkpoint: Path, one: Representation) -> entropy.Tables | None:
    """The tables a checkpoint brings for a representation, where ``qtl-export`` looks; None: none."""
    folder = checkpoint / QUANTIZERS_FOLDER / one.quantizer if one.quantizer else checkpoint
    path = folder / tables_name(one.levels)
    return read_tables(path) if path.is_file() else None


def coded_sizes(codes: Tensor, tables: entropy.Tables, packed: int) -> Ints:
    """Bytes sent for codes uint8 [n, tokens, channels]: entropy-coded, or packed where that is less."""
    coded = entropy.encode_batch(codes.numpy(), tables)
    return np.array([min(len(data), packed) for data in coded], np.int64)


def wordings() -> tuple[str, ...]:
    """Questions of a few lengths, from the shortest to the longest there is."""
    by_length = {len(text.encode()): text for text in reversed(every_wording()) if text.endswith("?")}
    ordered = [by_length[length] for length in sorted(by_length)]
    at = np.linspace(0, len(ordered) - 1, _WORDINGS).round().astype(int)
    return tuple(ordered[index] for index in dict.fromkeys(at.tolist()))


def eavesdrop(mail: Mail, codec: int, pad: int, seed: int, shuffles: int) -> dict[str, Any]:
    """What the lengths of messages tell.

    Args:
        mail: payload sizes, and what the pictures hold.
        codec: codec number of the payloads.
        pad: the multiple that both frames are padded to; 0 for none.
        seed: of the sample and the shuffles.
        shuffles: permutations behind each "could be chance".

    Returns:
        ``length_bits``, the entropy of what he sees, an upper bound of all it can tell about the
        picture; and for each of ``PROPERTIES`` percent right (``accuracy``) beside ``chance``,
        ``bits`` of mutual information, and whether they are beyond chance (``leaks``). Means over
        question lengths; ``leaks`` where any of them does.
    """
    rng = np.random.default_rng([seed, 43])
    part = mail.part(seed)
    rows = [_at_one_question(part, _Ear(text, codec, pad), rng, shuffles) for text in wordings()]
    return {
        "length_bits": float(np.mean([row["length_bits"] for row in rows])),
        "properties": {
            name: {
                **{
                    key: float(np.mean([row[name][key] for row in rows]))
                    for key in ("accuracy", "chance", "bits")
                },
                "leaks": any(row[name]["leaks"] for row in rows),
            }
            for name in PROPERTIES
        },
    }


def control(mail: Mail, seed: int, shuffles: int) -> dict[str, Any]:
    """The same attack on payloads whose size is planted to be the number of digits: it must find it."""
    parts = (mail.train, mail.test, mail.empty_train, mail.empty_test)
    planted = mail.sent(*(_CONTROL_BYTES + part.digits for part in parts))
    told = eavesdrop(planted, m.CODEC_PACKED, 0, seed, shuffles)
    found: dict[str, Any] = told["properties"]["digits"]
    return found


def _way(coding: str, pad: int, mail: Mail, codec: int, seed: int, shuffles: int) -> dict[str, Any]:
    sizes = mail.test.payload
    size = {"mean": float(sizes.mean()), "least": int(sizes.min()), "most": int(sizes.max())}
    return {
        "coding": coding,
        "pad": pad,
        "payload_bytes": size,
        **eavesdrop(mail, codec, pad, seed, shuffles),
    }


class _Ear:
    """Turns payload sizes into what is seen of the messages that carry them with one question."""

    def __init__(self, question: str, codec: int, pad: int) -> None:
        self._question, self._codec, self._pad = question, codec, pad
        self._known: dict[int, tuple[int, ...]] = {}

    def hears(self, payload: Ints) -> Ints:
        """Frame lengths, int64 [n, frames]; 0 where a message has fewer."""
        for size in np.unique(payload).tolist():
            if size not in self._known:
                self._known[size] = frame_lengths(self._question, size, self._codec, pad=self._pad)
        seen = [self._known[size] for size in payload.tolist()]
        most = max(map(len, self._known.values()))
        return np.array([(*one, *(0,) * (most - len(one))) for one in seen], np.int64)


def _at_one_question(mail: Mail, ear: _Ear, rng: np.random.Generator, shuffles: int) -> dict[str, Any]:
    row: dict[str, Any] = {}
    for name, (train, about, test, about_test) in _tasks(mail):
        seen, seen_test = ear.hears(np.concatenate([train, test])), ear.hears(test)
        right, chance = accuracy(seen[: len(train)], about, seen_test, about_test)
        bits, leaks = information(_as_symbols(seen_test), about_test, rng, shuffles)
        row[name] = {"accuracy": right, "chance": chance, "bits": bits, "leaks": leaks}
    heard = _as_symbols(ear.hears(mail.test.payload))
    row["length_bits"] = entropy_of(heard)
    row["same_picture"] = _same_picture(heard, rng, shuffles)
    return row


def _tasks(mail: Mail) -> Iterator[tuple[str, tuple[Ints, Ints, Ints, Ints]]]:
    yield "digits", (mail.train.payload, mail.train.digits, mail.test.payload, mail.test.digits)
    yield "colours", (mail.train.payload, mail.train.colours, mail.test.payload, mail.test.colours)
    train, test = half_empty(mail.train, mail.empty_train), half_empty(mail.test, mail.empty_test)
    yield "empty", (train.payload, train.digits == 0, test.payload, test.digits == 0)


def _same_picture(heard: Ints, rng: np.random.Generator, shuffles: int) -> dict[str, Any]:
    """Two messages with the same question: equal lengths are taken for the same picture.

    The same picture always has the same codes, so one half of the pairs needs no measuring.
    """
    n = len(heard)
    other = (np.arange(n) + rng.integers(1, n, n)) % n
    equal = np.concatenate([np.ones(n, np.int64), (heard == heard[other]).astype(np.int64)])
    same = np.repeat(np.array([1, 0], np.int64), n)
    bits, leaks = information(equal, same, rng, shuffles)
    return {"accuracy": 100 * float(np.mean(equal == same)), "chance": 50.0, "bits": bits, "leaks": leaks}


def _as_symbols(seen: Ints) -> Ints:
    """Rows [n, frames] as one number each."""
    return np.unique(seen, axis=0, return_inverse=True)[1].reshape(-1).astype(np.int64)
