"""A training run as progress bars, where somebody watches."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, TypeVar

import click

if TYPE_CHECKING:
    from click._termui_impl import ProgressBar

T = TypeVar("T")


def watched() -> bool:
    """Whether bars are shown."""
    return sys.stderr is not None and sys.stderr.isatty()


def following(label: str) -> Callable[[Sequence[T]], Iterable[T]]:
    """Wraps a walk over a sequence in a bar."""

    def follow(items: Sequence[T]) -> Iterator[T]:
        if not watched():
            yield from items
            return
        with click.progressbar(items, label=label, file=sys.stderr, show_pos=True) as bar:
            yield from bar

    return follow


class Bars:
    """A bar for each stage; see ``edge_runtime.training.client.Watch``.

    Args:
        name: of the run.
        stages: how many there are.
    """

    def __init__(self, name: str, stages: int) -> None:
        self._name, self._stages = name, stages
        self._bar: ProgressBar[int] | None = None
        self._shown: dict[str, float] = {}

    def stage(self, number: int, steps: int, first: int) -> None:
        self.close()
        if not watched():
            return
        label = f"{self._name} stage {number + 1}/{self._stages}"
        self._bar = click.progressbar(
            length=steps, label=label, file=sys.stderr, show_pos=True, item_show_func=self._said
        )
        self._bar.__enter__()
        self._bar.update(first)

    def step(self, metrics: dict[str, float]) -> None:
        self._shown = metrics
        if self._bar is not None:
            self._bar.update(1, current_item=1)

    def close(self) -> None:
        """Ends the bar that is shown."""
        if self._bar is not None:
            self._bar.__exit__(None, None, None)
            self._bar = None

    def _said(self, item: int | None) -> str:
        return ", ".join(f"{name} {value:.3g}" for name, value in self._shown.items())
