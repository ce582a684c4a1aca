"""The command ``qtl-train``: parse, call one function, print."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import click

from qtl_core import __version__
from qtl_core.exits import run
from qtl_training.digits.cli import scenes as scenes_command
from qtl_training.distillation.cli import quantizer as quantizer_command
from qtl_training.extras import need_train
from qtl_training.levels.cli import levels as levels_command
from qtl_training.split.cli import client as client_command
from qtl_training.split.cli import data_options
from qtl_training.split.cli import serve as serve_command
from qtl_training.tables_cli import tables as tables_command

_EXAMPLES = """\
\b
Examples:
  qtl-train local training/recipes/digits-quantizer.toml
  qtl-train evaluate runs/digits-quantizer/checkpoint --bits 2 --bits 16
  qtl-train quantizer CHECKPOINT --pictures DIR --output quantizer --bits 2

\b
Exit codes: 2 wrong command line, 3 recipe or pictures, 4 checkpoint, 8 missing extra, 9 this machine.
"""

_LOCAL_EXAMPLE = """\
\b
Example:
  qtl-train local training/recipes/digits-quantizer.toml --run runs/mine
"""

_EVALUATE_EXAMPLE = """\
\b
Example:
  qtl-train evaluate --split validation --bits 2 --bits 16
"""

_PUBLISH_EXAMPLE = """\
\b
Example:
  qtl-train publish runs/quantizer-*/checkpoint -o examples/digits
  qtl-train publish --quantizer tiny runs/tiny-*/checkpoint -o examples/digits
"""


@click.group(epilog=_EXAMPLES)
@click.version_option(__version__, prog_name="qtl-train")
def cli() -> None:
    """Train models that are cut in two."""


cli.add_command(levels_command)
cli.add_command(quantizer_command)
cli.add_command(tables_command)
cli.add_command(scenes_command)
cli.add_command(serve_command)
cli.add_command(client_command)


@cli.command(epilog=_LOCAL_EXAMPLE)
@click.argument("recipe", type=click.Path(path_type=Path))
@click.option(
    "--run",
    "run_folder",
    type=click.Path(path_type=Path),
    metavar="DIR",
    help="Where the run lives.  [default: runs/NAME]",
)
@data_options
@click.option("--start", metavar="DIR", help="Start from this checkpoint instead of the recipe's.")
@click.option(
    "--seed", type=click.IntRange(min=0), metavar="N", help="Use this seed instead of the recipe's."
)
@click.option("--fresh", is_flag=True, help="Begin anew, forgetting what the run's folder holds.")
@click.option(
    "--threads",
    type=click.IntRange(min=1),
    metavar="N",
    help="Threads to compute with.  [default: all cores]",
)
@click.option("--json", "as_json", is_flag=True, help="Print one line of JSON at the end.")
def local(
    recipe: Path,
    run_folder: Path | None,
    data: Path | None,
    pictures: Path | None,
    on_bad_sample: str | None,
    start: str | None,
    seed: int | None,
    fresh: bool,
    threads: int | None,
    as_json: bool,
) -> None:
    """Train both sides of the cut in this process.

    A run that was killed goes on from its newest snapshot when the same command is given again, and
    ends with the weights it would have had.
    """
    need_train()
    import torch

    from qtl_training.local import train
    from qtl_training.recipe import override, read_recipe
    from qtl_training.split.data import left_out

    if threads is not None:
        torch.set_num_threads(threads)
    chosen = override(
        read_recipe(recipe), start=start, seed=seed, data=data, pictures=pictures, on_bad_sample=on_bad_sample
    )
    folder = run_folder if run_folder is not None else Path("runs") / chosen.name
    if run_folder is None:
        click.echo(f"run folder: {folder} (default)", err=True)
    finished = train(chosen, folder, fresh=fresh, progress=sys.stderr.isatty())
    if as_json:
        said = {"checkpoint": str(finished), "recipe": chosen.name, "seed": chosen.seed}
        click.echo(json.dumps({**said, "samples_left_out": left_out(folder)}))
    else:
        click.echo(f"checkpoint: {finished}")


@cli.command(epilog=_EVALUATE_EXAMPLE)
@click.argument("checkpoint", required=False, type=click.Path(path_type=Path))
@click.option("--split", type=click.Choice(["validation", "test"]), default="validation", show_default=True)
@click.option(
    "--bits",
    type=click.Choice([*map(str, range(1, 9)), "16"]),
    multiple=True,
    help="Bit width; 16 is the unquantized model. May be repeated.  [default: all]",
)
@click.option("--levels", type=click.IntRange(2, 256), multiple=True, help="Level count. May be repeated.")
@click.option(
    "--quantizer",
    default="",
    metavar="NAME",
    help="One of the checkpoint's further quantizers, by default at its own number of levels.",
)
@click.option(
    "--text-bits", type=click.IntRange(1, 8), help="Also pass questions through the language quantizer."
)
@click.option("--json", "as_json", is_flag=True, help="Print one line of JSON.")
def evaluate(
    checkpoint: Path | None,
    split: str,
    bits: tuple[str, ...],
    levels: tuple[int, ...],
    quantizer: str,
    text_bits: int | None,
    as_json: bool,
) -> None:
    """Accuracy of a checkpoint on digit scenes, both sides in one process (qtl-eval takes the real path).

    CHECKPOINT is a folder, or org/name or org/name@revision on the Hugging Face hub.
    """
    need_train()
    from qtl_core import shipped
    from qtl_training.evaluating import evaluate_checkpoint, table

    if checkpoint is None:
        checkpoint = shipped.digits()
        click.echo(f"checkpoint: {checkpoint} (shipped)", err=True)
    counts = [0 if width == "16" else 2 ** int(width) for width in bits] + list(levels)
    result = evaluate_checkpoint(
        checkpoint,
        split,
        counts or ([] if quantizer else [0, *(2**width for width in range(1, 9))]),
        quantizer=quantizer,
        text_levels=None if text_bits is None else 2**text_bits,
        progress=sys.stderr.isatty(),
    )
    click.echo(json.dumps(result) if as_json else table(result))


@cli.command(epilog=_PUBLISH_EXAMPLE)
@click.argument("candidates", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option(
    "-o", "--output", required=True, type=click.Path(path_type=Path), metavar="DIR", help="Where to write."
)
@click.option(
    "--quantizer",
    default="",
    metavar="NAME",
    help="Publish only the vision quantizer, under this name, into the checkpoint at DIR.",
)
def publish(candidates: tuple[Path, ...], output: Path, quantizer: str) -> None:
    """Choose the best of several checkpoints on the validation split; write it with its model card."""
    need_train()
    from qtl_training.publishing import publish as publish_best
    from qtl_training.publishing import publish_quantizer

    progress = sys.stderr.isatty()
    if quantizer:
        card = publish_quantizer(candidates, output, quantizer, progress=progress)
        click.echo(f"{candidates[card['chosen']]} -> quantizer {quantizer!r} of {output}")
        return
    card = publish_best(candidates, output, progress=progress)
    click.echo(f"{candidates[card['chosen']]} -> {output}; model card in {output / 'README.md'}")


def main() -> None:
    """Entry point of the console script."""
    sys.exit(run(lambda: cli.main(standalone_mode=False)))


if __name__ == "__main__":
    main()
