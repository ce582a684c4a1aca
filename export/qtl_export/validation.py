"""The device's own code against PyTorch, picture by picture: what DESIGN.md bounds, measured.

Two runtimes sum in different orders, so a few features land on the other side of a rounding boundary. How
many, how far, and how near to the boundary they were is what is counted here.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Final

import msgspec
import numpy as np
import numpy.typing as npt

from edge_runtime.encoder import Encoder
from edge_runtime.golden import share_bound
from edge_runtime.picture import Pixels
from qtl_core import codes as packing
from qtl_core.nn.calibration import together
from qtl_export.expected import Expected
from qtl_export.progress import Progress

NEAR: Final = 1e-3
"""How far from a rounding boundary, in levels, a feature may be whose code differs."""
FEATURE_BOUND: Final = 1e-3
"""16 bit: largest difference over the largest feature; one unit in the last place of a half is under it."""


class Codes(msgspec.Struct, frozen=True, kw_only=True):
    """Codes of the graph in onnxruntime beside those of PyTorch, from the same pictures.

    Attributes:
        compared: how many codes.
        differ: how many are not the same.
        allowed: how many may differ: ``share_bound`` of all, at least one.
        share_bound: of DESIGN.md, for this number of levels.
        largest_difference: in levels; one is allowed.
        farthest_from_boundary: in levels, among the codes that differ; ``boundary_bound`` is allowed.
        boundary_bound: of DESIGN.md.
        payloads: how many payloads were compared, one a picture.
        payloads_differ: how many are not the same bytes.
        mispacked: payloads whose codes are the same and whose bytes are not; none is allowed.
        reference_differ: codes that the numpy reference makes otherwise from PyTorch's own scaled features;
            none is allowed.
    """

    compared: int
    differ: int
    allowed: int
    share_bound: float
    largest_difference: int
    farthest_from_boundary: float
    boundary_bound: float
    payloads: int
    payloads_differ: int
    mispacked: int
    reference_differ: int

    def faults(self) -> list[str]:
        """What is over its bound, each in a few words; empty if nothing is."""
        faults = []
        if self.differ > self.allowed:
            faults.append(f"{self.differ} of {self.compared} codes differ, {self.allowed} may")
        if self.largest_difference > 1:
            faults.append(f"a code differs by {self.largest_difference} levels, 1 is allowed")
        if self.farthest_from_boundary > self.boundary_bound:
            faults.append(
                f"a code differs {self.farthest_from_boundary:.2g} levels from a rounding boundary, "
                f"{self.boundary_bound:g} is allowed"
            )
        if self.mispacked:
            faults.append(f"{self.mispacked} payloads hold the right codes in the wrong bytes")
        if self.reference_differ:
            faults.append(
                f"PyTorch and numpy differ in {self.reference_differ} codes of the same scaled features"
            )
        return faults


class Features(msgspec.Struct, frozen=True, kw_only=True):
    """Unquantized features of the graph in onnxruntime beside PyTorch's, both in half precision.

    Attributes:
        compared: how many numbers.
        differ: how many are not the same.
        largest_difference: of two that differ.
        largest_feature: the largest magnitude; differences are measured by it.
        bound: allowed ``largest_difference / largest_feature``.
        infinite: numbers too large for half precision; none is allowed.
        payloads: how many payloads were compared, one a picture.
        payloads_differ: how many are not the same bytes.
    """

    compared: int
    differ: int
    largest_difference: float
    largest_feature: float
    bound: float
    infinite: int
    payloads: int
    payloads_differ: int

    def faults(self) -> list[str]:
        """What is over its bound, each in a few words; empty if nothing is."""
        faults = []
        if self.infinite:
            faults.append(f"{self.infinite} of {self.compared} features are too large for half precision")
        if self.largest_difference > self.bound * self.largest_feature:
            faults.append(
                f"a feature differs by {self.largest_difference:.2g}, "
                f"{self.bound * self.largest_feature:.2g} is allowed"
            )
        return faults


@dataclass(frozen=True)
class Compared:
    """What both sides made of the pictures.

    Attributes:
        report: the numbers.
        device: payloads of the device's code.
        pytorch: payloads of PyTorch.
    """

    report: Codes | Features
    device: list[bytes]
    pytorch: list[bytes]


def compare(expected: Expected, encoder: Encoder, pictures: Pixels, progress: Progress) -> Compared:
    """Runs every picture through the device's code, and holds it against what PyTorch made.

    Args:
        expected: PyTorch's payloads of the same pictures.
        encoder: the device's, over the exported graph.
        pictures: uint8 [n, height, width, 3], n at least 1.
        progress: where to show how far it is.
    """
    counts = _Codes(expected) if expected.cut.quantized else _Features(expected)
    each = together(pictures)
    starts = range(0, len(pictures), each)
    for start in progress.bar(starts, "validating on the device's code", len(pictures), "pictures"):
        batch = np.ascontiguousarray(pictures[start : start + each])
        for payload in encoder.run(batch):
            counts.add(payload)
    return Compared(counts.report(), counts.device, expected.payloads)


@dataclass
class _Codes:
    expected: Expected
    device: list[bytes] = field(default_factory=list)
    compared: int = 0
    differ: int = 0
    largest: int = 0
    farthest: float = 0.0
    mispacked: int = 0

    def add(self, payload: bytes) -> None:
        picture, cut = len(self.device), self.expected.cut
        self.device.append(payload)
        shape = (cut.tokens, cut.code_dim)
        self.compared += cut.tokens * cut.code_dim
        if payload == self.expected.payloads[picture]:
            return
        theirs = packing.unpack(payload, cut.levels, shape)
        ours = packing.unpack(self.expected.payloads[picture], cut.levels, shape)
        unlike = ours != theirs
        self.differ += int(unlike.sum())
        if not unlike.any():
            self.mispacked += 1
            return
        gap = np.abs(ours[unlike].astype(np.int16) - theirs[unlike].astype(np.int16))
        self.largest = max(self.largest, int(gap.max()))
        distance = to_boundary(self.expected.scaled(picture)[unlike], cut.levels)
        self.farthest = max(self.farthest, float(distance.max()))

    def report(self) -> Codes:
        share = share_bound(self.expected.cut)
        return Codes(
            compared=self.compared,
            differ=self.differ,
            # One in a small sample says nothing about the share; the other bounds still hold for it.
            allowed=max(1, int(share * self.compared)),
            share_bound=share,
            largest_difference=self.largest,
            farthest_from_boundary=self.farthest,
            boundary_bound=NEAR,
            payloads=len(self.device),
            payloads_differ=_unequal(self.device, self.expected.payloads),
            mispacked=self.mispacked,
            reference_differ=self.expected.reference_differ,
        )


@dataclass
class _Features:
    expected: Expected
    device: list[bytes] = field(default_factory=list)
    compared: int = 0
    differ: int = 0
    infinite: int = 0
    largest: float = 0.0
    magnitude: float = 0.0

    def add(self, payload: bytes) -> None:
        ours = np.frombuffer(self.expected.payloads[len(self.device)], dtype="<f2")
        theirs = np.frombuffer(payload, dtype="<f2")
        finite = np.isfinite(ours) & np.isfinite(theirs)
        a, b = ours[finite].astype(np.float32), theirs[finite].astype(np.float32)
        self.compared += ours.size
        self.differ += int((a != b).sum())
        self.infinite += int((~finite).sum())
        if a.size:
            self.largest = max(self.largest, float(np.abs(a - b).max()))
            self.magnitude = max(self.magnitude, float(np.abs(a).max()))
        self.device.append(payload)

    def report(self) -> Features:
        return Features(
            compared=self.compared,
            differ=self.differ,
            largest_difference=self.largest,
            largest_feature=self.magnitude,
            bound=FEATURE_BOUND,
            infinite=self.infinite,
            payloads=len(self.device),
            payloads_differ=_unequal(self.device, self.expected.payloads),
        )


def to_boundary(scaled: npt.NDArray[np.float32], levels: int) -> npt.NDArray[np.float64]:
    """Distance of scaled features to the nearest rounding boundary, in levels (0 to 0.5)."""
    offset = 0.5 if levels % 2 == 0 else 0.0
    position: npt.NDArray[Any] = scaled.astype(np.float64) * ((levels - 1) / 2) - offset
    return np.abs(position - np.floor(position) - 0.5)


def _unequal(a: list[bytes], b: list[bytes]) -> int:
    return sum(x != y for x, y in zip(a, b, strict=True))
