"""The paper's figure: accuracy at 1 to 5 bits beside 16 bit, through the real path.

    python -m benchmarks.accuracy_by_bits --json build/bits.json --plot docs/accuracy.png --readme README.md

exports the shipped checkpoint at each bit width, asks every test question through the device's code,
a socket and a server process, and prints the table, draws the figure and renews both in the README.
``--quick`` asks 40 questions of each type instead of 480.
"""

from __future__ import annotations

import json
import platform
import subprocess
import sys
import tempfile
from importlib.metadata import version
from pathlib import Path
from typing import Any

import click

from qtl_core.exits import run
from qtl_training.digits.questions import FAMILIES
from qtl_training.real_evaluation import evaluate_bundle

BITS = (1, 2, 3, 4, 5, 16)
_START, _END = "<!-- accuracy:start -->", "<!-- accuracy:end -->"
_PACKAGES = ("torch", "transformers", "onnxruntime", "numpy", "pyzmq")


@click.command()
@click.option("--quick", is_flag=True, help="40 questions of each type; the JSON says so.")
@click.option(
    "--json", "json_file", type=click.Path(path_type=Path), metavar="FILE", help="Write the numbers here."
)
@click.option("--plot", type=click.Path(path_type=Path), metavar="FILE", help="Draw the figure here (PNG).")
@click.option(
    "--readme", type=click.Path(path_type=Path), metavar="FILE", help="Renew the table in this file."
)
def cli(quick: bool, json_file: Path | None, plot: Path | None, readme: Path | None) -> None:
    """Accuracy and bytes of the shipped checkpoint at 1 to 5 bits beside 16 bit."""
    rows = []
    with tempfile.TemporaryDirectory(prefix="qtl-bits-") as folder:
        for bits in BITS:
            bundle = Path(folder) / str(bits)
            command = [sys.executable, "-m", "qtl_export.cli", "--bits", str(bits), "-o", str(bundle)]
            subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
            rows.append(evaluate_bundle(bundle, "test", each_type=40 if quick else 480))
            click.echo(f"{bits:>2} bits: macro {rows[-1]['accuracy']['macro']:.2f} %", err=True)
    result = {
        "quick": quick,
        "weights": "the shipped checkpoint (trained)",
        "n": rows[0]["n"],
        "rows": rows,
        "versions": {"python": platform.python_version(), **{name: version(name) for name in _PACKAGES}},
        "machine": platform.machine(),
    }
    click.echo(table(rows))
    if json_file is not None:
        json_file.parent.mkdir(parents=True, exist_ok=True)
        json_file.write_text(json.dumps(result, indent=1) + "\n", "utf-8")
    if plot is not None:
        draw(rows, plot)
    if readme is not None:
        renew(readme, rows)


def table(rows: list[dict[str, Any]]) -> str:
    """The numbers as a Markdown table."""
    names = [*FAMILIES, "macro"]
    lines = [
        f"| bits | {' | '.join(names)} | payload, B | message up, B | down, B |",
        "|---:|" + "---:|" * (len(names) + 3),
    ]
    for row in rows:
        cells = [f"{row['accuracy'][name]:.2f}" for name in names]
        cells += [f"{row[key]:,.0f}" for key in ("payload_bytes", "bytes_up", "bytes_down")]
        lines.append(f"| {row['bits']} | {' | '.join(cells)} |")
    guess = rows[0]["question_only"]
    lines.append("| guess | " + " | ".join(f"{guess[name]:.2f}" for name in names) + " | | | |")
    return "\n".join(lines)


def draw(rows: list[dict[str, Any]], file: Path) -> None:
    """Draws accuracy over bits, a line for each family, and 16 bit as the dashed line it is held against."""
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot as plt

    low = [row for row in rows if row["bits"] != 16]
    full = next(row for row in rows if row["bits"] == 16)
    figure, axes = plt.subplots(figsize=(7.2, 4.2), dpi=150)
    colours = plt.get_cmap("tab10").colors  # type: ignore[attr-defined]
    for index, name in enumerate([*FAMILIES, "macro"]):
        strong = name == "macro"
        style: dict[str, Any] = {
            "color": "black" if strong else colours[index],
            "linewidth": 2.4 if strong else 1.3,
        }
        axes.plot(
            [row["bits"] for row in low], [row["accuracy"][name] for row in low], "o-", label=name, **style
        )
        axes.plot([1, 5], [full["accuracy"][name]] * 2, "--", alpha=0.6, color=style["color"], linewidth=1)
    ticks = [f"{row['bits']}\n{row['payload_bytes']:.0f} B" for row in low]
    axes.set_xticks([row["bits"] for row in low], ticks)
    axes.set_xlabel(
        f"bits a code, and bytes of codes a picture (16-bit features: {full['payload_bytes']:,.0f} B)"
    )
    axes.set_ylabel("right answers, %")
    axes.set_title(f"Accuracy over bits, {full['n']:,} test questions (dashed: 16 bit)")
    axes.grid(alpha=0.3)
    axes.legend(ncols=2, loc="lower right")
    file.parent.mkdir(parents=True, exist_ok=True)
    figure.tight_layout()
    figure.savefig(file)
    plt.close(figure)


def renew(readme: Path, rows: list[dict[str, Any]]) -> None:
    """Puts the table between the README's markers."""
    text = readme.read_text("utf-8")
    before, start, rest = text.partition(_START)
    _, end, after = rest.partition(_END)
    if not start or not end:
        raise click.ClickException(f"{readme} has no {_START} ... {_END} to fill")
    said = (
        f"Percent right on {rows[0]['n']:,} test questions through the real path (graph, socket, server); "
        "*guess* sees the question only. Bytes are means a question, whole messages with framing."
    )
    readme.write_text(f"{before}{start}\n{said}\n\n{table(rows)}\n{end}{after}", "utf-8")


if __name__ == "__main__":
    sys.exit(run(lambda: cli.main(standalone_mode=False)))
