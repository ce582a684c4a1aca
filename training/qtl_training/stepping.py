"""Running the steps of a training, with a bar, a log and snapshots on the way."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

from torch import Tensor
from tqdm import tqdm


class Training(Protocol):
    """A stage as a sequence of optimizer steps; step i depends on i, the model and ``state`` only."""

    steps: int

    def run_step(self, step: int) -> dict[str, float]: ...

    def finish(self) -> None: ...

    def state(self) -> dict[str, Tensor]: ...

    def load(self, state: dict[str, Tensor]) -> None: ...


def run_steps(
    training: Training,
    first_step: int,
    label: str,
    *,
    log: Callable[[dict[str, Any]], None],
    log_every: int,
    save: Callable[[int], None],
    save_every: float,
    progress: bool,
    clock: Callable[[], float],
    after: Callable[[int], None] | None = None,
) -> None:
    """Runs all steps from ``first_step`` on.

    Args:
        training: what is trained.
        first_step: where to begin.
        label: of the bar.
        log: takes what a step measured, with its number.
        log_every: steps between two such records; the last step is always among them.
        save: writes a snapshot whose next step is the given one.
        save_every: seconds between two snapshots.
        progress: whether to show a bar.
        clock: seconds.
        after: called after each step, with how many are done.
    """
    saved = clock()
    with tqdm(total=training.steps, initial=first_step, desc=label, disable=not progress or None) as bar:
        for step in range(first_step, training.steps):
            metrics = training.run_step(step)
            bar.set_postfix({name: f"{value:.3g}" for name, value in metrics.items()}, refresh=False)
            bar.update()
            if step % log_every == 0 or step + 1 == training.steps:
                log({"step": step, **metrics})
            if clock() - saved > save_every and step + 1 < training.steps:
                save(step + 1)
                saved = clock()
            if after is not None:
                after(step + 1)
