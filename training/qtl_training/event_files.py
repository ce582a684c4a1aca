"""What a run logs, as TensorBoard's event files."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from qtl_core.errors import MissingExtra


class EventFiles:
    """Scalars of a run over all steps of all its stages.

    A run that goes on after a kill takes the steps that it replays out of the curves.

    Args:
        folder: where the files go; made at the first record.
        steps: of each stage.

    Raises:
        MissingExtra: TensorBoard is not installed.
    """

    def __init__(self, folder: Path, steps: Sequence[int]) -> None:
        if find_spec("tensorboard") is None:
            raise MissingExtra.of("train", "tensorboard")
        self._folder, self._steps = folder, steps
        self._writer: Any = None

    def write(self, record: Mapping[str, Any]) -> None:
        """Takes a line of the log: stage, step, and numbers or a group of numbers by name."""
        step = sum(self._steps[: record["stage"]]) + record["step"]
        if self._writer is None:
            from torch.utils.tensorboard import SummaryWriter

            self._writer = SummaryWriter(str(self._folder), purge_step=step)
        for name, value in record.items():
            if name in ("stage", "step"):
                continue
            if isinstance(value, Mapping):
                group = f"{name}/{value['levels']} levels" if "levels" in value else name
                for part, number in value.items():
                    if part not in ("levels", "questions"):
                        self._writer.add_scalar(f"{group}/{part}", number, step)
            else:
                self._writer.add_scalar(f"training/{name}", value, step)
        self._writer.flush()
