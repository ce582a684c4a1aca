"""Whole runs of a recipe: both sides in one process, and as two processes with a real socket between them."""

from __future__ import annotations

import multiprocessing
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import msgspec
import torch

from benchmarks.split_training import paper_wire
from qtl_core.nn.checkpoint import QuantizerSettings
from qtl_core.split_stage import SplitStage
from qtl_training.evaluating import evaluate_checkpoint
from qtl_training.local import begun, train
from qtl_training.recipe import Recipe
from qtl_training.run_folder import RunFolder
from qtl_training.split.client import TorchRun
from qtl_training.split.running import client_run, serve_run
from qtl_training.split.server_side import ServerSide
from qtl_training.split.stages import stages_of

_TICK_S: Final = 0.01
_START_S: Final = 300.0
_SPAWN: Final = multiprocessing.get_context("spawn")


@dataclass(frozen=True, kw_only=True)
class Run:
    """What a run came to.

    Attributes:
        checkpoint: where its model is.
        steps_per_s: optimizer steps a second, from its first to its last.
        up, down: bytes on the wire, everything.
        pictures: sent.
    """

    checkpoint: Path
    steps_per_s: float
    up: int = 0
    down: int = 0
    pictures: int = 0


def changed(recipe: Recipe, name: str, **settings: Any) -> Recipe:
    """The recipe with other settings in all its stages, and a line in the log for every step."""
    stages = tuple(msgspec.structs.replace(stage, **settings) for stage in recipe.stages)
    return msgspec.structs.replace(recipe, name=name, stages=stages, log_every=1)


def shortened(recipe: Recipe, share: float) -> Recipe:
    """The recipe with so many of its steps."""
    stages = tuple(
        msgspec.structs.replace(stage, steps=max(2, round(share * stage.steps))) for stage in recipe.stages
    )
    return msgspec.structs.replace(recipe, stages=stages)


def unquantized(recipe: Recipe) -> Recipe:
    """The same at 16 bits: half-precision features cross, and no quantizer learns."""
    stages = []
    for stage in stages_of(recipe):
        parts = tuple(part for part in stage.train if part != "vision_quantizer")
        stages.append(
            msgspec.structs.replace(stage, levels=(0,), fit_quantizer=False, train=parts, grad_bits=32)
        )
    return msgspec.structs.replace(recipe, stages=tuple(stages))


def as_published(recipe: Recipe, width: int) -> Recipe:
    """The same with the paper's quantizer: as many codes as features, every token by itself."""
    quantizer = QuantizerSettings(code_dim=width, levels=4, scaling="image", merge=1)
    return msgspec.structs.replace(recipe, vision=quantizer)


def local(recipe: Recipe, work: Path, threads: int) -> Run:
    """Both sides in one process of its own."""
    folder = work / recipe.name
    process = _SPAWN.Process(target=_local, args=(recipe, folder, threads))
    with _Pace(folder / "log.jsonl") as pace:
        process.start()
        _finish(process)
    return Run(checkpoint=folder / "checkpoint", steps_per_s=pace.rate)


def split(recipe: Recipe, work: Path, threads: int) -> Run:
    """Server and client, each in a process of its own, over loopback."""
    server, client, ready = work / f"{recipe.name}-server", work / f"{recipe.name}-client", work / "ready"
    ready.unlink(missing_ok=True)
    results = _SPAWN.SimpleQueue()
    serving = _SPAWN.Process(target=_serve, args=(recipe, server, ready, threads))
    serving.start()
    until = time.monotonic() + _START_S
    while not ready.exists():
        if not serving.is_alive() or time.monotonic() > until:
            _finish(serving)
            raise RuntimeError("the training server did not start")
        time.sleep(_TICK_S)
    address = ready.read_text(encoding="utf-8").strip()
    training = _SPAWN.Process(target=_client, args=(recipe, client, address, threads, results))
    with _Pace(client / "log.jsonl") as pace:
        training.start()
        _finish(training)
    _finish(serving)
    done = results.get()
    return Run(
        checkpoint=server / "checkpoint",
        steps_per_s=pace.rate,
        up=done["bytes_up"],
        down=done["bytes_down"],
        pictures=done["pictures"],
    )


def over_papers_wire(recipe: Recipe, work: Path, steps: int) -> paper_wire.Sent:
    """A few steps of a recipe's last stage over the paper's wire."""
    stage = stages_of(recipe)[-1]
    one = msgspec.structs.replace(recipe, stages=(msgspec.structs.replace(stage, fit_quantizer=False),))
    checkpoint = begun(RunFolder(work / f"{recipe.name}-papers-server", one), one).checkpoint
    checkpoint.model.train()
    side = TorchRun(one, work / f"{recipe.name}-papers-client", progress=False).enter(0)
    return paper_wire.run(
        side, ServerSide(checkpoint, stage), side.micro_batches, levels=stage.levels[0], steps=steps
    )


def accuracy(run: Run, levels: int) -> float:
    """Macro accuracy of its checkpoint on the test questions, in percent."""
    found = evaluate_checkpoint(run.checkpoint, "test", [levels], progress=False)
    return float(found["table"][0]["accuracy"]["macro"])


def features_bytes(recipe: Recipe, work: Path) -> tuple[int, int]:
    """Width at the connector, and bytes of a picture's features there and of their gradient, both in fp16."""
    run = TorchRun(recipe, work / "shape", progress=False)
    tokens, width = run.crossing.shape(0)
    return width, 2 * 2 * tokens * width


def samples(stages: Sequence[SplitStage]) -> int:
    """Pictures that the stages' steps take."""
    return sum((stage.stop or stage.steps) * stage.micro_batches * stage.pictures for stage in stages)


def _local(recipe: Recipe, folder: Path, threads: int) -> None:
    torch.set_num_threads(threads)
    train(recipe, folder, progress=False)


def _serve(recipe: Recipe, folder: Path, ready: Path, threads: int) -> None:
    torch.set_num_threads(threads)
    serve_run(
        recipe, folder, bind="tcp://127.0.0.1:*", keys=None, insecure=False, fresh=True, ready_file=ready,
        say=_silent, stop_on=(), progress=False,
    )  # fmt: skip


def _client(recipe: Recipe, folder: Path, address: str, threads: int, results: Any) -> None:
    torch.set_num_threads(threads)
    results.put(
        client_run(
            recipe,
            folder,
            server=address,
            key=None,
            server_key=None,
            insecure=False,
            fresh=True,
            timeout=60,
            comeback=60,
            progress=False,
        )  # fmt: skip
    )


def _silent(text: str) -> None:
    """Says nothing."""


def _finish(process: Any) -> None:
    process.join()
    if process.exitcode:
        raise RuntimeError(f"a side of the run ended with exit code {process.exitcode}")


@dataclass
class _Pace:
    """Reads from a growing log how fast steps come."""

    log: Path
    seen: list[tuple[float, int]] = field(default_factory=list)
    _over: threading.Event = field(default_factory=threading.Event)
    _thread: threading.Thread | None = None

    def __enter__(self) -> _Pace:
        self._thread = threading.Thread(target=self._watch)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        if self._thread is not None:
            self._thread.join()

    @property
    def rate(self) -> float:
        """Steps a second between the first that was seen and the last."""
        (began, first), (ended, last) = self.seen[0], self.seen[-1]
        return (last - first) / (ended - began)

    def _watch(self) -> None:
        lines = 0
        while not self._over.wait(_TICK_S):
            now, found = time.monotonic(), _count(self.log)
            if found > lines:
                self.seen.append((now, found))
                lines = found


def _count(log: Path) -> int:
    try:
        return log.read_bytes().count(b"\n")
    except FileNotFoundError:
        return 0


Local = Callable[[Recipe, Path, int], Run]
