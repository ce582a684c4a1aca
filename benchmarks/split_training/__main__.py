"""Bytes, speed and accuracy of training across the cut, all from one run of the digits recipe.

    python -m benchmarks.split_training --json build/split.json

trains the recipe in one process at 16 bits and at 2, and across the cut in two processes; sends some of its
steps over the wire of the paper's published code; and measures a step at the paper's geometry over a slow
link, with features computed before and a stand-in for the language model. A sample is a picture with its
questions.
``--quick`` takes a tenth of the steps and an eighth of the scenes; ``--table`` runs it across the cut at
every ``grad_bits``.
"""

from __future__ import annotations

import json
import platform
import sys
import tempfile
from importlib.metadata import version
from pathlib import Path
from typing import Any, Final

import click
import torch

from benchmarks.split_training import runs, stand_in
from qtl_core.exits import run
from qtl_core.gradients import GRAD_BITS
from qtl_training.recipe import Recipe, override, read_recipe
from qtl_training.split.stages import stages_of

RECIPE: Final = Path(__file__).resolve().parents[2] / "training" / "recipes" / "digits-split.toml"
_QUICK: Final = 0.1
_QUICK_SCENES: Final = 1000
_PAPER_STEPS: Final = 4
_DELAY_S: Final = 0.05
_RATE: Final = 10e6
_GOALS: Final = {
    "traffic_over_fp16": ("at most", 0.04),
    "traffic_over_paper": ("at most", 0.04),
    "steps_per_s_over_local": ("at least", 0.9),
    "step_time_over_paper_10mbit_50ms": ("at most", 0.1),
}


@click.command()
@click.option("--quick", is_flag=True, help="A tenth of the steps, fewer scenes; the JSON says so.")
@click.option("--table", is_flag=True, help="Train across the cut at every grad_bits.")
@click.option(
    "--threads", type=click.IntRange(1), default=1, show_default=True, metavar="N", help="Of each process."
)
@click.option("--seed", type=click.IntRange(0), metavar="N", help="Instead of the recipe's.")
@click.option(
    "--json", "json_file", type=click.Path(path_type=Path), metavar="FILE", help="Write the numbers here."
)
def cli(quick: bool, table: bool, threads: int, seed: int | None, json_file: Path | None) -> None:
    """Bytes, speed and accuracy of training across the cut."""
    torch.set_num_threads(threads)
    recipe = read_recipe(RECIPE)
    if seed is not None:
        recipe = override(recipe, seed=seed)
    if quick:
        recipe = runs.shortened(recipe, _QUICK, _QUICK_SCENES)
    with tempfile.TemporaryDirectory(prefix="qtl-split-") as folder:
        result = {
            "quick": quick,
            "weights": "the shipped digits checkpoint, its quantizer fitted anew",
            "sample": "a picture with its questions",
            **trained(recipe, Path(folder), threads),
            **geometry(Path(folder), stages_of(recipe)[-1].grad_bits),
        }
        if table:
            result["grad_bits"] = by_grad_bits(recipe, Path(folder), threads)
    result["recipe"] = {
        "name": recipe.name,
        "seed": recipe.seed,
        "steps": [s.steps for s in stages_of(recipe)],
    }
    result["versions"] = {"python": platform.python_version()} | {
        name: version(name) for name in ("torch", "transformers", "numpy", "pyzmq")
    }
    _print(result)
    if json_file is not None:
        json_file.parent.mkdir(parents=True, exist_ok=True)
        json_file.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")


def trained(recipe: Recipe, work: Path, threads: int) -> dict[str, Any]:
    """What the recipe comes to in one process and in two, with the traffic of the very run."""
    say("16 bit, one process")
    at_16 = runs.local(runs.changed(runs.unquantized(recipe), "local-16bit"), work, threads)
    say("2 bit, one process, exact gradients")
    exact = runs.local(runs.changed(recipe, "local-2bit", grad_bits=32), work, threads)
    say("2 bit, across the cut")
    across = runs.split(runs.changed(recipe, "split"), work, threads)
    say("the paper's wire")
    width, halves = runs.features_bytes(recipe, work)
    levels = stages_of(recipe)[-1].levels[0]
    published = runs.over_papers_wire(runs.as_published(recipe, width), work, _PAPER_STEPS)
    same = runs.over_papers_wire(runs.changed(recipe, "same-codes"), work, _PAPER_STEPS)
    up, down = across.up / across.pictures, across.down / across.pictures
    return {
        "bytes_up_per_sample": up,
        "bytes_down_per_sample": down,
        "fp16_bytes_per_sample": halves,
        "paper_bytes_per_sample": (published.up + published.down) / published.samples,
        "traffic_over_fp16": (up + down) / halves,
        "traffic_over_paper": (up + down) * published.samples / (published.up + published.down),
        "traffic_over_paper_same_codes": (up + down) * same.samples / (same.up + same.down),
        "steps_per_s": {"local": exact.steps_per_s, "split": across.steps_per_s},
        "steps_per_s_over_local": across.steps_per_s / exact.steps_per_s,
        "accuracy": {
            "local_16bit": runs.accuracy(at_16, 0),
            "local_2bit": runs.accuracy(exact, levels),
            "split": runs.accuracy(across, levels),
        },
    }


def geometry(work: Path, grad_bits: int) -> dict[str, Any]:
    """The paper's 729 x 1280: bytes at two shapes of codes, and a step over a slow link."""
    say("the paper's geometry: bytes")
    wide = stand_in.Shape(code_dim=stand_in.WIDTH, merge=1, grad_bits=grad_bits)
    ours = stand_in.Shape(code_dim=stand_in.CODE_DIM, merge=stand_in.MERGE, grad_bits=grad_bits)
    start_wide, start = stand_in.prepared(work / "wide", wide), stand_in.prepared(work / "ours", ours)
    few = stand_in.with_stage(start_wide, wide, steps=2, micro_batches=2, pictures=2)
    as_wide = stand_in.ours(few, work / "run", delay=0, rate=0)
    say(f"the paper's geometry: steps at {_RATE / 1e6:g} Mbit/s and {1000 * _DELAY_S:g} ms each way")
    chosen = stand_in.with_stage(start, ours, steps=5, micro_batches=2, pictures=4)
    fast = stand_in.ours(chosen, work / "run", delay=_DELAY_S, rate=_RATE)
    theirs = stand_in.with_stage(start_wide, wide, steps=2, micro_batches=2, pictures=4)
    slow = stand_in.papers(theirs, work / "run", steps=2, delay=_DELAY_S, rate=_RATE)
    paper = slow.up + slow.down
    return {
        "step_time_over_paper_10mbit_50ms": fast.step_s / slow.step_s,
        "step_s_10mbit_50ms": {"ours": fast.step_s, "paper": slow.step_s, "pictures": 8},
        "paper_geometry": {
            "traffic_over_paper_code_dim_is_width": (as_wide.up + as_wide.down) / paper,
            "traffic_over_paper_recipe_shape": (fast.up + fast.down) / paper,
            "recipe_shape": {"code_dim": ours.code_dim, "merge": ours.merge},
            "bytes_per_picture": {
                "paper": [slow.up, slow.down],
                "code_dim_is_width": [as_wide.up, as_wide.down],
                "recipe_shape": [fast.up, fast.down],
            },
        },
    }


def by_grad_bits(recipe: Recipe, work: Path, threads: int) -> list[dict[str, float]]:
    """The recipe across the cut at every width of its gradients."""
    rows = []
    for bits in GRAD_BITS:
        say(f"grad_bits {bits}")
        run = runs.split(runs.changed(recipe, f"split-{bits}", grad_bits=bits), work, threads)
        rows.append(
            {
                "grad_bits": bits,
                "bytes_up_per_sample": run.up / run.pictures,
                "bytes_down_per_sample": run.down / run.pictures,
                "accuracy": runs.accuracy(run, stages_of(recipe)[-1].levels[0]),
            }
        )
    return rows


def say(what: str) -> None:
    """What is being done, where a person looks."""
    if sys.stderr.isatty():
        click.echo(f"{what} ...", err=True)


def _print(result: dict[str, Any]) -> None:
    for name, value in result.items():
        if isinstance(value, float):
            goal = "{} {:g}".format(*_GOALS[name]) if name in _GOALS else ""
            click.echo(f"  {name:<34}{value:>12,.4f}  {goal}")
    for name, value in result["accuracy"].items():
        click.echo(f"  accuracy {name:<25}{value:>12.2f}")
    for name, value in result["paper_geometry"].items():
        if isinstance(value, float):
            click.echo(f"  at 729 x 1280: {name:<40}{value:.4f}")
    for row in result.get("grad_bits", ()):
        click.echo(
            f"  grad_bits {row['grad_bits']:>2}: up {row['bytes_up_per_sample']:8,.1f} B, down "
            f"{row['bytes_down_per_sample']:9,.1f} B a sample, accuracy {row['accuracy']:.2f}"
        )


if __name__ == "__main__":
    sys.exit(run(lambda: cli.main(prog_name="python -m benchmarks.split_training", standalone_mode=False)))
