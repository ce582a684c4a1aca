"""The command ``qtl-export``: parse, export, print."""

from __future__ import annotations

import dataclasses
import importlib
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any, Final, NoReturn

import click

from qtl_core import __version__, exits, shipped
from qtl_core.bundle import UNQUANTIZED_BITS
from qtl_core.codes import MAX_LEVELS, MIN_LEVELS
from qtl_core.errors import MissingExtra
from qtl_export.config import BITS, ExportConfig, levels_of_bits
from qtl_export.progress import Progress
from qtl_export.variants import checked as variant_names

# What the extra [export] brings. Another module that is missing is a mistake of ours, not a missing extra.
_EXTRA: Final = frozenset(
    {"torch", "transformers", "safetensors", "tokenizers", "onnx", "onnxscript", "onnx_ir", "tqdm"}
)

_AUTO: Final = "auto"

_EXAMPLE = """
\b
Examples:
  qtl-export --bits 2                      the shipped checkpoint to ./bundle
  qtl-export --levels 5 CHECKPOINT -o small
  qtl-export --bits auto --pictures DIR    levels from the entropy of these pictures' features
  qtl-export --quantizer tiny -o tiny      the shipped checkpoint's smallest codes
  qtl-export --bits 2 --calibrate DIR MY   a quantizer for a checkpoint that has none, from pictures
  qtl-export --bits 2 QUANTIZER            what qtl-train quantizer made, with the checkpoint it is for
  qtl-export --bits 2 --variant int8-arm64 --variant fp16
                                           graphs for a Raspberry Pi and for a Jetson's GPU beside fp32
  qtl-export --bits 16 -o baseline         unquantized features, the yardstick
  qtl-export --trainable RECIPE.toml       with the training step, for `edge_runtime train`
  qtl-export inspect CHECKPOINT            what it is, and what its client half would cost
  qtl-export --bits 16 org/name@main       a checkpoint of the hub; it stays in the hub's cache
  qtl-export --bits 2 --validate 3500      compare a million codes of the shipped model

\b
Exit codes: 2 wrong command line, 3 pictures or questions, 4 checkpoint, bundle or failed validation,
8 missing extra, 9 this machine (disk).
"""

_INSPECT_EXAMPLE = """
\b
Examples:
  qtl-export inspect                       the shipped checkpoint
  edge_runtime bench --json > pi.json      on the device, with any bundle of about the same size
  qtl-export inspect --bench pi.json org/name
"""


class _ExportByDefault(click.Group):
    """A group whose command ``export`` needs no name: ``qtl-export C`` is ``qtl-export export C``."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        if not args or (args[0] not in self.commands and args[0] not in ("-h", "--help", "--version")):
            args = ["export", *args]
        return super().parse_args(ctx, args)

    def format_usage(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        formatter.write_usage(ctx.command_path, "[OPTIONS] [CHECKPOINT]")
        formatter.write_usage(ctx.command_path, "inspect [OPTIONS] [CHECKPOINT]")

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        # What people look for under --help is how to export.
        export.format_options(ctx, formatter)
        self.format_commands(ctx, formatter)


@click.group(cls=_ExportByDefault, epilog=_EXAMPLE, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="qtl-export")
def cli() -> None:
    """Export CHECKPOINT to a bundle: a client half for the device and a server half.

    CHECKPOINT is a folder, or org/name or org/name@revision on the Hugging Face hub; by default the one that
    comes with this package. Its own configuration says of which family it is: ours (Hugging Face's LLaVA
    layout with quantizers beside it), Hugging Face's LLaVA, LLaVA-OneVision, Idefics3, SmolVLM or PaliGemma,
    TinyLLaVA Factory, or Quantized-TinyLLaVA. The bundle is validated with the device's own code before it is
    put in place.
    """


@cli.command()
@click.argument("checkpoint", required=False, type=click.Path(path_type=Path))
@click.option(
    "--bits",
    type=click.Choice([*map(str, BITS), _AUTO]),
    metavar="B",
    help="Bits per code, 1 to 8; 16 for unquantized half-precision features; auto for the number of levels "
    "that the entropy of the features asks for.",
)
@click.option(
    "--levels",
    type=click.IntRange(MIN_LEVELS, MAX_LEVELS),
    metavar="L",
    help="Levels per code, 2 to 256, instead of --bits.",
)
@click.option(
    "--quantizer",
    default="",
    metavar="NAME",
    help="One of the checkpoint's further quantizers (the shipped one has small and tiny), which also "
    "brings its own number of levels.",
)
@click.option(
    "-o",
    "--output",
    type=click.Path(path_type=Path),
    metavar="BUNDLE",
    help=f"Where to; a bundle that is there is replaced.  [default: {shipped.BUNDLE}]",
)
@click.option(
    "--text",
    type=click.Choice(["plain", "codes"]),
    default="plain",
    show_default=True,
    help="How questions cross: as text, or as quantized embeddings (the paper's mode; hides nothing).",
)
@click.option(
    "--pictures",
    type=click.Path(path_type=Path),
    metavar="DIR",
    help="Validate on these pictures, and measure the entropy coder's tables on them.  [default: the "
    "checkpoint's held-out ones, or those of --calibrate]",
)
@click.option(
    "--calibrate",
    type=click.Path(path_type=Path),
    metavar="DIR",
    help="Fit a quantizer to these pictures, a few hundred at best, in place of the checkpoint's own or "
    "where it has none.",
)
@click.option(
    "--code-dim",
    type=click.IntRange(min=1),
    metavar="N",
    help="Codes a token of the quantizer that --calibrate fits.  [default: the features' width]",
)
@click.option(
    "--questions",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="Say what quantizing costs on these, answered at 16 bit and from codes: a line "
    '{"image": ..., "question": ..., "answer": ...} for each. Paths are from the folder of --calibrate on, '
    "else of --pictures, else the file's own.",
)
@click.option(
    "--validate",
    type=click.IntRange(min=0),
    metavar="N",
    help="Validate on N pictures; 0 does not.  [default: enough for a million codes, at most 256]",
)
@click.option(
    "--validate-answers/--no-validate-answers",
    default=None,
    help="Whether validation also loads the language model and compares answers.  [default: where it is no "
    "larger than the client partition, or than 64 MB]",
)
@click.option(
    "--variant",
    multiple=True,
    metavar="NAME",
    help="A further graph for particular devices; may be repeated: int8-arm64, int8-avx2, int8-avx512, "
    "int8-avx512_vnni, fp16 (for GPUs), static or static-N (a batch of one, or of N). Each is held against "
    "fp32 and refused beyond its bounds (docs/devices.md).",
)
@click.option(
    "--trainable",
    type=click.Path(path_type=Path, dir_okay=False),
    metavar="RECIPE",
    help='Add the client\'s training step of this recipe (of stages kind = "split") as graphs, so that a '
    "device without PyTorch can train with `qtl-train serve RECIPE`. CHECKPOINT and --levels are then by "
    "default the recipe's.",
)
@click.option(
    "--force",
    is_flag=True,
    help="Put the bundle in place although validation of it, or of a variant, failed.",
)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def export(
    checkpoint: Path | None,
    bits: str | None,
    levels: int | None,
    quantizer: str,
    output: Path | None,
    text: str,
    pictures: Path | None,
    calibrate: Path | None,
    code_dim: int | None,
    questions: Path | None,
    validate: int | None,
    validate_answers: bool | None,
    variant: tuple[str, ...],
    trainable: Path | None,
    force: bool,
    as_json: bool,
) -> int:
    """Export CHECKPOINT to a bundle (what qtl-export does when no command is named)."""
    if (bits is not None and levels is not None) or not (bits or levels or quantizer or trainable):
        raise click.UsageError("give either --bits (1 to 8, 16 or auto) or --levels (2 to 256)")
    if bits == str(UNQUANTIZED_BITS) and quantizer:
        raise click.UsageError("--bits 16 is the unquantized model; it goes with no --quantizer")
    if calibrate is not None and (bits == str(UNQUANTIZED_BITS) or quantizer):
        raise click.UsageError("--calibrate fits a quantizer; it goes with neither --bits 16 nor --quantizer")
    if trainable is not None and (calibrate is not None or quantizer or bits == _AUTO):
        raise click.UsageError(
            "a recipe says which quantizer is trained, and at which levels; --trainable goes with none of "
            "--calibrate, --quantizer and --bits auto"
        )
    if calibrate is None and code_dim is not None:
        raise click.UsageError("--code-dim goes with --calibrate; a quantizer that is there has its own")
    if questions is not None and (bits == str(UNQUANTIZED_BITS) or validate == 0):
        raise click.UsageError(
            "--questions compares codes with 16-bit features; it goes with neither --bits 16 nor --validate 0"
        )
    defaults = []
    recipe = None if trainable is None else _recipe(trainable)
    if recipe is not None:
        checkpoint = recipe.checkpoint if checkpoint is None else checkpoint
        levels = recipe.levels if bits is None and levels is None else levels
    if checkpoint is None:
        checkpoint = shipped.digits()
        defaults.append(f"the shipped checkpoint {checkpoint}")
    if output is None:
        output = Path(shipped.BUNDLE)
        defaults.append(f"the output {shipped.BUNDLE}")
    if defaults:
        click.echo(f"using {' and '.join(defaults)} (default)", err=True)
    config = ExportConfig(
        checkpoint=checkpoint,
        levels=levels if bits in (None, _AUTO) else levels_of_bits(int(bits)),
        auto=bits == _AUTO,
        output=output,
        quantizer=quantizer,
        text="codes" if text == "codes" else "plain",
        pictures=pictures,
        calibrate=calibrate,
        code_dim=code_dim,
        questions=questions,
        validate=validate,
        validate_answers=validate_answers,
        force=force,
        variants=variant_names(variant),
        recipe=recipe,
    )
    return _export(config, as_json)


@cli.command(epilog=_INSPECT_EXAMPLE)
@click.argument("checkpoint", required=False, type=click.Path(path_type=Path))
@click.option("--quantizer", default="", metavar="NAME", help="One of the checkpoint's further quantizers.")
@click.option(
    "--bench",
    type=click.Path(path_type=Path, dir_okay=False),
    metavar="FILE",
    help="What `edge_runtime bench --json` wrote on a device: also say how long a picture would take there.",
)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def inspect(checkpoint: Path | None, quantizer: str, bench: Path | None, as_json: bool) -> int:
    """Say what CHECKPOINT is and what its client half would cost, without loading its weights.

    CHECKPOINT is a folder, or org/name on the Hugging Face hub, which is then downloaded whole.

    Family, tower, tokens and widths at the cut, sizes, the client graph's GFLOP and memory for a picture, and
    bytes a picture at 1 to 8 bits. Names and shapes of all tensors are checked.
    """
    with Progress().stage("starting PyTorch"):
        looked = _needing_extra("qtl_export.inspecting")
    found = looked.inspect(shipped.digits() if checkpoint is None else checkpoint, quantizer, bench)
    click.echo(found.as_json() if as_json else found.as_text())
    return 0


def main(args: list[str] | None = None) -> int:
    """Entry point of ``qtl-export``; returns the exit code."""
    with _stoppable():
        return exits.run(lambda: cli.main(args=args, prog_name="qtl-export", standalone_mode=False))


def _export(config: ExportConfig, as_json: bool) -> int:
    progress = Progress()
    with progress.stage("starting PyTorch"):
        exporter = _needing_extra("qtl_export.exporter")
        hub = _needing_extra("qtl_core.nn.hub")
    config = dataclasses.replace(config, checkpoint=hub.checkpoint_folder(config.checkpoint))
    exported = exporter.export(config, progress)
    over = [name for name, entry in exported.variants.items() if not entry.passed]
    if over:
        click.echo(f"warning: over its bounds and put in place by --force: {', '.join(over)}", err=True)
    if not exported.validation["passed"] and exported.validation["pictures"]:
        click.echo("warning: validation failed, and the bundle was put in place by --force", err=True)
    click.echo(exported.as_json() if as_json else exported.as_text())
    return 0


def _recipe(file: Path) -> Any:
    with Progress().stage("starting PyTorch"):
        reading = _needing_extra("qtl_export.trainable.recipe")
    return reading.read_split_recipe(file)


def _needing_extra(module: str) -> Any:
    """Imports what needs PyTorch: --help should not wait for that.

    Raises:
        MissingExtra: a module of the extra is not installed.
    """
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        missing = (error.name or "").partition(".")[0]
        if missing not in _EXTRA:
            raise
        raise MissingExtra.of("export", missing) from error


@contextmanager
def _stoppable() -> Iterator[None]:
    """Lets a polite kill clean up, as Ctrl-C does."""

    def stop(number: int, frame: FrameType | None) -> NoReturn:
        sys.exit(128 + number)

    before = signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


if __name__ == "__main__":
    sys.exit(main())
