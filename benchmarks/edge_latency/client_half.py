"""A client half with random weights at a published tower's geometry, and the bare tower beside it.

The language model is none of the device's work and is not built. Random weights say nothing of accuracy; they
are for times, sizes, and the share of codes that another precision changes.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
import torch
from torch import Tensor, nn
from transformers import SiglipVisionConfig, SiglipVisionModel

from edge_runtime.encoder import Encoder
from edge_runtime.golden import FILE as GOLDEN_FILE
from edge_runtime.picture import Pixels
from qtl_core import bundle, codes
from qtl_core.bundle import Half, open_half
from qtl_core.entropy import Tables
from qtl_core.entropy_file import NAME as TABLES
from qtl_core.entropy_file import write_tables
from qtl_core.nn.client_partition import ClientPartition
from qtl_core.nn.model import TowerSettings, VisionEncoder
from qtl_core.nn.quantizer import Quantizer
from qtl_export.graph import GRAPH, INPUT, OUTPUT, save, settled, trace
from qtl_export.halves import write_golden
from qtl_export.variants.int8 import quantize

LEVELS: Final = 4
INT8_PRESET: Final = "avx512_vnni"
"""The exporter's, of which "arm64" is the same graph."""
INT8: Final = "client.int8.onnx"
TOWER: Final = "tower"
_LAYER: Final = -2
_PICTURES: Final = 4


@dataclass(frozen=True, kw_only=True)
class Geometry:
    """Sizes of one tower, its connector and the cut."""

    side: int
    patch: int
    hidden: int
    layers: int
    heads: int
    mlp: int
    width: int

    @property
    def tokens(self) -> int:
        """Tokens of a picture."""
        return (self.side // self.patch) ** 2


GEOMETRIES: Final = {
    "tiny": Geometry(side=96, patch=16, hidden=128, layers=4, heads=4, mlp=512, width=128),
    "base": Geometry(side=224, patch=16, hidden=768, layers=12, heads=12, mlp=3072, width=1280),
    "so400m": Geometry(side=384, patch=14, hidden=1152, layers=27, heads=16, mlp=4304, width=1280),
}
"""SigLIP base at 224 and so400m at 384 pixels, before the paper's decoder width; "tiny" is for tests."""


@dataclass(frozen=True, eq=False)
class Built:
    """What is timed.

    Attributes:
        half: the client half, with entropy tables, golden pictures and the variant "int8".
        tower: the bare tower's graph: normalised pixels in, hidden states out.
        partition: the client partition in PyTorch.
        pictures: uint8 [n, side, side, 3].
    """

    half: Half
    tower: Path
    partition: ClientPartition
    pictures: Pixels


class _Tower(nn.Module):
    """The tower alone, to the layer the connector reads."""

    def __init__(self, tower: SiglipVisionModel) -> None:
        super().__init__()
        self.tower = tower

    def forward(self, pixels: Tensor) -> Tensor:
        states: Tensor = self.tower(pixel_values=pixels, output_hidden_states=True).hidden_states[_LAYER]
        return states


def build(geometry: Geometry, work: Path) -> Built:
    """Exports the three graphs and writes the client half.

    Args:
        geometry: its sizes.
        work: an empty folder.
    """
    torch.manual_seed(0)
    tower: SiglipVisionModel = SiglipVisionModel(
        SiglipVisionConfig(
            hidden_size=geometry.hidden,
            intermediate_size=geometry.mlp,
            num_hidden_layers=geometry.layers,
            num_attention_heads=geometry.heads,
            image_size=geometry.side,
            patch_size=geometry.patch,
            vision_use_head=False,
        )
    )
    connector = nn.Sequential(
        nn.Linear(geometry.hidden, geometry.width), nn.GELU(), nn.Linear(geometry.width, geometry.width)
    )
    half_grey = (0.5, 0.5, 0.5)
    settings = TowerSettings(mean=half_grey, std=half_grey, feature_layer=_LAYER, feature_select="full")
    quantizer = settled(Quantizer(geometry.width, geometry.width, LEVELS), LEVELS)
    partition = ClientPartition(VisionEncoder(tower, connector, settings), quantizer, LEVELS)
    partition.train(False)
    pictures = _pictures(geometry.side)
    client, bare = work / "client", work / TOWER
    client.mkdir()
    bare.mkdir()
    sample = torch.zeros(2, geometry.side, geometry.side, 3, dtype=torch.uint8)
    save(trace(partition, sample, INPUT, OUTPUT), client)
    save(trace(_Tower(tower), torch.zeros(2, 3, geometry.side, geometry.side), "pixels", "states"), bare)
    quantize(client / GRAPH, client / INT8, INT8_PRESET, "dynamic")
    return Built(_half(geometry, client, pictures), bare / GRAPH, partition, pictures)


def _half(geometry: Geometry, folder: Path, pictures: Pixels) -> Half:
    """Manifest, tables and golden pictures around the graphs."""
    _write_manifest(geometry, folder, None)
    payloads = [Encoder(open_half(folder, "client")).run(one[np.newaxis])[0] for one in pictures]
    write_golden(folder, pictures, payloads)
    shape = (geometry.tokens, geometry.width)
    seen = np.stack([codes.unpack(payload, LEVELS, shape) for payload in payloads])
    tables = Tables.fit(seen, LEVELS)
    write_tables(folder / TABLES, tables)
    _write_manifest(geometry, folder, tables)
    return open_half(folder, "client")


def _write_manifest(geometry: Geometry, folder: Path, tables: Tables | None) -> None:
    size = codes.packed_size(geometry.tokens * geometry.width, LEVELS)
    cut = bundle.Cut(
        tokens=geometry.tokens, width=geometry.width, code_dim=geometry.width, merge=1, levels=LEVELS,
        bits=codes.bits_of(LEVELS), scaling="image", codec="packed", payload_bytes=size,
    )  # fmt: skip
    picture = bundle.Picture(
        height=geometry.side,
        width=geometry.side,
        resample="bicubic",
        fit="square",
        pad_colour=(127, 127, 127),
    )
    text = bundle.Text(
        mode="plain", levels=0, code_dim=0, width=geometry.width, max_tokens=64, scaling="none"
    )
    template = bundle.Template(before_image="", between="", after_question="")
    entries = bundle.hash_files(folder)
    graphs = "".join(entry.sha256 for name, entry in entries.items() if name not in (GOLDEN_FILE, TABLES))
    sha = hashlib.sha256(graphs.encode()).hexdigest()
    manifest = bundle.Manifest(
        half="client",
        fingerprint=bundle.fingerprint(cut, picture, text, template, sha, sha),
        model="random weights",
        cut=cut,
        picture=picture,
        text=text,
        template=template,
        files=entries,
        graph=GRAPH,
        tables="" if tables is None else tables.digest.hex(),
    )
    bundle.write_manifest(folder, manifest)


def _pictures(side: int) -> Pixels:
    """Gratings of several directions and colours: something a tower tells apart."""
    rng = np.random.default_rng(0)
    y, x = (axis[..., None] / side for axis in np.mgrid[:side, :side])
    wave, phase = rng.uniform(-40, 40, (2, _PICTURES, 3)), rng.uniform(0, 6, (_PICTURES, 3))
    light = [np.sin(wave[0, i] * x + wave[1, i] * y + phase[i]) for i in range(_PICTURES)]
    return np.asarray(127.5 + 127.5 * np.stack(light), dtype=np.uint8)
