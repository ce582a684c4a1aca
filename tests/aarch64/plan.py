"""What both processors encode: graphs, how many pictures of each, and the pictures."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any, Final

import msgspec
import numpy as np
import numpy.typing as npt

from edge_runtime.variants import FULL, variants
from qtl_core import shipped
from qtl_core.bundle import open_half
from qtl_core.errors import HostError
from qtl_export import held_out
from tests.aarch64 import bundles, every
from tests.aarch64.encode import CHUNK

HERE: Final = "here"
THERE: Final = "there"
"""Folders of what this machine and the emulated one made of the pictures."""
FEW_LEVELS: Final = 16
"""Up to so many levels DESIGN.md allows a tenth of the differences."""

Array = npt.NDArray[np.uint8]


class Graph(msgspec.Struct, frozen=True, kw_only=True):
    """One graph to run.

    Attributes:
        name: of its results.
        bundle: name of the bundle, or of the graph of all quantizers.
        variant: name of the graph in its bundle.
        half: client half in the work folder; "" for the graph of all quantizers.
        file: the graph's file, in the half or else in the work folder.
        pictures: how many of the pictures.
    """

    name: str
    bundle: str
    variant: str
    half: str
    file: str
    pictures: int


def make(work: Path, heads: list[every.Head], codes: int) -> list[Graph]:
    """Plans, and writes the plan and the pictures for ``encode``.

    The pictures are the checkpoint's held-out ones and variations of them.

    Args:
        work: the folder that holds bundles and graphs.
        heads: of the graph of all quantizers.
        codes: wanted on either side of 16 levels.
    """
    few = sum(one.tokens * one.code_dim for one in heads if one.levels <= FEW_LEVELS)
    many = sum(one.tokens * one.code_dim for one in heads if one.levels > FEW_LEVELS)
    n = math.ceil(codes / min(few, many))
    planned = [
        Graph(
            name=every.FOLDER,
            bundle=every.FOLDER,
            variant=FULL,
            half="",
            file=f"{every.FOLDER}/client.onnx",
            pictures=n,
        )
    ]
    for one in bundles.BUNDLES:
        where = f"{bundles.FOLDER}/{one.name}/client"
        half = open_half(work / where, "client")
        for variant in variants(half):
            planned.append(
                Graph(
                    name=f"{one.name}.{variant.name}",
                    bundle=one.name,
                    variant=variant.name,
                    half=where,
                    file=variant.graph,
                    pictures=min(one.pictures, n),
                )
            )
    spec = half.manifest.picture
    np.save(work / "pictures.npy", held_out.gather(shipped.digits(), None, spec, n).pictures)
    (work / "plan.json").write_bytes(msgspec.json.encode(planned))
    return planned


def payloads(work: Path, side: str, graph: Graph) -> Array:
    """What one side made of a graph's pictures, uint8 [pictures, payload bytes], in their order."""
    chunks: list[npt.NDArray[Any]] = [
        np.load(work / side / f"{graph.name}.{number}.npy", allow_pickle=False)
        for number in range(math.ceil(graph.pictures / CHUNK))
    ]
    return np.concatenate(chunks)


def read(work: Path) -> tuple[list[Graph], list[every.Head]]:
    """The plan and the quantizers that an earlier run left.

    Raises:
        HostError: none did.
    """
    if not (work / "plan.json").is_file():
        raise HostError("there is no earlier run to go on with; run it without --resume")
    heads = (work / every.FOLDER / every.HEADS).read_bytes()
    plan = (work / "plan.json").read_bytes()
    return msgspec.json.decode(plan, type=list[Graph]), msgspec.json.decode(heads, type=list[every.Head])
