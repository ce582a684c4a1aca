"""What the training loop needs of the client partition, whatever computes it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from edge_runtime.training.labels import PrivateLabels
from qtl_core.crossing import Crossed, Crossing, MicroBatch
from qtl_core.split_stage import SplitStage


class StageSide(Protocol):
    """The client's side of one stage: connector, and the encoder half of the quantizer.

    Attributes:
        labels: where they are private; the loop asks them and steps their head, snapshots hold their state.
    """

    labels: PrivateLabels | None

    def fit(self) -> bytes:
        """Fits the quantizer to features, and returns the server's half of it as safetensors.

        Raises:
            RecipeError: this client cannot.
        """
        ...

    def micro_batches(self, step: int) -> Sequence[MicroBatch]:
        """The step's data; the same whenever it is asked for."""
        ...

    def forward(self, micro: int, pictures: Sequence[int], levels: int) -> Crossed:
        """What crosses for a micro-batch: uint8 codes [pictures, coded tokens, code_dim], or float16
        features [pictures, tokens, width] where ``levels`` is 0.

        A micro-batch of texts alone has no pictures: what crosses is empty, and no statistics follow it.
        """
        ...

    def backward(self, micro: int, gradient: NDArray[np.float32]) -> None:
        """Takes the gradient of the summed answer loss with respect to what crossed, in order."""
        ...

    def squared_norm(self, answer_tokens: int) -> float:
        """Ends the sums over the step's micro-batches and returns their squared norm."""
        ...

    def apply(self, step: int, squared_norm: float) -> None:
        """Takes the optimizer step, clipped by the squared norm of both partitions' gradients."""
        ...


class ClientRun(Protocol):
    """A client's run: its snapshots, its stages and what comes out.

    Attributes:
        name: for the bars.
        stages: what is trained, in order.
        seeds: of each stage.
        crossing: how what crosses is coded.
        largest: bytes of the largest payload, either way.
        fingerprint: 16 bytes that the server must have too.
        log_every: steps between lines of the log.
    """

    name: str
    stages: Sequence[SplitStage]
    seeds: Sequence[int]
    crossing: Crossing
    largest: int
    fingerprint: bytes
    log_every: int

    def points(self) -> list[tuple[int, int]]:
        """Stage and next step of every snapshot, oldest first."""
        ...

    def back_to(self, stage: int, step: int) -> None:
        """Returns to that snapshot and drops those after it."""
        ...

    def enter(self, stage: int) -> StageSide:
        """Begins a stage, or goes on with it where ``back_to`` left it."""
        ...

    def save(self, stage: int, step: int) -> None:
        """Writes a snapshot: ``step`` of ``stage`` is next.

        Raises:
            StorageError: it cannot be written; older ones stay.
        """
        ...

    def log(self, record: dict[str, Any]) -> None:
        """Appends a line to the log."""
        ...

    def weights(self) -> bytes:
        """The client partition's trained tensors as safetensors."""
        ...

    def finish(self) -> Path:
        """Writes this side's finished weights, and says where."""
        ...
