"""A report's place in a page of the documentation: between two markers of its own."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from qtl_core.errors import InputError


def check_place(page: Path, name: str) -> None:
    """Checks that a page has a place for a report, before anything slow begins.

    Raises:
        InputError: if it cannot be read, or has no markers.
    """
    _parts(page, name)


def renew(page: Path, name: str, text: str) -> None:
    """Puts a report between the page's markers ``<!-- NAME:start -->`` and ``<!-- NAME:end -->``.

    Raises:
        InputError: as ``check_place``.
    """
    before, start, end, after = _parts(page, name)
    page.write_text(f"{before}{start}\n{text}\n{end}{after}", "utf-8")


def table(head: Sequence[str], rows: Sequence[Sequence[str]], *, words: int = 1) -> str:
    """A Markdown table whose first ``words`` columns are text and whose others are numbers."""
    lines = [head, ["---"] * words + ["---:"] * (len(head) - words), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def _parts(page: Path, name: str) -> tuple[str, str, str, str]:
    start, end = f"<!-- {name}:start -->", f"<!-- {name}:end -->"
    try:
        text = page.read_text("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{page} cannot be read ({error}); name a Markdown page with --docs") from error
    before, found, rest = text.partition(start)
    _, closed, after = rest.partition(end)
    if not found or not closed:
        raise InputError(
            f"{page} has no {start} ... {end} to fill; put these two lines where the table belongs"
        )
    return before, start, end, after
