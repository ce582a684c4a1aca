"""One graph with every quantizer behind one tower: a million codes at the price of a few hundred pictures.

Under emulation a picture costs about a second, nearly all of it in the tower, and has 288 codes. The heads
are those of the exporter's own graphs, operator for operator; ``comparing`` holds their codes against those
graphs'.
"""

from __future__ import annotations

from pathlib import Path
from typing import Final

import msgspec
import torch
from torch import Tensor, nn

from qtl_core import codes as packing
from qtl_core import shipped
from qtl_core.nn.checkpoint import Checkpoint, load_checkpoint
from qtl_core.nn.client_partition import pack_codes
from qtl_core.nn.quantizer import Quantizer
from qtl_export.graph import INPUT, OUTPUT, example, save, settled, trace

FOLDER: Final = "every"
"""The graph's folder in the work folder, and its name in what is compared."""
HEADS: Final = "heads.json"
LEVELS: Final = (*range(2, 17), *range(32, 257, 16), 255)
QUANTIZERS: Final = ("small", "tiny")


class Head(msgspec.Struct, frozen=True, kw_only=True):
    """One quantizer of the graph; the payloads lie one after the other in its output.

    Attributes:
        quantizer: name of a further quantizer; "" for the checkpoint's own.
        levels: L.
        tokens: of a picture.
        code_dim: codes a token.
    """

    quantizer: str
    levels: int
    tokens: int
    code_dim: int

    @property
    def bytes(self) -> int:
        """Size of its payload."""
        return packing.packed_size(self.tokens * self.code_dim, self.levels)


class _Every(nn.Module):
    def __init__(self, vision: nn.Module, heads: list[tuple[Quantizer, int]]) -> None:
        super().__init__()
        self.vision = vision
        self.quantizers = nn.ModuleList(quantizer for quantizer, _ in heads)
        self.levels = [levels for _, levels in heads]

    def forward(self, picture: Tensor) -> Tensor:
        features = self.vision(picture)
        payloads = []
        for quantizer, levels in zip(self.quantizers, self.levels, strict=True):
            assert isinstance(quantizer, Quantizer)
            codes = quantizer.to_codes(quantizer.scale(quantizer.project(features), levels), levels)
            payloads.append(pack_codes(codes.flatten(1), packing.bits_of(levels)))
        return torch.cat(payloads, 1)


def make(work: Path) -> list[Head]:
    """Writes the graph, and beside it its quantizers.

    Args:
        work: the work folder.
    """
    checkpoint = load_checkpoint(shipped.digits())
    named = [("", quantizer_of(checkpoint), levels) for levels in LEVELS]
    for name in QUANTIZERS:
        quantizer = quantizer_of(load_checkpoint(shipped.digits(), quantizer=name))
        named.append((name, quantizer, quantizer.levels))
    module = _Every(
        checkpoint.model.vision, [(settled(quantizer, levels), levels) for _, quantizer, levels in named]
    )
    sample = example(checkpoint.picture)
    (work / FOLDER).mkdir()
    save(trace(module.eval(), sample, INPUT, OUTPUT), work / FOLDER)
    with torch.inference_mode():
        features = checkpoint.model.vision(sample)
    heads = []
    for name, quantizer, levels in named:
        tokens, code_dim = quantizer.project(features).shape[1:]
        heads.append(Head(quantizer=name, levels=levels, tokens=tokens, code_dim=code_dim))
    (work / FOLDER / HEADS).write_bytes(msgspec.json.encode(heads))
    return heads


def quantizer_of(checkpoint: Checkpoint) -> Quantizer:
    """The vision quantizer of a checkpoint that has one."""
    quantizer = checkpoint.model.vision_quantizer
    if quantizer is None:
        raise ValueError("the shipped checkpoint has a quantizer")
    return quantizer
