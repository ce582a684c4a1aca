"""Payloads of the two processors beside each other, held against the bounds of DESIGN.md."""

from __future__ import annotations

from pathlib import Path
from typing import Final

import msgspec
import numpy as np
import torch

from edge_runtime.golden import TOLERANCE
from edge_runtime.variants import FULL
from qtl_core import codes as packing
from qtl_core import shipped
from qtl_core.bundle import open_half
from qtl_core.nn.checkpoint import load_checkpoint
from qtl_core.nn.client_partition import ClientPartition
from qtl_export.validation import NEAR, to_boundary
from tests.aarch64 import bundles, every
from tests.aarch64.every import Head
from tests.aarch64.plan import FEW_LEVELS, HERE, THERE, Array, Graph, payloads

ACROSS: Final = "x86-64"
PRECISION: Final = "fp32 on aarch64"
ALONE: Final = "the same quantizer in the graph of all"
_FEW, _MANY = 1e-4, 1e-3


class Compared(msgspec.Struct, frozen=True, kw_only=True):
    """Codes on aarch64 beside others of the same pictures.

    Attributes:
        bundle: name of the bundle, or of the graph of all quantizers.
        variant: name of the graph in its bundle.
        quantizer: name of a further quantizer; "" for the checkpoint's own.
        levels: of a code.
        against: what stands beside them.
        pictures: how many.
        codes: how many were compared.
        differ: how many are not the same.
        largest: largest difference, in levels.
        share_bound: share that may differ.
        farthest: from a rounding boundary, in levels, of the features whose codes differ; None where none
            does, and at reduced precision.
        fault: what is over its bound; empty if nothing is.
    """

    bundle: str
    variant: str
    quantizer: str
    levels: int
    against: str
    pictures: int
    codes: int
    differ: int
    largest: int
    share_bound: float
    farthest: float | None
    fault: str


def compare_all(work: Path, planned: list[Graph], heads: list[Head]) -> list[Compared]:
    """Every graph of the plan across the processors; reduced precision beside fp32; bundles beside ``every``.

    Args:
        work: the folder of ``encode``.
        planned: what ran.
        heads: of the graph of all quantizers.
    """
    pictures = np.load(work / "pictures.npy", mmap_mode="r", allow_pickle=False)
    sides = {(side, one.name): payloads(work, side, one) for side in (HERE, THERE) for one in planned}
    found = []
    at = 0
    for head in heads:
        mine, other = (sides[side, every.FOLDER][:, at : at + head.bytes] for side in (THERE, HERE))
        found.append(compare(every.FOLDER, FULL, head, ACROSS, mine, other, pictures))
        for one in planned:
            if one.half and one.variant == FULL and _head(work, one) == head:
                real = sides[THERE, one.name]
                found.append(compare(one.bundle, FULL, head, ALONE, real, mine[: len(real)], pictures))
        at += head.bytes
    for one in planned:
        if one.bundle == every.FOLDER:
            continue
        head, mine = _head(work, one), sides[THERE, one.name]
        found.append(compare(one.bundle, one.variant, head, ACROSS, mine, sides[HERE, one.name], pictures))
        if one.variant != FULL:
            exact = sides[THERE, f"{one.bundle}.{FULL}"][: len(mine)]
            found.append(compare(one.bundle, one.variant, head, PRECISION, mine, exact, pictures))
    return found


def compare(
    bundle: str, variant: str, head: Head, against: str, mine: Array, other: Array, pictures: Array
) -> Compared:
    """Compares payloads of one quantizer.

    Args:
        bundle: name of the bundle.
        variant: name of its graph.
        head: the quantizer.
        against: what ``other`` is.
        mine: payloads on aarch64, uint8 [n, payload bytes].
        other: as many to compare with.
        pictures: what they are of, uint8 [at least n, height, width, 3].
    """
    shape = (head.tokens, head.code_dim)
    unpacked = [
        np.stack([packing.unpack(row.tobytes(), head.levels, shape) for row in rows]).astype(np.int16)
        for rows in (mine, other)
    ]
    apart = np.abs(unpacked[0] - unpacked[1])
    differ, largest = int(np.count_nonzero(apart)), int(apart.max())
    exact = variant == FULL
    bound = (_FEW if head.levels <= FEW_LEVELS else _MANY) if exact else TOLERANCE
    farthest = _farthest(head, apart, pictures) if exact and differ else None
    faults = []
    if largest > 1:
        faults.append(f"a code differs by {largest} levels, 1 is allowed")
    if differ > max(int(bound * apart.size), 1 if exact else 0):
        faults.append(f"{differ:,} of {apart.size:,} codes differ, a share of {bound:g} may")
    if farthest is not None and farthest > NEAR:
        faults.append(f"a code differs {farthest:.2g} levels from a rounding boundary, {NEAR:g} is allowed")
    return Compared(
        bundle=bundle,
        variant=variant,
        quantizer=head.quantizer,
        levels=head.levels,
        against=against,
        pictures=len(mine),
        codes=apart.size,
        differ=differ,
        largest=largest,
        share_bound=bound,
        farthest=farthest,
        fault="; ".join(faults),
    )


def line(row: Compared) -> str:
    """A row for people."""
    which = f" {row.quantizer}" if row.quantizer and row.bundle == every.FOLDER else ""
    return (
        f"{row.bundle}{which} {row.variant}, {row.levels} levels, beside {row.against}: {row.differ:,} of "
        f"{row.codes:,} codes differ" + (f"; FAULT: {row.fault}" if row.fault else "")
    )


def _head(work: Path, graph: Graph) -> Head:
    """The quantizer of a bundle's graph."""
    cut = open_half(work / graph.half, "client").manifest.cut
    (quantizer,) = (one.quantizer for one in bundles.BUNDLES if one.name == graph.bundle)
    return Head(quantizer=quantizer, levels=cut.levels, tokens=cut.tokens, code_dim=cut.code_dim)


def _farthest(head: Head, apart: np.ndarray, pictures: Array) -> float:
    """Largest distance to a rounding boundary, in levels, of the features whose codes differ.

    The features are PyTorch's: the graphs do not return them.
    """
    model = load_checkpoint(shipped.digits(), quantizer=head.quantizer).model
    part = ClientPartition(model.vision, model.vision_quantizer, head.levels).eval()
    farthest = 0.0
    for index in np.flatnonzero(apart.any((1, 2))):
        picture = torch.from_numpy(np.array(pictures[index : index + 1]))
        with torch.inference_mode():
            scaled = part.scaled(picture)[0].numpy()
        farthest = max(farthest, float(to_boundary(scaled[apart[index] > 0], head.levels).max()))
    return farthest
