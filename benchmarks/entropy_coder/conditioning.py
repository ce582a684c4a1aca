"""How many bytes codes carry under one condition or another, and how many they take."""

from __future__ import annotations

import importlib
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from qtl_core.codes import packed_size
from qtl_core.entropy import Tables, encode_batch
from qtl_core.range_coder import TOTAL

Codes = npt.NDArray[np.uint8]
Ints = npt.NDArray[np.intp]

KINDS: Final = ("previous_token", "previous_channel")
_PSEUDO: Final = (1.0, 4.0, 16.0, 64.0, 256.0)


def bytes_of_picture(known: Codes, test: Codes, tables: Tables) -> dict[str, float]:
    """Mean cross-entropy of a test picture in bytes, under tables of the training pictures.

    Args:
        known: uint8 [pictures, tokens, channels] of training scenes.
        test: the same of test scenes.
        tables: the coder's own, measured on ``known``.

    Returns:
        ``static`` for a table per channel; ``previous_token`` for a table per channel and the same channel's
        code in the token before; ``previous_channel`` for the channel before in the same token; ``classes``
        for the coder's own tables.
    """
    static = Tables.fit(known, tables.levels, classes=1)
    found = {"static": static.bits(test), "classes": tables.bits(test)}
    for kind in KINDS:
        found[kind] = _conditional_bits(known, test, static, kind)
    return {name: bits / 8 / len(test) for name, bits in found.items()}


def _conditional_bits(known: Codes, test: Codes, static: Tables, kind: str) -> float:
    """Bits of the test codes where each table depends on the code before.

    Counts fall back on the static table; how many codes that counts for is found on a quarter of the
    training pictures.
    """
    kept = len(known) // 4
    shares = static.frequencies[0] / TOTAL

    def bits(counts: npt.NDArray[np.float64], pseudo: float, codes: Codes) -> float:
        smooth = (counts + pseudo * shares[:, None]) / (counts.sum(-1, keepdims=True) + pseudo)
        channel = np.broadcast_to(np.arange(codes.shape[-1]), codes.shape)
        return float(-np.log2(smooth[channel, _before(codes, static.levels, kind), codes]).sum())

    part = _counts(known[kept:], static.levels, kind)
    pseudo = min(_PSEUDO, key=lambda each: bits(part, each, known[:kept]))
    return bits(_counts(known, static.levels, kind), pseudo, test)


def _before(codes: Codes, levels: int, kind: str) -> Ints:
    """The code that a code's table depends on; ``levels`` where there is none."""
    found = np.full(codes.shape, levels, np.intp)
    if kind == "previous_token":
        found[:, 1:] = codes[:, :-1]
    else:
        found[:, :, 1:] = codes[:, :, :-1]
    return found


def _counts(codes: Codes, levels: int, kind: str) -> npt.NDArray[np.float64]:
    """How often each code follows each, [channels, levels + 1, levels]."""
    channels = codes.shape[-1]
    before = _before(codes, levels, kind)
    index = (np.arange(channels) * (levels + 1) + before) * levels + codes
    counts = np.bincount(index.ravel(), minlength=channels * (levels + 1) * levels)
    return counts.reshape(channels, levels + 1, levels).astype(np.float64)


def coded(test: Codes, tables: Tables) -> dict[str, Any]:
    """Bytes that the coder makes of test pictures, and the most they are over the tables' cross-entropy."""
    data = encode_batch(test, tables)
    fixed = packed_size(test[0].size, tables.levels)
    sizes = np.array([len(each) for each in data])
    over = [size - tables.bits(one) / 8 for size, one in zip(sizes.tolist(), test, strict=True)]
    return {
        "classes_used": tables.classes,
        "coded_bytes_mean": float(sizes.mean()),
        "coded_bytes_p95": float(np.percentile(sizes, 95)),
        "sent_bytes_mean": float(np.minimum(sizes, fixed).mean()),
        "over_cross_entropy_mean": float(np.mean(over)),
        "over_cross_entropy_max": float(np.max(over)),
    }


def constriction_bytes(test: Codes, tables: Tables) -> float | None:
    """Mean bytes of constriction's range coder on the same symbols and tables; None where it is missing."""
    try:
        constriction: Any = importlib.import_module("constriction")
    except ImportError:
        return None
    model = constriction.stream.model.Categorical(perfect=False)
    sizes = []
    for picture in test:
        rows = tables.checked_rows(picture)
        chosen = tables.choose(rows)
        coder = constriction.stream.queue.RangeEncoder()
        if tables.classes > 1:
            shares = np.tile((tables.class_frequencies / TOTAL).astype(np.float32), (len(rows), 1))
            coder.encode(chosen.astype(np.int32), model, shares)
        shares = (tables.frequencies[chosen] / TOTAL).astype(np.float32).reshape(-1, tables.levels)
        coder.encode(rows.reshape(-1).astype(np.int32), model, shares)
        sizes.append(coder.get_compressed().nbytes)
    return float(np.mean(sizes))
