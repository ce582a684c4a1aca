"""The command ``qtl-train quantizer``: parse, train, print."""

from __future__ import annotations

import sys
from pathlib import Path

import click

from qtl_core import shipped
from qtl_core.codes import MAX_LEVELS, MIN_LEVELS
from qtl_training.extras import need_train

_EXAMPLE = """\
\b
Examples:
  qtl-train quantizer CHECKPOINT --pictures DIR --output quantizer --bits 2
  qtl-train quantizer CHECKPOINT --pictures DIR --output small --bits 2 --code-dim 64 --questions asked.jsonl
  qtl-export --bits 2 quantizer

\b
Exit codes: 2 wrong command line, 3 pictures, prompts, questions or settings, 4 checkpoint, 8 missing extra,
9 this machine.
"""


@click.command(epilog=_EXAMPLE)
@click.argument("checkpoint", required=False)
@click.option(
    "--pictures",
    type=click.Path(path_type=Path),
    required=True,
    metavar="DIR",
    help="Pictures to fit and fine-tune on; every fifth is kept aside to measure on.",
)
@click.option(
    "-o",
    "--output",
    type=click.Path(path_type=Path),
    required=True,
    metavar="DIR",
    help="Where the quantizer goes; qtl-export takes this folder as a checkpoint.",
)
@click.option("--bits", type=click.IntRange(1, 8), metavar="B", help="Bits per code, 1 to 8.  [default: 2]")
@click.option(
    "--levels",
    type=click.IntRange(MIN_LEVELS, MAX_LEVELS),
    metavar="L",
    help="Levels per code, 2 to 256, instead of --bits.",
)
@click.option(
    "--code-dim",
    type=click.IntRange(min=1),
    metavar="N",
    help="Codes a token.  [default: the features' width]",
)
@click.option(
    "--steps",
    type=click.IntRange(min=0),
    default=200,
    show_default=True,
    metavar="N",
    help="Steps of fine-tuning; 0 leaves the quantizer as it is fitted in closed form.",
)
@click.option(
    "--batch",
    type=click.IntRange(min=1),
    default=32,
    show_default=True,
    metavar="N",
    help="Pictures a step, each with one prompt.",
)
@click.option(
    "--lr",
    type=click.FloatRange(min=0, min_open=True),
    default=5e-3,
    show_default=True,
    help="Highest learning rate, relative to the size of what it moves.",
)
@click.option(
    "--feature-weight",
    type=click.FloatRange(min=0),
    default=1.0,
    show_default=True,
    help="Of the features' distance in the loss.",
)
@click.option(
    "--logit-weight",
    type=click.FloatRange(min=0),
    default=1.0,
    show_default=True,
    help="Of the divergence of the decoder's next tokens in the loss; 0 leaves the decoder out.",
)
@click.option(
    "--prompts",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="What to ask about the pictures, a prompt on each line.  [default: 16 general ones]",
)
@click.option(
    "--answer-tokens",
    type=click.IntRange(min=1),
    default=16,
    show_default=True,
    metavar="N",
    help="Tokens of the model's own answer to a prompt that are looked at, at most.",
)
@click.option(
    "--questions",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help='Measure on these: a line {"image": ..., "question": ..., "answer": ...} for each; paths from the '
    "picture folder on. Nothing is trained on them.",
)
@click.option(
    "--max-pictures",
    type=click.IntRange(min=1),
    default=2048,
    show_default=True,
    metavar="N",
    help="Pictures that are used, at most.",
)
@click.option(
    "--cache",
    type=click.Path(path_type=Path),
    metavar="DIR",
    help="Keep the tower's features here, for further runs on the same pictures.  [default: in the output "
    "folder while the run lasts]",
)
@click.option(
    "--seed",
    type=click.IntRange(min=0),
    default=1,
    show_default=True,
    metavar="N",
    help="Of the order of pictures and prompts.",
)
@click.option("--device", default="cpu", show_default=True, help="Where to compute, as PyTorch names it.")
@click.option(
    "--threads",
    type=click.IntRange(min=1),
    metavar="N",
    help="Threads to compute with.  [default: all cores]",
)
@click.option("--fresh", is_flag=True, help="Begin anew, forgetting what the output folder holds.")
@click.option(
    "--json",
    "json_file",
    type=click.Path(path_type=Path, dir_okay=False),
    metavar="FILE",
    help="Write the numbers here.",
)
def quantizer(
    checkpoint: str | None,
    pictures: Path,
    output: Path,
    bits: int | None,
    levels: int | None,
    code_dim: int | None,
    steps: int,
    batch: int,
    lr: float,
    feature_weight: float,
    logit_weight: float,
    prompts: Path | None,
    answer_tokens: int,
    questions: Path | None,
    max_pictures: int,
    cache: Path | None,
    seed: int,
    device: str,
    threads: int | None,
    fresh: bool,
    json_file: Path | None,
) -> None:
    """Make a quantizer for CHECKPOINT, of any family, from pictures alone.

    It is fitted in closed form, as qtl-export --calibrate does, and then fine-tuned with tower and decoder
    held still: what comes back should be the features that went in, and the decoder should go on as after
    these, in its own answers to general prompts. CHECKPOINT is neither changed nor copied: the result
    names it. A run that was killed goes on when the same command is given again, and ends with the weights
    it would have had.
    """
    if bits is not None and levels is not None:
        raise click.UsageError("give either --bits (1 to 8) or --levels (2 to 256)")
    need_train()
    import msgspec
    import torch

    from qtl_training.distillation.run import train_quantizer
    from qtl_training.distillation.settings import DistillSettings

    if threads is not None:
        torch.set_num_threads(threads)
    if checkpoint is None:
        checkpoint = str(shipped.digits())
        click.echo(f"checkpoint: {checkpoint} (shipped)", err=True)
    settings = DistillSettings(
        checkpoint=checkpoint,
        pictures=pictures,
        output=output,
        levels=levels if levels is not None else 1 << (2 if bits is None else bits),
        code_dim=code_dim,
        steps=steps,
        batch=batch,
        lr=lr,
        feature_weight=feature_weight,
        logit_weight=logit_weight,
        answer_tokens=answer_tokens,
        prompts=prompts,
        questions=questions,
        max_pictures=max_pictures,
        cache=cache,
        seed=seed,
        device=device,
    )
    trained = train_quantizer(settings, fresh=fresh, progress=sys.stderr.isatty())
    if json_file is not None:
        json_file.write_bytes(msgspec.json.format(msgspec.json.encode(trained), indent=1) + b"\n")
    click.echo(trained.as_text())
