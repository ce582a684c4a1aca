"""The whole comparison: grids on the validation split, what is chosen on the test split, over all seeds."""

from __future__ import annotations

import dataclasses
import math
import multiprocessing
import os
import statistics
import threading
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Executor, ProcessPoolExecutor, as_completed
from contextlib import contextmanager
from multiprocessing.connection import wait
from typing import Any

from tqdm import tqdm

from benchmarks.rate_accuracy.jobs import Features, Frame, Job, Measure, Pictures
from benchmarks.rate_accuracy.store import read_json
from qtl_core.nn.checkpoint import load_checkpoint
from qtl_training.rivals.methods import Knob, Variant, at_rates, described

_NEAR = 5.0  # points


class Study:
    """Runs what is missing and collects what is there.

    Args:
        frame: what jobs work in.
        grid_steps: optimizer steps of the fine-tunes that settings are chosen by.
        variants: what is compared.
        rates: learning rates to choose from for each of them that has none of its own.
        seeds: of the fine-tunes; the first one's are what settings are chosen by.
        rival_seeds: how many of them rivals and pictures get; the others are ours.
        workers: processes; 1 works in this one.
        threads: that each of them computes with.
    """

    def __init__(
        self,
        frame: Frame,
        grid_steps: int,
        variants: Sequence[Variant],
        rates: Sequence[float],
        seeds: Sequence[int],
        rival_seeds: int,
        workers: int,
        threads: int,
    ) -> None:
        known = ("", *load_checkpoint(frame.conditions.start).quantizers)
        self.variants = [
            v for v in variants if v.kind != "shipped" or v.settings.get("quantizer", "") in known
        ]
        self._tried = [tried for variant in self.variants for tried in at_rates(variant, rates)]
        self._frame, self._seeds, self._workers, self._threads = frame, seeds, workers, threads
        self._rival_seeds = rival_seeds
        shortened = dataclasses.replace(frame.conditions, steps=grid_steps)
        self._grid_frame = dataclasses.replace(frame, conditions=shortened)

    def run(self) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
        """Results (as the jobs wrote them) of the validation and of the test split."""
        with self._workshop() as pool:
            return self._run(pool)

    def _run(self, pool: Executor | None) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
        frame, first = self._frame, self._seeds[0]
        kept: list[Job] = [Features(split="train", seed=seed) for seed in self._seeds]
        kept += [Features(split=split) for split in ("validation", "test")]
        if any(variant.kind == "picture" for variant in self.variants):
            kept += [Pictures(split=split) for split in ("validation", "test")]
        self._do(kept, "features", frame, pool)
        grid = [Measure(variant=variant, seed=first, split="validation") for variant in self._tried]
        self._measure(grid, self._grid_frame, pool)
        validation = [read_json(job.path(self._grid_frame)) for job in grid]
        final = [
            Measure(variant=variant, seed=seed, split="test", knobs=knobs)
            for variant, knobs in choose(self._tried, validation)
            for seed in self._seeds[: self._seeds_of(variant)]
        ]
        self._measure(final, frame, pool)
        return validation, [read_json(job.path(frame)) for job in final]

    def _seeds_of(self, variant: Variant) -> int:
        """How many of the seeds a variant is trained with."""
        return {"shipped": 1, "ours": len(self._seeds)}.get(variant.kind, self._rival_seeds)

    def _measure(self, jobs: Sequence[Measure], frame: Frame, pool: Executor | None) -> None:
        """Measures, after what has to be there first: coded pictures and trained models."""
        split = jobs[0].split if jobs else ""
        missing = [job for job in jobs if not job.path(frame).exists()]
        trained = [job.training for job in missing if job.variant.kind != "shipped"]
        self._do([files for job in missing for files in job.files(frame)], f"{split} pictures", frame, pool)
        self._do(trained, f"training for {split}", frame, pool)
        self._do(missing, split, frame, pool)

    def _do(self, jobs: Iterable[Job], label: str, frame: Frame, pool: Executor | None) -> None:
        missing = [job for job in dict.fromkeys(jobs) if not job.path(frame).exists()]
        progress = frame.progress
        with tqdm(total=len(missing), desc=label, unit="job", disable=not progress or None) as bar:
            if pool is None:
                for job in missing:
                    job.run(frame)
                    bar.update()
                return
            for done in as_completed([pool.submit(job.run, frame) for job in missing]):
                done.result()
                bar.update()

    @contextmanager
    def _workshop(self) -> Iterator[Executor | None]:
        """The processes that work; None where this one does."""
        if self._workers == 1:
            yield None
            return
        os.environ["OMP_NUM_THREADS"] = str(self._threads)  # for numpy in the workers
        context = multiprocessing.get_context("spawn")
        lock = context.RLock()
        tqdm.set_lock(lock)
        with ProcessPoolExecutor(self._workers, context, _begin, (self._threads, lock)) as pool:
            try:
                yield pool
            except BaseException:
                pool.shutdown(wait=False, cancel_futures=True)
                raise


def choose(
    variants: Sequence[Variant], results: Sequence[dict[str, Any]]
) -> list[tuple[Variant, tuple[Knob, ...]]]:
    """Which knobs of which variants are reported: those no other of the family beats in bytes and accuracy,
    and that come within ``_NEAR`` points of the family's most accurate one.

    Before that each variant keeps the learning rate with the best mean accuracy over its knobs. Ours and
    the shipped quantizers are named beforehand, so all their knobs stay. Pictures are compared by their
    bytes without the codec's header.
    """
    at_best: dict[str, float] = {}
    for variant, result in zip(variants, results, strict=True):
        at_best[variant.label] = max(at_best.get(variant.label, -math.inf), _mean(result))
    pairs = [
        (variant, result)
        for variant, result in zip(variants, results, strict=True)
        if _mean(result) == at_best[variant.label]
    ]
    rows = [row for _, result in pairs for row in result["rows"]]
    best = []
    for row in rows:
        family = [other for other in rows if other["family"] == row["family"]]
        far = max(other["accuracy"]["macro"] for other in family) - _NEAR > row["accuracy"]["macro"]
        if not far and not any(_beats(other, row) for other in family):
            best.append(row["row"])
    chosen = []
    for variant, result in pairs:
        named = variant.kind in ("ours", "shipped")
        # A knob's row or rows come in the order of the knobs; a second one is the first's coded form.
        kept = [row["knob"] for row in result["rows"] if named or row["row"] in best]
        knobs = tuple(knob for knob in variant.knobs if described(knob) in kept)
        if kept:
            chosen.append((variant, knobs))
    return chosen


def _mean(result: dict[str, Any]) -> float:
    """Mean accuracy over a variant's knobs, in percent."""
    return statistics.fmean(row["accuracy"]["macro"] for row in result["rows"])


def size_of(row: dict[str, Any]) -> float:
    """The bytes a row is compared by: without the codec's header where there is one."""
    net = row.get("net_bytes_mean")
    return float(row["payload_bytes_mean"] if net is None else net)


def _beats(one: dict[str, Any], other: dict[str, Any]) -> bool:
    smaller, better = size_of(one) - size_of(other), one["accuracy"]["macro"] - other["accuracy"]["macro"]
    return smaller <= 0 <= better and (smaller < 0 or better > 0)


def _begin(threads: int, lock: Any) -> None:
    """Sets a worker up: its threads, its share of the bars, and its end should the parent be killed."""
    import torch

    torch.set_num_threads(threads)
    tqdm.set_lock(lock)
    parent = multiprocessing.parent_process()
    if parent is not None:
        sentinel = parent.sentinel
        threading.Thread(target=lambda: (wait([sentinel]), os._exit(1)), daemon=True).start()
