"""What ``measure_levels`` found, as text, JSON and a figure."""

from __future__ import annotations

import io
import json
import math
from pathlib import Path
from typing import Any

from qtl_core.errors import InputError, StorageError

_START, _END = "<!-- levels:start -->", "<!-- levels:end -->"


def table(result: dict[str, Any]) -> str:
    """The entropy, the rule's choice, and a line for each level count."""
    channels, atoms = result["channel_entropy_bits"], result["atoms"]["share"]
    name = f", quantizer {result['quantizer']!r}" if result["quantizer"] else ""
    lines = [
        f"{result['pictures']:,} {result['split']} pictures{name}: {result['values']:,} features"
        + (f"; {atoms:.2%} of all are atoms (exact repeats), which are left out" if atoms else ", no atoms"),
        result["because"],
        "" if channels is None else f"with each channel's density for itself it would be {channels:.3f} bits",
        "",
        f"{'L':>4}{'bits':>6}{'k':>7}{'cell/sigma':>12}{'code entropy':>14}{'fixed B':>9}{'coded B':>9}"
        f"{'accuracy, %':>13}",
    ]
    for row in result["table"]:
        mark = "  <- the rule's choice" if row["levels"] == result["recommended_levels"] else ""
        lines.append(
            f"{row['levels']:>4}{row['bits']:>6}{row['k']:>7.2f}{row['cell_sigma']:>12.2f}"
            f"{row['code_entropy_bits']:>14.3f}{row['fixed_bytes']:>9,}{row['coded_bytes']:>9,.1f}"
            f"{row['accuracy']:>13.2f}{mark}"
        )
    whole = result["unquantized"]
    lines.append(f"{'':>4}{16:>6}{'':>33}{whole['bytes']:>9,}{'':>9}{whole['accuracy']:>13.2f}")
    lines.append(f"accuracy: macro over families, {result['n']:,} {result['split']} questions")
    return "\n".join(lines)


def markdown(result: dict[str, Any]) -> str:
    """The same as a Markdown table with a sentence above it."""
    entropy, channels = result["entropy_bits"], result["channel_entropy_bits"]
    said = (
        f"{result['pictures']:,} {result['split']} pictures, {result['values']:,} features, "
        f"{result['batches']} batches: h(z/sigma) = {entropy['mean']:.3f} bits, sd {entropy['sd']:.3f}; "
        f"{result['atoms']['share']:.2%} of all features in atoms. The rule takes "
        f"**{result['recommended_levels']} levels**."
    )
    if channels is not None:
        said += f" With each channel's density for itself: {channels:.3f} bits."
    lines = [
        said + f" Accuracy: macro over families, {result['n']:,} {result['split']} questions.",
        "",
        "| L | bits | cell, sigma | code entropy, bits | fixed length, B | entropy coded, B | accuracy, % |",
        "|---:|---:|---:|---:|---:|---:|---:|",
    ]
    for row in result["table"]:
        bold = "**" if row["levels"] == result["recommended_levels"] else ""
        lines.append(
            f"| {bold}{row['levels']}{bold} | {row['bits']} | {row['cell_sigma']:.2f} | "
            f"{row['code_entropy_bits']:.3f} | {row['fixed_bytes']:,} | {row['coded_bytes']:,.1f} | "
            f"{row['accuracy']:.2f} |"
        )
    whole = result["unquantized"]
    lines.append(f"| | 16 | | | {whole['bytes']:,} | | {whole['accuracy']:.2f} |")
    return "\n".join(lines)


def renew(result: dict[str, Any], page: Path) -> None:
    """Puts the Markdown table between a page's marks.

    Raises:
        InputError: the page has no marks.
        StorageError: it cannot be written.
    """
    before, start, rest = page.read_text("utf-8").partition(_START)
    _, end, after = rest.partition(_END)
    if not start or not end:
        raise InputError(f"{page} has no {_START} ... {_END} to put a table between; add the two marks")
    _write(page, f"{before}{start}\n{markdown(result)}\n{end}{after}".encode())


def write_json(result: dict[str, Any], file: Path) -> None:
    """Writes the whole result.

    Raises:
        StorageError: the file cannot be written.
    """
    _write(file, (json.dumps(result, indent=1) + "\n").encode())


def draw(result: dict[str, Any], file: Path) -> None:
    """Draws the density, the code entropy over L, and accuracy over bytes (PNG).

    Raises:
        StorageError: the file cannot be written.
    """
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(1, 3, figsize=(13.5, 4.2), dpi=130)
    _density(axes[0], result)
    _entropies(axes[1], result)
    _accuracies(axes[2], result)
    figure.tight_layout()
    picture = io.BytesIO()
    figure.savefig(picture, format="png")
    plt.close(figure)
    _write(file, picture.getvalue())


def _density(axes: Any, result: dict[str, Any]) -> None:
    at, entropy = result["density"]["at"], result["entropy_bits"]
    normal = [math.exp(-(x**2) / 2) / math.sqrt(2 * math.pi) for x in at]
    axes.plot(at, result["density"]["values"], color="black", label="features")
    axes.plot(at, normal, "--", color="grey", linewidth=1, label="normal: 2.05 bits")
    axes.set_title(f"h(z/σ) = {entropy['mean']:.2f} ± {entropy['sd']:.2f} bits", fontsize=11)
    axes.set_xlabel("(z - μ) / σ")
    axes.set_ylabel("density")
    axes.set_ylim(bottom=0)
    axes.legend(fontsize=8)


def _entropies(axes: Any, result: dict[str, Any]) -> None:
    rows = result["table"]
    at = range(len(rows))
    axes.plot(
        at, [math.log2(row["levels"]) for row in rows], "s-", color="grey", label="log2 L: fixed length"
    )
    axes.plot(
        at, [row["code_entropy_bits"] for row in rows], "o-", color="tab:blue", label="entropy of the codes"
    )
    if result["channel_entropy_bits"] is not None:
        high_rate = [result["channel_entropy_bits"] - math.log2(row["cell_sigma"]) for row in rows]
        axes.plot(at, high_rate, ":", color="tab:blue", label="h of a channel - log2(cell/σ)")
    axes.axhline(result["entropy_bits"]["mean"], color="black", linestyle="--", linewidth=1, label="h(z/σ)")
    axes.set_xticks(at, [str(row["levels"]) for row in rows])
    axes.set_xlabel("levels L")
    axes.set_ylabel("bits a feature")
    axes.set_ylim(bottom=0)  # the law for fine cells goes below where they are coarse, and says nothing there
    chosen = result["recommended_levels"]
    axes.set_title(f"the smallest L with log2 L ≥ h(z/σ): {chosen}", fontsize=11)
    axes.legend(fontsize=8)


def _accuracies(axes: Any, result: dict[str, Any]) -> None:
    rows = result["table"]
    right = [row["accuracy"] for row in rows]
    axes.plot([row["fixed_bytes"] for row in rows], right, "s-", color="grey", label="fixed length")
    axes.plot([row["coded_bytes"] for row in rows], right, "o-", color="tab:blue", label="entropy coded")
    for row in rows:
        chosen = row["levels"] == result["recommended_levels"]
        axes.annotate(
            f"{row['levels']}" + (" (rule)" if chosen else ""),
            (row["coded_bytes"], row["accuracy"]),
            textcoords="offset points",
            xytext=(7, -9),
            fontsize=8,
            fontweight="bold" if chosen else "normal",
        )
    whole = result["unquantized"]
    axes.axhline(
        whole["accuracy"], color="black", linestyle="--", linewidth=1, label=f"16 bit: {whole['bytes']:,} B"
    )
    axes.set_xlabel("bytes a picture (numbers: L)")
    axes.set_ylabel(f"right answers, % ({result['split']})")
    axes.set_title(f"accuracy, {result['n']:,} questions", fontsize=11)
    axes.grid(alpha=0.3)
    axes.legend(fontsize=8, loc="lower right")


def _write(file: Path, data: bytes) -> None:
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(data)
    except OSError as error:
        raise StorageError(f"cannot write {file} ({error.strerror}); name another file") from error
