"""The two processes of a training run, from settings to result."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from types import FrameType
from typing import Any

import torch
from tqdm import tqdm

from edge_runtime.config import EdgeConfig
from edge_runtime.training.client import Link, TrainingClient
from qtl_core.errors import StorageError
from qtl_core.keys import load_public, load_secret
from qtl_core.snapshots import held
from qtl_training.local import start_of
from qtl_training.recipe import Recipe
from qtl_training.split.agreement import fingerprint
from qtl_training.split.client import Bars, TorchRun
from qtl_training.split.data import left_out
from qtl_training.split.parts import parts
from qtl_training.split.ranks import Op, Ranks, is_follower, ranks_wanted
from qtl_training.split.server import TrainingServer, summary
from qtl_training.split.serving import Serving
from qtl_training.split.spread import follow
from server_runtime.config import ServerConfig
from server_runtime.listener import Listener
from server_runtime.torch_engine import pick_device


def serve_run(
    recipe: Recipe,
    folder: Path,
    *,
    bind: str,
    keys: Path | None,
    insecure: bool,
    fresh: bool,
    ready_file: Path | None,
    say: Callable[[str], None],
    stop_on: Iterable[signal.Signals],
    progress: bool,
    device: str = "cpu",
) -> dict[str, Any]:
    """Serves a run to its end; what came of it: nothing to tell in any rank of a ``torchrun`` but 0.

    Raises:
        RecipeError, CheckpointError, StorageError: as ``Serving``.
        BindError, KeyFileError: as ``Listener``.
        HostError: the device is not there.
    """
    device = pick_device(device, cuda=torch.cuda.is_available())
    if is_follower():
        with TemporaryDirectory() as place:
            # Before the ranks meet: transformers writes files in rank 0 only.
            start = start_of(recipe, Path(place))
        with closing(Ranks(device)) as others:
            follow(others, recipe, start)
        return {}
    ranks = Ranks(device) if ranks_wanted() else None
    agreed = fingerprint(recipe)
    with (
        held(folder, fresh=fresh),
        tqdm(desc=f"{recipe.name} (server)", unit="step", disable=not progress or None) as bar,
    ):

        def told(metrics: dict[str, float]) -> None:
            bar.set_postfix({name: f"{value:.3g}" for name, value in metrics.items()}, refresh=False)
            bar.update()

        serving = Serving(recipe, folder, log=told, device=device, ranks=ranks)
        config = ServerConfig(bind=bind, keys=keys, insecure=insecure)
        listener = Listener(config, max_payload=serving.largest)
        server = TrainingServer(serving, agreed, listener, parts=parts(recipe))
        with _stopped_by(server, stop_on):
            if ready_file is not None:
                _write(ready_file, server.endpoint)
            named = f"recipe {recipe.name}, fingerprint {agreed.hex()}"
            say(f"qtl-train serve ready on {server.endpoint} ({named})")
            server.serve()
    if ranks is not None:
        ranks.tell(Op.END)
        ranks.close()
    return {"finished": serving.finished, **summary(server, serving.path)}


def client_run(
    recipe: Recipe,
    folder: Path,
    *,
    server: str,
    key: Path | None,
    server_key: Path | None,
    insecure: bool,
    fresh: bool,
    timeout: float,
    comeback: float,
    progress: bool,
) -> dict[str, Any]:
    """Trains a run's client side to its end; what came of it.

    Raises:
        InputError: settings that do not go together.
        QtlError: as ``TrainingClient``.
    """
    # For its checks: address, keys together, plaintext on loopback only.
    EdgeConfig(server=server, key=key, server_key=server_key, insecure=insecure, timeout=timeout)
    link = Link(
        server=server,
        keys=None if key is None else load_secret(key),
        server_key=None if server_key is None else load_public(server_key),
        timeout=timeout,
        comeback=comeback,
    )
    with held(folder, fresh=fresh):
        run = TorchRun(recipe, folder, progress=progress)
        with closing(Bars(run.name, len(run.stages), shown=progress)) as bars:
            client = TrainingClient(run, link, watch=bars, parts=parts(recipe), evaluation=run.evaluation)
            done = client.train()
    return {"checkpoint": str(done.folder), "samples_left_out": left_out(folder), **done.summary()}


@contextmanager
def _stopped_by(server: TrainingServer, signals: Iterable[signal.Signals]) -> Iterator[None]:
    def stop(number: int, frame: FrameType | None) -> None:
        server.stop()

    before = {number: signal.signal(number, stop) for number in signals}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _write(path: Path, endpoint: str) -> None:
    fresh = path.with_name(path.name + ".new")
    try:
        fresh.write_text(endpoint + "\n", encoding="utf-8")
        os.replace(fresh, path)
    except OSError as error:
        raise StorageError(
            f"cannot write the ready file {path}: {error.strerror}; choose another place"
        ) from error
