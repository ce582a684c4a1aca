"""The paper's geometry with next to nothing behind the cut, so that the link decides how fast a step is."""

from __future__ import annotations

import shutil
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import msgspec
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from benchmarks.link import Link as Network
from benchmarks.split_training import paper_wire
from edge_runtime.training.client import Link, TrainingClient
from qtl_core.crossing import Row
from qtl_core.entropy import Tables
from qtl_core.entropy_file import tables_name, write_tables
from qtl_core.nn.checkpoint import Checkpoint, QuantizerSettings, load_checkpoint
from qtl_core.split_stage import Optimizer, SplitStage
from qtl_training.build import build_checkpoint
from qtl_training.local import begun
from qtl_training.recipe import ModelRecipe, Recipe
from qtl_training.run_folder import RunFolder, write
from qtl_training.split.agreement import fingerprint
from qtl_training.split.client import TorchRun
from qtl_training.split.server import TrainingServer
from qtl_training.split.server_side import MicroResult, ServerSide
from qtl_training.split.serving import Serving
from qtl_training.split.stages import stages_of
from qtl_training.tables import MOST_ENTRIES
from server_runtime.config import ServerConfig
from server_runtime.listener import Listener

SIDE: Final = 27
WIDTH: Final = 1280
"""SigLIP-so400m at 384 pixels before the paper's decoder: 27 x 27 tokens of 1280 features."""
MERGE: Final = 3
CODE_DIM: Final = WIDTH // 4
"""A shape like the trained recipe's: squares of tokens merged (27 is odd, so 3 wide), and fewer codes."""
LEVELS: Final = 4
TOWER_WIDTH: Final = 64
PICTURES: Final = 32
SEED: Final = 5
_CLASSES: Final = 64
_FITTED: Final = 4  # pictures: enough tokens for every direction, and no minutes of linear algebra


@dataclass(frozen=True, kw_only=True)
class Shape:
    """Of the quantizer, and what its gradients are rounded to."""

    code_dim: int
    merge: int
    grad_bits: int


def prepared(folder: Path, shape: Shape) -> Recipe:
    """Writes a checkpoint of this shape, its quantizer fitted and with tables of the entropy coder.

    Args:
        folder: made here.
        shape: of the quantizer.

    Returns:
        A recipe without stages that starts from it.
    """
    quantizer = QuantizerSettings(code_dim=shape.code_dim, levels=LEVELS, scaling="frozen", merge=shape.merge)
    model = ModelRecipe(
        image_size=16 * SIDE,
        patch_size=16,
        stem_widths=(4, 4, 8),
        stem_blocks=(0, 0, 0),
        tower_width=TOWER_WIDTH,
        tower_layers=1,
        tower_heads=2,
        tower_mlp=16,
        width=WIDTH,
        layers=1,
        heads=20,
        mlp=16,
        vocabulary=300,
        vision=quantizer,
        language=QuantizerSettings(code_dim=16),
    )
    build_checkpoint(folder, model, "stand-in", SEED)
    checkpoint = load_checkpoint(folder)
    coder = checkpoint.model.vision_quantizer
    with torch.inference_mode():
        at_cut = checkpoint.model.vision.connector(precomputed(PICTURES).float())
        coder.fit(at_cut[:_FITTED], seed=SEED)
        codes: NDArray[np.uint8] = coder.encode(at_cut, LEVELS).numpy()
    write(folder, checkpoint)
    write_tables(folder / tables_name(LEVELS), Tables.fit(codes, LEVELS, most_entries=MOST_ENTRIES))
    return Recipe(name="stand-in", seed=SEED, start=str(folder), checkpoint_every=1e9, log_every=10**9)


def precomputed(pictures: int) -> Tensor:
    """Features of a tower that nobody runs here, float16 [pictures, SIDE * SIDE, TOWER_WIDTH]; neighbours
    resemble each other, as a picture's do.
    """
    draw = torch.Generator().manual_seed(SEED)
    coarse = torch.randn(pictures, TOWER_WIDTH, SIDE // 3, SIDE // 3, generator=draw)
    smooth = functional.interpolate(coarse, size=(SIDE, SIDE), mode="bilinear")
    noisy = smooth + 0.3 * torch.randn(smooth.shape, generator=draw)
    return noisy.flatten(2).transpose(1, 2).to(torch.float16)


def with_stage(start: Recipe, shape: Shape, *, steps: int, micro_batches: int, pictures: int) -> Recipe:
    """The recipe with one stage, in which the quantizer learns."""
    stage = SplitStage(
        steps=steps,
        scenes=PICTURES,
        micro_batches=micro_batches,
        pictures=pictures,
        questions=1,
        levels=(LEVELS,),
        grad_bits=shape.grad_bits,
        train=("vision_quantizer",),
        optimizer=Optimizer(lr=1e-4),
    )
    return msgspec.structs.replace(start, stages=(stage,))


class _Run(TorchRun):
    """The client partition behind features that were computed before."""

    def __init__(self, chosen: Recipe, folder: Path) -> None:
        super().__init__(chosen, folder, progress=False)
        self._features[0] = precomputed(PICTURES)


class StandIn(ServerSide):
    """The quantizer's decoder half, and a linear layer over the mean token in place of a language model."""

    def __init__(self, checkpoint: Checkpoint, stage: SplitStage) -> None:
        super().__init__(checkpoint, stage)
        self._restorer = checkpoint.model.vision_quantizer
        torch.manual_seed(1)
        self._head = nn.Linear(WIDTH, _CLASSES)

    def run(
        self, crossed: NDArray[np.uint8] | NDArray[np.float16], levels: int, rows: Sequence[Row]
    ) -> MicroResult:
        """As ``ServerSide.run``; the target is drawn from the question's length."""
        values = self._restorer.values(torch.from_numpy(crossed), levels).requires_grad_()
        pooled: Tensor = self._restorer.restore(values).mean(1)
        target = torch.tensor([len(row.turns[0][0]) % _CLASSES for row in rows])
        scores = self._head(pooled)
        loss: Any = functional.cross_entropy(scores, target, reduction="sum")
        loss.backward()
        if values.grad is None:
            raise RuntimeError("no gradient reached what crossed the cut")
        right = int((scores.argmax(-1) == target).sum())
        return MicroResult(loss.item(), len(rows), right, len(rows), values.grad.numpy())


@dataclass(frozen=True, kw_only=True)
class Measured:
    """Of a run at the paper's geometry.

    Attributes:
        step_s: seconds a step.
        up, down: bytes a picture, everything on the wire.
    """

    step_s: float
    up: float
    down: float


class _Steps:
    """Notes when each step is done."""

    def __init__(self) -> None:
        self.times: list[float] = []

    def stage(self, number: int, steps: int, first: int) -> None:
        """Nothing to note."""

    def step(self, metrics: dict[str, float]) -> None:
        self.times.append(time.monotonic())


def ours(chosen: Recipe, work: Path, *, delay: float, rate: float) -> Measured:
    """Our client and server over a link, each in a thread of this process.

    Args:
        chosen: from ``with_stage``.
        work: an empty folder.
        delay: seconds, one way.
        rate: bits a second; 0 for no link but the loopback itself.
    """
    serving = Serving(chosen, work / "server", side=StandIn)
    listener = Listener(ServerConfig(bind="tcp://127.0.0.1:*"), max_payload=serving.largest)
    server = TrainingServer(serving, fingerprint(chosen), listener)
    thread = threading.Thread(target=server.serve)
    thread.start()
    steps = _Steps()
    try:
        run = _Run(chosen, work / "client")
        with _network(server.endpoint, delay, rate) as endpoint:
            done = TrainingClient(run, Link(server=endpoint), watch=steps).train()
    finally:
        server.stop()
        thread.join(60)
    shutil.rmtree(work)
    taken = steps.times
    return Measured(
        step_s=(taken[-1] - taken[0]) / (len(taken) - 1),
        # The weights at the end cross once a run, so they are no part of a step.
        up=(done.traffic.up - len(run.weights())) / done.pictures,
        down=done.traffic.down / done.pictures,
    )


def papers(chosen: Recipe, work: Path, *, steps: int, delay: float, rate: float) -> Measured:
    """The paper's wire over the same link."""
    (stage,) = stages_of(chosen)
    server = StandIn(begun(RunFolder(work / "server", chosen), chosen).checkpoint, stage)
    side = _Run(chosen, work / "client").enter(0)
    networks: list[Network] = []

    def through(address: str) -> str:
        if not rate:
            return address
        networks.append(Network(address, delay=delay, rate=rate))
        return networks[0].endpoint

    try:
        sent = paper_wire.run(
            side, server, side.micro_batches, levels=LEVELS, steps=steps, route=through
        )  # fmt: skip
    finally:
        for network in networks:
            network.close()
    shutil.rmtree(work)
    return Measured(
        step_s=sent.seconds / sent.steps, up=sent.up / sent.samples, down=sent.down / sent.samples
    )


@contextmanager
def _network(endpoint: str, delay: float, rate: float) -> Iterator[str]:
    if not rate:
        yield endpoint
        return
    with Network(endpoint, delay=delay, rate=rate) as network:
        yield network.endpoint
