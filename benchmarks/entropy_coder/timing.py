"""What coding costs, in processor time of one thread: beside the client graph, and batch beside batch."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from edge_runtime.encoder import Encoder
from qtl_core.bundle import open_half
from qtl_core.codes import packed_size
from qtl_core.entropy import Tables, decode, decode_batch, encode, encode_batch, lanes_for
from qtl_core.quantizer import levels_of

Codes = npt.NDArray[np.uint8]

SO400M_TOKENS, SO400M_WIDTH = 729, 1280
_BATCHES = (1, 8, 32, 64, 128, 256)


def milliseconds(work: Callable[[], object], repeats: int) -> float:
    """Median processor time of a call; the first, which fills caches, is not counted."""
    work()
    took = []
    for _ in range(repeats):
        start = time.process_time()
        work()
        took.append(time.process_time() - start)
    return 1000 * float(np.median(took))


def interleaved(one: Callable[[], object], other: Callable[[], object], repeats: int) -> tuple[float, float]:
    """Median processor times of two calls in turns, in milliseconds, the first of each not counted."""
    took: tuple[list[float], list[float]] = ([], [])
    for round_ in range(repeats + 1):
        for work, times in zip((one, other), took, strict=True):
            start = time.process_time()
            work()
            if round_:
                times.append(time.process_time() - start)
    return 1000 * float(np.median(took[0])), 1000 * float(np.median(took[1]))


def graph_ms(checkpoint: Path, work: Path, repeats: int) -> float:
    """One picture through the client graph of a 2-bit export, as the device runs it on one thread."""
    command = [sys.executable, "-m", "qtl_export.cli", "--bits", "2", "--validate", "0"]
    subprocess.run([*command, str(checkpoint), "-o", str(work)], check=True, stdout=subprocess.DEVNULL)
    half = open_half(work, "client")
    encoder, picture = Encoder(half, threads=1), half.manifest.picture
    pixels = np.zeros((1, picture.height, picture.width, 3), np.uint8)
    return milliseconds(lambda: encoder.run(pixels), repeats)


def coding(test: Codes, tables: Tables, repeats: int, batch: int) -> dict[str, Any]:
    """Milliseconds of one picture alone and of one picture of a batch, and what decoding batches of several
    sizes takes, as a share of encoding them.
    """
    many = test[:batch]
    data = encode_batch(many, tables)
    shape = test.shape[1:]
    shares = {}
    for size in sorted({*(size for size in _BATCHES if size < len(many)), len(many)}):
        encoded, decoded = interleaved(
            lambda size=size: encode_batch(many[:size], tables),  # type: ignore[misc]
            lambda size=size: decode_batch(data[:size], tables, shape),  # type: ignore[misc]
            max(3, repeats // size),
        )
        shares[str(size)] = decoded / encoded
    return {
        "encode_ms": milliseconds(lambda: encode(test[0], tables), repeats),
        "decode_ms": milliseconds(lambda: decode(data[0], tables, shape), repeats),
        "batch": len(many),
        "encode_batch_ms": encoded / size,
        "decode_batch_ms": decoded / size,
        "decode_over_encode": shares,
    }


def so400m(levels: int, classes: int, repeats: int, batch: int) -> dict[str, Any]:
    """Codes of Gaussian features at the paper's geometry and k = 3: a stand-in for a trained tower's.

    Args:
        levels: L.
        classes: of the tables; the features then have as many centres.
        repeats: how often each thing is timed.
        batch: pictures that are decoded together.
    """
    rng = np.random.default_rng(0)
    centres = 0.6 * rng.standard_normal((classes, SO400M_WIDTH)).astype(np.float32) if classes > 1 else 0.0

    def pictures(n: int) -> Codes:
        noise = rng.standard_normal((n, SO400M_TOKENS, SO400M_WIDTH), dtype=np.float32)
        chosen = rng.integers(0, classes, (n, SO400M_TOKENS))
        z = noise if isinstance(centres, float) else 0.8 * noise + centres[chosen]
        return levels_of(np.clip(z / 3, -1, 1), levels)

    tables = Tables.fit(pictures(8), levels, classes=classes)
    test = pictures(batch)
    bits = float(np.mean([tables.bits(one) for one in test[:2]]))
    size = float(np.mean([len(encode(one, tables)) for one in test[:2]]))
    return {
        "levels": levels,
        "classes": classes,
        "lanes": lanes_for(SO400M_TOKENS, tables),
        "packed_bytes": packed_size(test[0].size, levels),
        "cross_entropy_bytes": bits / 8,
        "coded_bytes": size,
        "over": size / (bits / 8) - 1,
        **coding(test, tables, repeats, batch),
    }


def so400m_tower_ms(repeats: int) -> float:
    """A SigLIP so400m tower and a projection with random weights, in PyTorch, on one thread; gigabytes."""
    import torch
    from torch import nn
    from transformers import SiglipVisionConfig, SiglipVisionModel

    torch.set_num_threads(1)
    settings = SiglipVisionConfig(
        hidden_size=1152,
        intermediate_size=4304,
        num_hidden_layers=27,
        num_attention_heads=16,
        image_size=384,
        patch_size=14,
    )
    with torch.inference_mode():
        tower: Any = SiglipVisionModel(settings)
        tower.eval()
        connector = nn.Sequential(
            nn.Linear(1152, SO400M_WIDTH), nn.GELU(), nn.Linear(SO400M_WIDTH, SO400M_WIDTH)
        )
        pixels = torch.zeros(1, 3, 384, 384)
        return milliseconds(lambda: connector(tower(pixel_values=pixels).last_hidden_state), repeats)
