"""``qtl-audit labels`` and ``qtl-audit hijack``: parse, call one function, print."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import click

from qtl_core import shipped
from qtl_core.errors import StorageError
from qtl_training.extras import need_train

_PATH = click.Path(path_type=Path)

_LABELS_EXAMPLE = """\
\b
Example:
  qtl-audit labels --quick
  qtl-audit labels --json build/labels.json --docs docs/audit.md
"""


@click.command(epilog=_LABELS_EXAMPLE)
@click.argument("checkpoint", required=False, type=_PATH)
@click.option("--seeds", type=click.IntRange(min=1), metavar="N", help="Runs.  [default: 3; with --quick 1]")
@click.option("--quick", is_flag=True, help="Fewer steps and questions; the report says so.")
@click.option("--json", "json_file", type=_PATH, metavar="FILE", help="Write the numbers here.")
@click.option("--docs", type=_PATH, metavar="FILE", help="Renew the table between this page's markers.")
@click.option("--threads", type=click.IntRange(min=1), metavar="N", help="Threads to compute with.")
def labels(
    checkpoint: Path | None,
    seeds: int | None,
    quick: bool,
    json_file: Path | None,
    docs: Path | None,
    threads: int | None,
) -> None:
    """What a server recovers of labels in training: shared, private with scores, private with hidden states.

    From the outputs that it sent and the gradients that came back, at every `grad_bits`, at the start and at
    the end of training.
    """
    folder = _begin(checkpoint, threads)
    from qtl_training.training_audits import labels as audit
    from qtl_training.training_audits.page import check_place, renew

    if docs is not None:
        check_place(docs, "labels")
    found = audit.audit_labels(
        folder, effort=audit.QUICK if quick else audit.FULL, seeds=seeds or (1 if quick else 3), quick=quick,
        shipped=checkpoint is None, progress=sys.stderr.isatty(),
    )  # fmt: skip
    if docs is not None:
        renew(docs, "labels", audit.markdown(found))
    _end(found, json_file)


_WORK = "build/audit"

_HIJACK_EXAMPLE = """\
\b
Example:
  qtl-audit hijack --quick
  qtl-audit hijack --json build/hijack.json --docs docs/audit.md
"""


@click.command(epilog=_HIJACK_EXAMPLE)
@click.argument("checkpoint", required=False, type=_PATH)
@click.option("--quick", is_flag=True, help="Fewer steps and weaker attackers; the report says so.")
@click.option("--seed", type=click.IntRange(min=1), default=1, show_default=True, metavar="N")
@click.option("--json", "json_file", type=_PATH, metavar="FILE", help="Write the numbers here.")
@click.option("--docs", type=_PATH, metavar="FILE", help="Renew the tables between this page's markers.")
@click.option(
    "--work", type=_PATH, metavar="DIR", help=f"Features and reader are kept here.  [default: {_WORK}]"
)
@click.option("--threads", type=click.IntRange(min=1), metavar="N", help="Threads to compute with.")
def hijack(
    checkpoint: Path | None,
    quick: bool,
    seed: int,
    json_file: Path | None,
    docs: Path | None,
    work: Path | None,
    threads: int | None,
) -> None:
    """How far a server can steer its client into leaking pictures, and what the client can notice.

    The server returns gradients that draw the client's codes towards those of a partition of its own, which
    it can draw as pictures (feature-space hijacking); beside it, one that does so by half, and an honest one.
    """
    folder = _begin(checkpoint, threads)
    if work is None:
        click.echo(f"work folder: {_WORK} (default)", err=True)
    from qtl_training.training_audits import hijack as audit
    from qtl_training.training_audits.hijack_report import markdown
    from qtl_training.training_audits.page import check_place, renew

    if docs is not None:
        check_place(docs, "hijack")
    found = audit.audit_hijack(
        folder, effort=audit.QUICK if quick else audit.FULL, work=work or Path(_WORK), seed=seed, quick=quick,
        shipped=checkpoint is None, progress=sys.stderr.isatty(),
    )  # fmt: skip
    if docs is not None:
        renew(docs, "hijack", markdown(found))
    _end(found, json_file)


def _begin(checkpoint: Path | None, threads: int | None) -> Path:
    need_train()
    import torch

    if threads is not None:
        torch.set_num_threads(threads)
    if checkpoint is not None:
        return checkpoint
    click.echo(f"checkpoint: {shipped.digits()} (shipped)", err=True)
    return shipped.digits()


def _end(found: dict[str, Any], json_file: Path | None) -> None:
    if json_file is not None:
        try:
            json_file.parent.mkdir(parents=True, exist_ok=True)
            json_file.write_text(json.dumps(found, indent=1) + "\n", "utf-8")
        except OSError as error:
            raise StorageError(f"{json_file} cannot be written: {error.strerror}") from error
    click.echo("\n".join(found["summary"]))
