"""An audit from settings to report, grid and page."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from qtl_training.audit.grid import draw_grid
from qtl_training.audit.report import report
from qtl_training.audit.running import run_attacks
from qtl_training.audit.settings import AuditSettings
from qtl_training.audit.tables import check_place, renew
from qtl_training.audit.target import Target


def audit(
    settings: AuditSettings, *, grid: Path | None = None, docs: Path | None = None, progress: bool = True
) -> dict[str, Any]:
    """Attacks a checkpoint and reports what was found; docs/audit.md lists the keys.

    Args:
        settings: what to attack and how hard.
        grid: where to draw reconstructions (PNG).
        docs: a page between whose markers the tables go.
        progress: whether to show bars.

    Raises:
        CheckpointError: a checkpoint that cannot be read, or without a named quantizer.
        InputError: a checkpoint for other pictures than digit scenes, or a page without markers.
        StorageError: a file or folder that cannot be written.
    """
    if docs is not None:
        check_place(docs)
    target = Target(settings, progress=progress)
    found = report(settings, target, run_attacks(settings, target))
    if grid is not None:
        draw_grid(grid, found, target)
    if docs is not None:
        renew(docs, found, grid)
    return found
