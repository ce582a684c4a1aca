"""What a person at a terminal sees of an export: the stage, its seconds, and a bar where things are counted.

Silent when the stream is no terminal.
"""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import TextIO, TypeVar

T = TypeVar("T")

_TICK_S = 0.5


class Progress:
    """Stage lines and progress bars.

    Args:
        stream: where they go; standard error by default.
        clock: seconds, for the time a stage took.
    """

    def __init__(self, stream: TextIO | None = None, clock: Callable[[], float] = time.monotonic) -> None:
        self._stream = sys.stderr if stream is None else stream
        self._clock = clock
        self._shown = self._stream is not None and self._stream.isatty()

    @contextmanager
    def stage(self, what: str) -> Iterator[None]:
        """Shows what is being waited for and for how long; for work that cannot be counted."""
        if not self._shown:
            yield
            return
        started, done = self._clock(), threading.Event()

        def tick() -> None:
            while not done.wait(_TICK_S):
                self._line(f"{what} ... {self._clock() - started:.0f} s")

        self._line(f"{what} ...")
        ticker = threading.Thread(target=tick, daemon=True)
        ticker.start()
        try:
            yield
        finally:
            done.set()
            ticker.join()
            self._line(f"{what}: {self._clock() - started:.1f} s\n")

    def bar(self, items: Iterable[T], what: str, total: int, unit: str, each: int = 1) -> Iterator[T]:
        """Goes through ``items`` under a bar with rate and time left.

        Args:
            items: what to go through.
            what: the stage.
            total: how many units there are.
            unit: what is counted.
            each: units one item stands for; the last may stand for fewer. Of a range it is the step.
        """
        if isinstance(items, range):
            each = items.step
        # Imported here: the command's --help should not need it.
        from tqdm import tqdm

        with tqdm(total=total, desc=what, unit=f" {unit}", file=self._stream, disable=not self._shown) as bar:
            for item in items:
                yield item
                bar.update(min(each, total - bar.n))

    def _line(self, text: str) -> None:
        self._stream.write(f"\r\x1b[K{text}")
        self._stream.flush()
