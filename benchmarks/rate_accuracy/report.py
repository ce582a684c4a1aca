"""The comparison as a Markdown table and as a figure."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click

from benchmarks.rate_accuracy.study import size_of
from qtl_training.digits.questions import FAMILIES
from qtl_training.rivals.methods import CODED, PICTURES

Row = dict[str, Any]
_START, _END = "<!-- rate:start -->", "<!-- rate:end -->"
_NEAR = 1.0  # points below 16 bit that still count as near
_OURS = ("ours", "shipped")


def table(rows: Sequence[Row]) -> str:
    """Every row, from few bytes to many."""
    names = [*FAMILIES, "macro"]
    head = ["method", "payload, B", "95 %", "without header", "message, B", "CURVE, B", *names]
    lines = [f"| {' | '.join(head)} |", "|---|" + "---:|" * (len(head) - 1)]
    for row in sorted(rows, key=lambda row: row["payload_bytes_mean"]):
        sizes = (row["payload_bytes_mean"], row["payload_bytes_p95"], row["net_bytes_mean"],
                 row["wire_bytes_mean"], row["wire_bytes_curve_mean"])  # fmt: skip
        cells = [f"{size:,.1f}" if size is not None else "" for size in sizes]
        cells += [f"{row['accuracy'][name]:.2f}" for name in FAMILIES]
        sd = row["accuracy_sd"]["macro"]
        cells.append(f"{row['accuracy']['macro']:.2f}" + (f" ± {sd:.2f}" if sd is not None else ""))
        lines.append(f"| {row['method']} | {' | '.join(cells)} |")
    return "\n".join(lines)


def in_short(rows: Sequence[Row]) -> list[Row]:
    """Ours, and each rival's smallest row within a point of 16 bit, or its most accurate one.

    Sizes are compared without a codec's header.
    """
    full = next((row["accuracy"]["macro"] for row in rows if row["method"] == "fp16"), None)
    kept = [row for row in rows if row["kind"] == "ours" or row["method"] == "fp16"]
    for family in dict.fromkeys(row["family"] for row in rows if row["kind"] not in _OURS):
        own = [row for row in rows if row["family"] == family and row["method"] != "fp16"]
        near = [row for row in own if full is not None and row["accuracy"]["macro"] >= full - _NEAR]
        if near:
            kept.append(min(near, key=size_of))
        elif own:
            kept.append(max(own, key=lambda row: float(row["accuracy"]["macro"])))
    return kept


def renew(readme: Path, result: dict[str, Any]) -> None:
    """Puts the short table between the page's markers.

    Raises:
        click.ClickException: if it has none.
    """
    text = readme.read_text("utf-8")
    before, start, rest = text.partition(_START)
    _, end, after = rest.partition(_END)
    if not start or not end:
        raise click.ClickException(f"{readme} has no {_START} ... {_END} to fill")
    seeds = len(result["seeds"])
    fewer = min(len(row["seeds"]) for row in result["rows"] if row["kind"] != "shipped")
    chosen_by = ""
    if result["grid_steps"] != result["steps"]:
        chosen_by = f" (settings chosen after {result['grid_steps']})"
    of_rivals = f" ({fewer} for rivals)" if fewer < seeds else ""
    said = (
        f"Percent right on {result['n']:,} test questions, both sides in one process; mean ± sample "
        f"deviation over {seeds} seed{'s' if seeds > 1 else ''}{of_rivals}, "
        f"{result['steps']} fine-tuning steps each{chosen_by}. "
        "Ours, and of each rival the smallest setting within a point of 16 bit, or its most accurate one. "
        f"*{CODED.capitalize()}*: a rival's codes under our entropy coder instead of at fixed length. "
        "*Without header*: bytes of a file that a constant header does not explain."
    )
    readme.write_text(f"{before}{start}\n{said}\n\n{table(in_short(result['rows']))}\n{end}{after}", "utf-8")


def draw(result: dict[str, Any], file: Path) -> None:
    """Draws macro accuracy over payload bytes, one line for each method, bars over seeds."""
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot as plt

    rows: list[Row] = result["rows"]
    figure, axes = plt.subplots(figsize=(9.5, 6), dpi=150)
    colours = plt.get_cmap("tab20").colors  # type: ignore[attr-defined]
    families = [family for family in dict.fromkeys(row["family"] for row in rows) if family != "shipped"]
    methods = list(dict.fromkeys(family.removesuffix(f"-{CODED}") for family in families))
    for family in families:
        own = sorted((row for row in rows if row["family"] == family), key=size_of)
        ours, coded = own[0]["kind"] == "ours", family.endswith(f"-{CODED}")
        colour = colours[methods.index(family.removesuffix(f"-{CODED}")) % len(colours)]
        macro = [row["accuracy"]["macro"] for row in own]
        axes.errorbar(
            [size_of(row) for row in own],
            macro,
            yerr=[row["accuracy_sd"]["macro"] or 0.0 for row in own],
            fmt=("*" if ours else "o") + ("--" if coded else "-"),
            markersize=11 if ours else 4.5,
            markerfacecolor="white" if coded else colour,
            linewidth=2 if ours else 1,
            capsize=2,
            color=colour,
            label=f"{family} (without header)" if family in PICTURES else family,
            zorder=3 if ours else 2,
        )
        if family in PICTURES:
            axes.plot([row["payload_bytes_mean"] for row in own], macro, ":", alpha=0.6, color=colour)
    full = next((row for row in rows if row["method"] == "fp16"), None)
    if full is not None:
        axes.axhline(full["accuracy"]["macro"], linestyle="--", linewidth=1, color="grey", zorder=1)
    axes.set_xscale("log")
    axes.set_xlabel("payload bytes a picture (dotted: whole files, with the codec's header)")
    axes.set_ylabel("right answers, macro over five families, %")
    axes.set_title(f"Bytes against accuracy, {result['n']:,} test questions (dashed: 16 bit)")
    axes.grid(alpha=0.3, which="both")
    axes.legend(fontsize=8, ncols=2, loc="lower right")
    file.parent.mkdir(parents=True, exist_ok=True)
    figure.tight_layout()
    figure.savefig(file)
    plt.close(figure)
