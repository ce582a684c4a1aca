"""What a server returns where labels are private, as bytes."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from qtl_core.gradients import decode, encode
from qtl_core.split_stage import SplitStage


def crossed_outputs(outputs: NDArray[np.float32], stage: SplitStage) -> tuple[bytes, NDArray[np.float32]]:
    """Outputs [turns, columns] as they cross, and as the client reads them.

    Raises:
        InputError: if one is not finite.
    """
    # As gradients do at 32 and at 16 bits: neither rounds by chance.
    data, _ = encode(outputs, stage.output_bits, np.random.default_rng(0))
    return data, decode(data, stage.output_bits, outputs.shape)
