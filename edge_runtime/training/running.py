"""``edge_runtime train``, from settings to result."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edge_runtime.config import EdgeConfig
from edge_runtime.training.client import Link, TrainingClient
from edge_runtime.training.conversations import OnBad
from edge_runtime.training.data import read_data
from edge_runtime.training.run import DeviceRun
from edge_runtime.training.watching import Bars, following
from qtl_core.bundle import open_half
from qtl_core.errors import InputError
from qtl_core.keys import load_public, load_secret
from qtl_core.snapshots import held
from qtl_core.trainable import read_training

_NAMED = 10


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """Settings of one training run on a device.

    Attributes:
        edge: bundle, server, keys, timeout and threads.
        data: conversations in LLaVA's JSON.
        pictures: the folder that they name pictures in; the data's own if not given.
        run: the run's folder; ``runs/NAME-client`` after the recipe if not given.
        fresh: forget what that folder holds.
        comeback: seconds that a lost server has to come back.
        cache_mib: memory for the tower's features, in MiB.
        on_bad_sample: what becomes of samples that cannot be trained on.

    Raises:
        InputError: a number out of range.
    """

    edge: EdgeConfig
    data: Path
    pictures: Path | None = None
    run: Path | None = None
    fresh: bool = False
    comeback: float = 600.0
    cache_mib: int = 256
    on_bad_sample: OnBad = "stop"

    def __post_init__(self) -> None:
        if self.comeback <= 0 or self.cache_mib < 0:
            raise InputError("comeback must be above 0 seconds, and cache_mib not negative")


def train(config: TrainConfig, say: Callable[[str], None]) -> dict[str, Any]:
    """Trains to the end of the recipe; what came of it.

    Args:
        config: the settings.
        say: told in a line or a few what was chosen or left out.

    Raises:
        BundleError: a bundle that cannot be trained with.
        SampleError: data that cannot be trained on.
        QtlError: as ``TrainingClient``.
    """
    edge = config.edge
    half = open_half(edge.bundle, "client")
    training = read_training(half)
    folder = Path("runs") / f"{training.name}-client" if config.run is None else config.run
    if config.run is None:
        say(f"run folder: {folder} (default)")
    data = read_data(
        training.stages, training.seeds, config.data, config.pictures or config.data.parent,
        half.manifest.picture, on_bad=config.on_bad_sample, follow=following("reading pictures"),
    )  # fmt: skip
    if data.bad:
        say(f"{config.data}: left out {len(data.bad)} samples")
        for one in data.bad[:_NAMED]:
            say(f"  {one.why}")
    link = Link(
        server=edge.server,
        keys=None if edge.key is None else load_secret(edge.key),
        server_key=None if edge.server_key is None else load_public(edge.server_key),
        timeout=edge.timeout,
        comeback=config.comeback,
    )
    with held(folder, fresh=config.fresh):
        run = DeviceRun(half, folder, data, memory=config.cache_mib << 20, threads=edge.threads)
        with closing(Bars(run.name, len(run.stages))) as bars:
            done = TrainingClient(run, link, watch=bars).train()
    return {"tensors": str(done.folder), "samples_left_out": len(data.bad), **done.summary()}
