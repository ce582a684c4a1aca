"""``edge_runtime train``: the client partition in onnxruntime, with its snapshots; no PyTorch.

RUN/
  000001-0001200/        newest snapshot: stage 1 (from 0), step 1200 is next
    run.json             stage, step, and what is trained on what
    tensors.safetensors  connector and quantizer
    state.safetensors    the optimizer's moments
  log.jsonl              a line for every few steps
  trained.safetensors    the finished tensors
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

import msgspec

from edge_runtime.training.data import Data
from edge_runtime.training.features import TowerFeatures
from edge_runtime.training.graphs import Arrays, Graphs
from edge_runtime.training.side import DeviceStage
from qtl_core import tensor_file
from qtl_core.bundle import Half
from qtl_core.crossing import Crossing
from qtl_core.errors import InputError, StorageError
from qtl_core.snapshots import RUN_FILE, Snapshots
from qtl_core.split_stage import SplitStage
from qtl_core.trainable import FOLDER, START, read_training

FINISHED: Final = "trained.safetensors"
_TENSORS: Final = "tensors.safetensors"
_STATE: Final = "state.safetensors"
_HEADER: Final = 1 << 16


class _Progress(msgspec.Struct, frozen=True):
    stage: int
    step: int
    training: str
    data: str


class DeviceRun:
    """A run whose client partition onnxruntime trains; see ``edge_runtime.training.partition.ClientRun``.

    Args:
        half: a client half with training graphs.
        folder: the run's folder.
        data: of every stage; a run goes on with what it was begun with.
        memory: bytes of the tower's features that may be kept.
        threads: of the graphs; 0 leaves it to onnxruntime.

    Raises:
        BundleError: a half without training graphs.
        InputError: a folder that was begun with another recipe, checkpoint or data.
        StorageError: the folder cannot be written.
    """

    def __init__(
        self,
        half: Half,
        folder: Path,
        data: Data,
        *,
        memory: int = 256 << 20,
        threads: int = 0,
    ) -> None:
        self._training = training = read_training(half)
        self.name, self.log_every = training.name, training.log_every
        self.stages: Sequence[SplitStage] = training.stages
        self.seeds: Sequence[int] = training.seeds
        self.fingerprint = bytes.fromhex(training.fingerprint)
        levels = [count for stage in training.stages for count in stage.levels]
        self.crossing = Crossing.of(half.path / FOLDER, levels, training.codes, training.features)
        self._half, self._data, self._memory = half, data, memory
        self._graphs = Graphs(half, threads=threads)
        self._snapshots = Snapshots(folder)
        self._state: Arrays = {}
        self._stage: DeviceStage | None = None
        newest = self._snapshots.newest()
        if newest is None:
            self._tensors = _read(half.file(START))
            self.save(0, 0)
        else:
            self._take(newest)
        weights = sum(value.nbytes for value in self._tensors.values())
        payloads = (self.crossing.largest(stage.most_pictures) for stage in self.stages)
        self.largest = max(*payloads, 2 * weights + _HEADER)

    def points(self) -> list[tuple[int, int]]:
        return self._snapshots.points()

    def back_to(self, stage: int, step: int) -> None:
        folder = self._snapshots.back_to(stage, step)
        if folder is None:
            raise InputError(
                f"run folder {self._snapshots.path} has no snapshot of stage {stage}, step {step}"
            )
        self._take(folder)

    def enter(self, stage: int) -> DeviceStage:
        samples, picture = self._data.stages[stage], self._half.manifest.picture
        features = TowerFeatures(self._graphs, picture, self._training.tower, samples.pictures, self._memory)
        self._stage = DeviceStage(self._training, stage, self._tensors, self._graphs, samples, features)
        self._stage.optimizer.load(self._state)
        self._state = {}
        return self._stage

    def save(self, stage: int, step: int) -> None:
        progress = _Progress(stage, step, self.fingerprint.hex(), self._data.digest)
        state = self._stage.optimizer.state(self._tensors) if step and self._stage is not None else {}

        def fill(folder: Path) -> None:
            (folder / _TENSORS).write_bytes(tensor_file.dump(self._tensors))
            (folder / _STATE).write_bytes(tensor_file.dump(state))
            (folder / RUN_FILE).write_bytes(msgspec.json.encode(progress))

        self._snapshots.save(stage, step, fill)

    def log(self, record: dict[str, Any]) -> None:
        self._snapshots.log(record)

    def weights(self) -> bytes:
        return tensor_file.dump(self._tensors)

    def finish(self) -> Path:
        path = self._snapshots.path / FINISHED
        fresh = path.with_name(f"{FINISHED}.new")
        try:
            fresh.write_bytes(self.weights())
            os.replace(fresh, path)
        except OSError as error:
            raise StorageError(
                f"the trained tensors could not be written to {path}: {error.strerror}"
            ) from error
        return path

    def _take(self, snapshot: Path) -> None:
        try:
            progress = msgspec.json.decode((snapshot / RUN_FILE).read_bytes(), type=_Progress)
        except (OSError, msgspec.MsgspecError) as error:
            raise InputError(
                f"{snapshot / RUN_FILE} cannot be read ({error}); remove that snapshot"
            ) from error
        for ours, theirs, what in (
            (self.fingerprint.hex(), progress.training, "recipe or checkpoint"),
            (self._data.digest, progress.data, "data"),
        ):
            if ours != theirs:
                raise InputError(
                    f"run folder {self._snapshots.path} was begun with another {what}; start anew with "
                    "--fresh, or name another folder with --run"
                )
        self._tensors, self._state, self._stage = _read(snapshot / _TENSORS), _read(snapshot / _STATE), None


def _read(path: Path) -> Arrays:
    try:
        return tensor_file.load(path.read_bytes(), str(path))
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror}") from error
