"""What PyTorch makes of the pictures that validation takes, so that its weights can go before graphs are run.

Payloads stay in memory. The scaled features that were rounded to codes are many times larger, and are asked
for only where a graph's codes differ: they lie in a file without a name.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO

import numpy as np
import numpy.typing as npt
import torch

from edge_runtime.picture import Pixels
from qtl_core import codes as packing
from qtl_core import quantizer as reference
from qtl_core.bundle import Cut
from qtl_core.nn.calibration import together
from qtl_core.nn.client_partition import ClientPartition
from qtl_export.progress import Progress

_FLOAT = np.dtype(np.float32)


@dataclass(eq=False)
class Expected:
    """What PyTorch made of pictures.

    Attributes:
        cut: what crosses.
        payloads: one a picture.
        reference_differ: codes that the numpy reference makes otherwise from the same scaled features.
    """

    cut: Cut
    payloads: list[bytes] = field(default_factory=list)
    reference_differ: int = 0
    _file: IO[bytes] | None = None

    def scaled(self, picture: int) -> npt.NDArray[np.float32]:
        """What was rounded to codes of a picture, float32 [tokens, code_dim] in [-1, 1].

        Raises:
            ValueError: features crossed unquantized.
        """
        if self._file is None:
            raise ValueError("unquantized features are not scaled")
        numbers = self.cut.tokens * self.cut.code_dim
        self._file.seek(picture * numbers * _FLOAT.itemsize)
        data = self._file.read(numbers * _FLOAT.itemsize)
        return np.frombuffer(data, dtype=_FLOAT).reshape(self.cut.tokens, self.cut.code_dim)

    def _add(self, part: ClientPartition, pictures: torch.Tensor) -> None:
        if self._file is None or part.quantizer is None:
            rows = part(pictures).numpy().astype("<f2", copy=False)
            self.payloads += [row.tobytes() for row in rows]
            return
        levels = self.cut.levels
        scaled = part.scaled(pictures)
        codes = part.quantizer.to_codes(scaled, levels).to(torch.uint8).numpy()
        array = np.ascontiguousarray(scaled.numpy(), dtype=_FLOAT)
        self.reference_differ += int((reference.levels_of(array, levels) != codes).sum())
        self.payloads += [packing.pack(one, levels) for one in codes]
        self._file.write(array.data)


@contextmanager
def expect(
    part: ClientPartition, pictures: Pixels, cut: Cut, folder: Path, progress: Progress
) -> Iterator[Expected]:
    """Runs every picture through PyTorch.

    Args:
        part: the client partition.
        pictures: uint8 [n, height, width, 3], n at least 1.
        cut: what crosses.
        folder: on whose disk scaled features are kept; they are gone afterwards.
        progress: where to show how far it is.
    """
    with tempfile.TemporaryFile(dir=folder) as file:
        expected = Expected(cut, _file=file if cut.quantized else None)
        each = together(pictures)
        starts = range(0, len(pictures), each)
        for start in progress.bar(starts, "validating: PyTorch", len(pictures), "pictures"):
            with torch.inference_mode():
                expected._add(part, torch.from_numpy(np.ascontiguousarray(pictures[start : start + each])))
        yield expected
