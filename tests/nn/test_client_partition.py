"""The client partition in PyTorch: packing in float arithmetic, and what crosses."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from qtl_core import codes as packing
from qtl_core.nn.checkpoint import Checkpoint
from qtl_core.nn.client_partition import ClientPartition, pack_codes


@pytest.mark.parametrize("bits", range(1, 9))
@pytest.mark.parametrize("n", [1, 7, 8, 9, 288])
def test_packing_is_the_codec_s(bits: int, n: int) -> None:
    codes = torch.randint(0, 2**bits, (3, n), generator=torch.Generator().manual_seed(bits * n))
    packed = pack_codes(codes.float(), bits)
    for row, data in zip(codes, packed, strict=True):
        assert data.numpy().tobytes() == packing.pack(row.numpy().astype(np.uint8), 2**bits)


@pytest.mark.parametrize("levels", [2, 3, 4, 9, 200, 256])
def test_forward_packs_the_codes(tiny: Checkpoint, levels: int) -> None:
    client = ClientPartition(tiny.model.vision, tiny.model.vision_quantizer, levels)
    picture = torch.randint(0, 256, (2, 96, 96, 3), dtype=torch.uint8)
    with torch.no_grad():
        codes, payload = client.codes(picture), client(picture)
    assert codes.shape == (2, 9, 8) and int(codes.max()) < levels
    assert payload[1].numpy().tobytes() == packing.pack(codes[1].numpy(), levels)


def test_unquantized_sends_half_precision_features(tiny: Checkpoint) -> None:
    client = ClientPartition(tiny.model.vision, tiny.model.vision_quantizer, None)
    picture = torch.randint(0, 256, (1, 96, 96, 3), dtype=torch.uint8)
    with torch.no_grad():
        sent, features = client(picture), client.features(picture)
    assert sent.dtype == torch.float16 and sent.shape == (1, 36 * 16)
    assert torch.equal(sent, features.flatten(1).half())
    with pytest.raises(ValueError, match="unquantized"):
        client.codes(picture)
