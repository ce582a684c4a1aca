"""Training across the cut with a side killed at any time: the weights are those of an undisturbed run."""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest

from tests.training.test_split_run import Run, running, train_in_a_process, weights, write

SIDES = ("serve", "client")


def same_weights(
    tmp_path: Path, env: dict[str, str], steps: int, trouble: Callable[[Run], None], every: float = 0.0
) -> None:
    """Trains in two processes through some trouble, and compares with one process."""
    recipe = write(tmp_path, steps=steps, bits=4, every=every)
    with running(recipe, tmp_path, env) as run:
        run.start("serve")
        run.start("client")
        trouble(run)
        run.result("client")
        if run.processes["serve"].poll() is None:
            run.result("serve")
    assert weights(tmp_path / "serve" / "checkpoint") == weights(
        train_in_a_process(recipe, tmp_path / "local", env)
    )
    for side in SIDES:
        left = {path.name for path in (tmp_path / side).glob(".*")} - {".lock"}
        assert not left, f"{side} left {left}"


def again(run: Run, *sides: str) -> None:
    """Kills these sides at once, and starts them again."""
    for side in sides:
        run.kill(side)
    for side in sides:
        run.start(side)


def soon(what: Callable[[], bool], seconds: float = 120) -> None:
    """Waits for something that does not last long."""
    end = time.monotonic() + seconds
    while not what():
        assert time.monotonic() < end, "it did not happen"
        time.sleep(0.0005)


def written(folder: Path) -> bool:
    """Whether a snapshot is being written there."""
    return any(folder.glob(".0*.part/*"))


def other_than(held: set[Path], folder: Path) -> bool:
    """Whether the snapshots there are no longer these."""
    return set(folder.glob("0*")) != held


@pytest.mark.slow
@pytest.mark.parametrize("seed", [1, 2])
def test_at_random_times(tmp_path: Path, source_env: dict[str, str], seed: int) -> None:
    draw = random.Random(seed)

    def trouble(run: Run) -> None:
        for _ in range(10):
            time.sleep(draw.uniform(0, 9))
            if run.processes["client"].poll() is not None:
                break
            again(run, *draw.choice([("serve",), ("client",), SIDES]))

    same_weights(tmp_path, source_env, 120, trouble, every=0.3)


@pytest.mark.slow
def test_while_snapshots_are_written(tmp_path: Path, source_env: dict[str, str]) -> None:
    def trouble(run: Run) -> None:
        for side in (*SIDES, *SIDES):
            done = run.steps()
            run.wait_for(lambda done=done: run.steps() > done, "a step")
            folder = run.folder / side
            soon(partial(written, folder))
            again(run, side)

    same_weights(tmp_path, source_env, 60, trouble)


@pytest.mark.slow
def test_while_both_agree_where_to_begin(tmp_path: Path, source_env: dict[str, str]) -> None:
    def trouble(run: Run) -> None:
        for side in SIDES:
            done = run.steps()
            run.wait_for(lambda done=done: run.steps() > done + 2, "steps")
            again(run, "serve")
            # A server that has just begun again drops the snapshots behind the moment both hold.
            held = set((run.folder / "serve").glob("0*"))
            soon(partial(other_than, held, run.folder / "serve"))
            again(run, side)

    same_weights(tmp_path, source_env, 60, trouble)


@pytest.mark.slow
def test_while_the_weights_cross(tmp_path: Path, source_env: dict[str, str]) -> None:
    def trouble(run: Run) -> None:
        soon(lambda: (run.folder / "serve" / ".checkpoint.part").exists())
        again(run, "serve")
        soon(lambda: (run.folder / "serve" / "checkpoint").exists())
        run.kill("client")
        if run.processes["serve"].poll() is not None:  # the client was done
            run.start("serve")
        run.start("client")

    same_weights(tmp_path, source_env, 3, trouble)
