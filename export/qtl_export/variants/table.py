"""Variants as a table: for a terminal, and for the client half's README."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from qtl_core.bundle import VariantEntry

HEAD = (
    "variant",
    "megabytes",
    "codes that differ",
    "by at most",
    "answers that differ",
    "right",
    "ms",
    "fp32 ms",
)


def rows(variants: Mapping[str, VariantEntry]) -> list[tuple[str, ...]]:
    """One row for each variant, and one for each kind of int8 that was measured and not taken."""
    found = []
    for name, entry in variants.items():
        said = entry.measured
        kind = said.get("kind")
        label = f"{name}, {kind}" if kind else name
        found.append(_row(label if entry.passed else f"{label}, over its bounds", said, entry))
        found += [
            _row(f"{name}, {other}, not taken", numbers, entry)
            for other, numbers in said.get("other_kinds", {}).items()
        ]
    return found


def variant_lines(variants: Mapping[str, VariantEntry]) -> list[str]:
    """Lines for a terminal; none where there is no variant."""
    if not variants:
        return []
    table = [HEAD, *rows(variants)]
    widths = [max(len(row[column]) for row in table) for column in range(len(HEAD))]
    lines = ["  variants, beside PyTorch in fp32 (bounds in brackets):"]
    for first, *rest in table:
        cells = [
            first.ljust(widths[0]),
            *(cell.rjust(width) for cell, width in zip(rest, widths[1:], strict=True)),
        ]
        lines.append("    " + "  ".join(cells))
    return lines


def variant_markdown(variants: Mapping[str, VariantEntry]) -> list[str]:
    """Lines for a README; none where there is no variant."""
    if not variants:
        return []
    return [
        "## Variants",
        "",
        "Graphs for particular devices, beside PyTorch in fp32 on the same pictures, one at a time; bounds",
        "are in brackets. `edge_runtime bench` finds the fastest on a device.",
        "",
        "| " + " | ".join(HEAD) + " |",
        "|---|" + (len(HEAD) - 1) * "---:|",
        *("| " + " | ".join(row) + " |" for row in rows(variants)),
        "",
    ]


def _row(label: str, said: Mapping[str, Any], entry: VariantEntry) -> tuple[str, ...]:
    known = said["answers_known"]
    right = f"{said['right']} of {known}, {said['full_right']} in fp32" if known else "-"
    asked = said["answers_asked"]
    return (
        label,
        f"{said['bytes'] / 1e6:.1f}",
        f"{100 * said['share']:.3g} % ({100 * entry.share_bound:.3g})",
        f"{said['largest']:.3g} ({entry.largest_bound:.3g})",
        f"{said['answers_differ']} of {asked}" if asked else "-",
        right,
        f"{said['ms']:.2f}",
        f"{said['full_ms']:.2f}",
    )
