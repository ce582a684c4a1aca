"""Bytes against accuracy: our quantizers and every rival, each fine-tuned alike.

    python -m benchmarks.rate_accuracy --jobs 2 --json build/rate.json --plot docs/rate.png --readme README.md

Every method starts from the shipped checkpoint and gets the same steps, scenes and seeds. Its grid of
settings, two learning rates among them, is trained with the first seed and measured on the validation
split; what no other setting of the method beats there is trained with every seed and measured on the test
split. Payloads are made by real encoders, and the model answers from what is decoded of them.

Work is kept in ``--work``: a run that was killed goes on where it stopped. ``--quick`` takes one seed, one
setting, a few steps and questions, and says so in the JSON: it shows that everything runs, not who wins.
"""

from __future__ import annotations

import json
import platform
import sys
from importlib.metadata import version
from pathlib import Path
from typing import Any

import click

from qtl_core import shipped
from qtl_core.errors import RecipeError
from qtl_core.exits import run
from qtl_training.extras import need_bench
from qtl_training.rivals.methods import METHODS, RATES, variants_of

_RECIPES = Path(__file__).parents[2] / "training" / "recipes"
_PACKAGES = ("torch", "transformers", "numpy", "pillow", "vector-quantize-pytorch", "zstandard")
_EACH_TYPE, _SCENES = 240, 6000
_QUICK_EACH_TYPE, _QUICK_SCENES, _QUICK_STEPS = 20, 384, 5
_TOKENS = 36

_EXAMPLE = """
\b
Examples:
  python -m benchmarks.rate_accuracy --quick --json build/rate.json
  python -m benchmarks.rate_accuracy --methods small,tiny,vq --seeds 1 --json build/some.json
"""


@click.command(epilog=_EXAMPLE)
@click.option("--quick", is_flag=True, help="One seed, one setting, few steps: under ten minutes.")
@click.option(
    "--methods",
    default=",".join(METHODS),
    metavar="A,B",
    help=f"Which to compare, of {', '.join(METHODS)}.  [default: all]",
)
@click.option("--seeds", type=click.IntRange(min=1), metavar="N", help="Seeds 1 to N.  [default: 3]")
@click.option(
    "--rival-seeds", type=click.IntRange(min=1), metavar="N",
    help="How many of them rivals get; the first alone takes a third of the time.  [default: all]",
)  # fmt: skip
@click.option(
    "--steps", type=click.IntRange(min=1), metavar="N", help="Of every fine-tune.  [default: our recipe's]"
)
@click.option(
    "--grid-steps", type=click.IntRange(min=1), metavar="N",
    help="Of the fine-tunes that settings are chosen by, where they are to be shorter.  [default: --steps]",
)  # fmt: skip
@click.option(
    "--start", type=click.Path(path_type=Path), metavar="DIR", help="The checkpoint.  [default: shipped]"
)
@click.option(
    "--work", type=click.Path(path_type=Path), default=Path("build/rate_accuracy"), show_default=True,
    metavar="DIR", help="Where what has been computed is kept.",
)  # fmt: skip
@click.option(
    "--jobs", type=click.IntRange(min=1), default=1, show_default=True, metavar="N", help="Processes."
)
@click.option(
    "--threads", type=click.IntRange(min=1), default=1, show_default=True, metavar="N", help="Of a process."
)
@click.option(
    "--json", "json_file", type=click.Path(path_type=Path), metavar="FILE", help="Write the numbers here."
)
@click.option("--plot", type=click.Path(path_type=Path), metavar="FILE", help="Draw the figure here (PNG).")
@click.option(
    "--readme", type=click.Path(path_type=Path), metavar="FILE", help="Renew the table in this file."
)
def cli(
    quick: bool,
    methods: str,
    seeds: int | None,
    rival_seeds: int | None,
    steps: int | None,
    grid_steps: int | None,
    start: Path | None,
    work: Path,
    jobs: int,
    threads: int,
    json_file: Path | None,
    plot: Path | None,
    readme: Path | None,
) -> None:
    """Bytes a picture against accuracy, for our quantizers and every rival."""
    need_bench()
    try:
        variants = variants_of([name.strip() for name in methods.split(",")], quick=quick)
    except ValueError as error:
        raise click.BadParameter(str(error), param_hint="--methods") from error
    import torch

    from benchmarks.rate_accuracy import report
    from benchmarks.rate_accuracy.claims import claims
    from benchmarks.rate_accuracy.jobs import FORMAT, Frame
    from benchmarks.rate_accuracy.rows import collected
    from benchmarks.rate_accuracy.store import checkpoint_hash
    from benchmarks.rate_accuracy.study import Study
    from qtl_training.rivals.trial import Conditions, common_steps

    if not _RECIPES.is_dir():
        raise RecipeError(f"no recipes at {_RECIPES}: the comparison runs in a checkout of the project")
    torch.set_num_threads(threads)
    checkpoint = shipped.digits() if start is None else start
    seed_list = list(range(1, (seeds or (1 if quick else 3)) + 1))
    conditions = Conditions(
        start=checkpoint,
        recipes=_RECIPES,
        steps=steps or (_QUICK_STEPS if quick else common_steps(_RECIPES)),
        scenes=_QUICK_SCENES if quick else _SCENES,
    )
    frame = Frame(
        conditions=conditions,
        start_hash=checkpoint_hash(checkpoint),
        each_type=_QUICK_EACH_TYPE if quick else _EACH_TYPE,
        work=work,
        fast=quick,
        progress=sys.stderr.isatty(),
    )
    rates = RATES[:1] if quick else RATES
    grid_steps = grid_steps or conditions.steps
    study = Study(frame, grid_steps, variants, rates, seed_list, rival_seeds or len(seed_list), jobs, threads)
    validation, test = study.run()
    rows = collected(study.variants, validation, test)
    result: dict[str, Any] = {
        "quick": quick,
        "weights": f"fine-tuned from {'the shipped checkpoint' if start is None else start.name}",
        "start": frame.start_hash,
        "n": 13 * frame.each_type,
        "steps": conditions.steps,
        "grid_steps": grid_steps,
        "scenes": conditions.scenes,
        "seeds": seed_list,
        "path": "both sides in one process; payloads by real encoders, answers from what is decoded of them",
        "format": FORMAT,
        "rows": rows,
        "claims": claims(rows, _TOKENS),
        "validation": [{key: one[key] for key in ("variant", "lr", "rows")} for one in validation],
        "versions": {"python": platform.python_version(), **{name: version(name) for name in _PACKAGES}},
        "machine": platform.machine(),
    }
    click.echo(report.table(rows))
    for claim in result["claims"]:
        holds = {True: "holds", False: "DOES NOT HOLD", None: "not measured"}[claim["holds"]]
        click.echo(f"{holds}: {claim['claim']}", err=True)
    if json_file is not None:
        json_file.parent.mkdir(parents=True, exist_ok=True)
        json_file.write_text(json.dumps(result, indent=1) + "\n", "utf-8")
    if plot is not None:
        report.draw(result, plot)
    if readme is not None:
        report.renew(readme, result)


def main() -> None:
    """Entry point of ``python -m benchmarks.rate_accuracy``."""
    sys.exit(run(lambda: cli.main(standalone_mode=False)))


if __name__ == "__main__":
    main()
