"""The command ``qtl-audit``: what leaks from what crosses the wire."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import click

from qtl_core import __version__, shipped
from qtl_core.exits import run
from qtl_core.wire import MAX_MULTIPLE
from qtl_training.audit.settings import ATTACKS, BITS, FULL, PADS, QUICK, AuditSettings
from qtl_training.extras import need_train
from qtl_training.training_audits.cli import hijack as hijack_command
from qtl_training.training_audits.cli import labels as labels_command

_WORK = "build/audit"

_EXAMPLE = """\
\b
Examples:
  qtl-audit --quick
  qtl-audit --json build/audit.json --grid docs/audit.png --docs docs/audit.md
  qtl-audit --attack lengths --quantizer small --pad 96

\b
Exit codes: 2 wrong command line, 3 input, 4 checkpoint, 8 missing extra, 9 this machine.
"""


_GROUP_EXAMPLE = """\
\b
Examples:
  qtl-audit --quick
  qtl-audit labels --quick

\b
Exit codes: 2 wrong command line, 3 input, 4 checkpoint, 8 missing extra, 9 this machine.
"""


class _Audits(click.Group):
    """A group whose first command needs no name: `qtl-audit --quick` is `qtl-audit wire --quick`."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        if not args or args[0] not in (*self.commands, "--help", "--version"):
            args = ["wire", *args]
        return super().parse_args(ctx, args)


@click.group(cls=_Audits, epilog=_GROUP_EXAMPLE)
@click.version_option(__version__, prog_name="qtl-audit")
def cli() -> None:
    """Attack what crosses the wire, and say what is not hidden and from whom.

    Without a command's name it is `wire`.
    """


@cli.command(epilog=_EXAMPLE)
@click.argument("checkpoint", required=False, type=click.Path(path_type=Path))
@click.option(
    "--attack",
    "attacks",
    type=click.Choice(ATTACKS),
    multiple=True,
    help="Only this attack. May be repeated.  [default: all]",
)
@click.option(
    "--bits",
    type=click.Choice([*map(str, range(1, 9)), "16"]),
    multiple=True,
    metavar="B",
    help="Bit width of the checkpoint's own quantizer, 1 to 8; or 16, features, which are always audited. "
    f"May be repeated.  [default: 16 and {', '.join(map(str, BITS))}]",
)
@click.option("--levels", type=click.IntRange(2, 256), multiple=True, help="Level count. May be repeated.")
@click.option(
    "--quantizer",
    "quantizers",
    multiple=True,
    metavar="NAME",
    help="A further quantizer of the checkpoint, at its own level count. May be repeated.  [default: all, "
    "unless --bits or --levels is given]",
)
@click.option(
    "--seeds",
    type=click.IntRange(min=1),
    metavar="N",
    help="Attackers for each representation.  [default: 3; with --quick 1]",
)
@click.option(
    "--pad",
    "pads",
    type=click.IntRange(1, MAX_MULTIPLE),
    multiple=True,
    metavar="N",
    help="Also send questions with both frames padded to multiples of N bytes. May be repeated.  "
    f"[default: {', '.join(map(str, PADS))}]",
)
@click.option("--quick", is_flag=True, help="Weaker attackers on fewer scenes; the report says so.")
@click.option(
    "--json", "json_file", type=click.Path(path_type=Path), metavar="FILE", help="Write the numbers here."
)
@click.option(
    "--grid", type=click.Path(path_type=Path), metavar="FILE", help="Draw reconstructions here (PNG)."
)
@click.option(
    "--docs",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="Renew the tables between this page's audit markers.",
)
@click.option(
    "--work",
    type=click.Path(path_type=Path),
    metavar="DIR",
    help=f"Finished pieces are kept here; a killed audit goes on from them.  [default: {_WORK}]",
)
@click.option("--threads", type=click.IntRange(min=1), metavar="N", help="Threads to compute with.")
def wire(
    checkpoint: Path | None,
    attacks: tuple[str, ...],
    bits: tuple[str, ...],
    levels: tuple[int, ...],
    quantizers: tuple[str, ...],
    seeds: int | None,
    pads: tuple[int, ...],
    quick: bool,
    json_file: Path | None,
    grid: Path | None,
    docs: Path | None,
    work: Path | None,
    threads: int | None,
) -> None:
    """What codes and messages tell: pictures from codes, questions from codes, pictures from lengths.

    Every representation is attacked with the same scenes, steps and seeds, and 16-bit features always
    are: an attacker that gets nothing out of those proves nothing about the others.
    """
    if grid is not None and attacks and "inversion" not in attacks:
        raise click.UsageError("--grid shows the inversion attack; add --attack inversion")
    need_train()
    import torch

    from qtl_training.audit.auditing import audit

    if threads is not None:
        torch.set_num_threads(threads)
    chosen = [*(2 ** int(width) for width in bits if width != "16"), *levels]
    named = bool(bits or levels or quantizers)
    settings = AuditSettings(
        checkpoint=shipped.digits() if checkpoint is None else checkpoint,
        shipped=checkpoint is None,
        work=Path(_WORK) if work is None else work,
        attacks=tuple(dict.fromkeys(attacks)) or ATTACKS,
        levels=tuple(chosen) if named else tuple(2**width for width in BITS),
        quantizers=quantizers if named else None,
        seeds=seeds or (1 if quick else 3),
        pads=tuple(sorted(set(pads))) or PADS,
        effort=QUICK if quick else FULL,
        quick=quick,
    )
    if checkpoint is None:
        click.echo(f"checkpoint: {settings.checkpoint} (shipped)", err=True)
    if work is None:
        click.echo(f"work folder: {settings.work} (default)", err=True)
    found = audit(settings, grid=grid, docs=docs, progress=sys.stderr.isatty())
    if json_file is not None:
        json_file.parent.mkdir(parents=True, exist_ok=True)
        json_file.write_text(json.dumps(found, indent=1) + "\n", "utf-8")
    click.echo("\n".join(found["summary"]))


cli.add_command(hijack_command)
cli.add_command(labels_command)


def main() -> None:
    """Entry point of the console script."""
    sys.exit(run(lambda: cli.main(standalone_mode=False)))


if __name__ == "__main__":
    main()
