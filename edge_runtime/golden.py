"""The golden pictures of a client half: what they must become, and how far what a device makes is from it."""

from __future__ import annotations

import math
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np

from qtl_core import codes as packing
from qtl_core.bundle import Cut, Half
from qtl_core.errors import BundleError

from .encoder import CPU
from .picture import Pixels
from .variants import Variant

FILE: Final = "golden.npz"
"""``pictures`` uint8 [n, height, width, 3] and ``payloads`` uint8 [n, payload bytes]."""
FEATURE_BOUND: Final = 1e-3
"""16 bit: a feature differs if it is off by more than this share of the largest feature."""
TOLERANCE: Final = 0.1
"""Share of codes that may differ at reduced precision where neither manifest nor user says otherwise."""

# DESIGN.md's bounds at full precision.
_FEW_LEVELS: Final = 16
_SHARE_FEW: Final = 1e-4
_SHARE_MANY: Final = 1e-3


@dataclass(frozen=True, eq=False)
class Golden:
    """Pictures as the graph takes them, uint8 [n, height, width, 3], and the payload of each."""

    pictures: Pixels
    payloads: tuple[bytes, ...]


@dataclass(frozen=True, kw_only=True)
class Bounds:
    """How far payloads may be from those expected.

    Attributes:
        share: of codes (features) that may differ.
        largest: by how much: levels; of features, over the largest feature.
        least: so many codes may differ however few there are.
    """

    share: float
    largest: float
    least: int = 0

    @classmethod
    def full(cls, cut: Cut) -> Bounds:
        """DESIGN.md's, at full precision; one code in a small sample says nothing about the share."""
        if cut.quantized:
            return cls(share=share_bound(cut), largest=1, least=1)
        return cls(share=0.0, largest=FEATURE_BOUND)

    @classmethod
    def reduced(cls, cut: Cut, share: float = TOLERANCE) -> Bounds:
        """Those of reduced precision, where nobody has measured what it costs."""
        return cls(share=share, largest=1 if cut.quantized else math.inf)

    @classmethod
    def of(cls, cut: Cut, variant: Variant, provider: str, tolerance: float | None = None) -> Bounds:
        """Those of one graph on one provider.

        Args:
            cut: what crosses the cut.
            variant: the graph; the manifest may state its bounds.
            provider: onnxruntime execution provider. Others than the CPU may compute in reduced precision.
            tolerance: share that the user allows at reduced precision; None for the manifest's.
        """
        full, entry = cls.full(cut), variant.entry
        exact = variant.full or (entry is not None and entry.share_bound <= full.share)
        if exact and provider == CPU:
            return full
        if entry is None or exact:
            return cls.reduced(cut, TOLERANCE if tolerance is None else tolerance)
        return cls(share=entry.share_bound if tolerance is None else tolerance, largest=entry.largest_bound)


@dataclass(frozen=True, kw_only=True)
class Difference:
    """Codes (or 16-bit features) beside those expected.

    Attributes:
        compared: how many.
        differ: how many are not the same; of features, how many are off by more than ``FEATURE_BOUND``.
        largest: the largest difference, in levels; of features, over the largest feature.
    """

    compared: int
    differ: int
    largest: float

    @property
    def share(self) -> float:
        """Share that differs."""
        return self.differ / self.compared

    def fault(self, cut: Cut, bounds: Bounds) -> str:
        """What is over its bound, in a few words; empty if nothing is."""
        if self.largest > bounds.largest:
            if not cut.quantized:
                return f"a feature is off by {self.largest:.2g} of the largest, {bounds.largest:g} is allowed"
            levels = f"{bounds.largest:.0f} {'is' if bounds.largest == 1 else 'are'} allowed"
            return f"a code differs by {self.largest:.0f} levels, {levels}"
        allowed = max(int(bounds.share * self.compared), bounds.least)
        if self.differ > allowed:
            what = "codes" if cut.quantized else "features"
            return f"{self.differ} of {self.compared} {what} differ, {allowed} may"
        return ""


def golden_of(half: Half) -> Golden | None:
    """The golden pictures of a client half; None if it has none.

    Raises:
        BundleError: they are damaged, or not of this half's cut.
    """
    if FILE not in half.manifest.files:
        return None
    path, picture, cut = half.file(FILE), half.manifest.picture, half.manifest.cut
    try:
        with path.open("rb") as stream, np.load(stream, allow_pickle=False) as file:
            pictures, payloads = np.asarray(file["pictures"]), np.asarray(file["payloads"])
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
        raise BundleError(f"{path} cannot be read ({error}); export the bundle again") from error
    n = len(pictures) if pictures.ndim else 0
    shapes = ((n, picture.height, picture.width, 3), (n, cut.payload_bytes))
    if (
        (pictures.shape, payloads.shape) != shapes
        or not n
        or {pictures.dtype, payloads.dtype} != {np.dtype(np.uint8)}
    ):
        raise BundleError(f"{path} does not fit the manifest beside it; export the bundle again")
    return Golden(pictures, tuple(row.tobytes() for row in payloads))


def made_up(half: Half, n: int) -> Pixels:
    """Noise in the shape the graph takes, uint8 [n, height, width, 3], for halves without golden pictures."""
    spec = half.manifest.picture
    return np.random.default_rng(0).integers(0, 256, (n, spec.height, spec.width, 3), dtype=np.uint8)


def difference(cut: Cut, expected: Sequence[bytes], found: Sequence[bytes]) -> Difference:
    """Compares payloads with those expected, one for each picture.

    Args:
        cut: what crosses the cut.
        expected: payloads of ``cut.payload_bytes`` bytes.
        found: as many, of the same pictures.
    """
    compared = differ = 0
    largest = 0.0
    for want, have in zip(expected, found, strict=True):
        one = _codes(cut, want, have) if cut.quantized else _features(want, have)
        compared, differ, largest = (
            compared + one.compared,
            differ + one.differ,
            max(largest, one.largest),
        )
    return Difference(compared=compared, differ=differ, largest=largest)


def _codes(cut: Cut, want: bytes, have: bytes) -> Difference:
    shape = (cut.tokens, cut.code_dim)
    a, b = (packing.unpack(data, cut.levels, shape).astype(np.int16) for data in (want, have))
    apart = np.abs(a - b)
    return Difference(compared=apart.size, differ=int(np.count_nonzero(apart)), largest=float(apart.max()))


def _features(want: bytes, have: bytes) -> Difference:
    a, b = (np.frombuffer(data, dtype="<f2").astype(np.float32) for data in (want, have))
    scale = max(float(np.abs(a).max()), float(np.finfo(np.float32).tiny))
    apart = np.abs(a - b) / scale
    apart[~np.isfinite(apart)] = np.inf
    return Difference(
        compared=apart.size, differ=int(np.count_nonzero(apart > FEATURE_BOUND)), largest=float(apart.max())
    )


def share_bound(cut: Cut) -> float:
    """Share of codes that may differ between two runtimes at full precision (DESIGN.md); none of features."""
    if not cut.quantized:
        return 0.0
    return _SHARE_FEW if cut.levels <= _FEW_LEVELS else _SHARE_MANY
