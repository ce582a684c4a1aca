"""The README of a shipped checkpoint, from what ``publish`` measured."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

from qtl_core.nn.checkpoint import QUANTIZERS_FOLDER, Checkpoint, load_checkpoint
from qtl_training.digits.questions import FAMILIES

_MADE_BY = """\
## Made by

```
qtl-train local training/recipes/digits.toml
for name in small tiny; do
  qtl-train local training/recipes/$name.toml --start runs/digits/checkpoint
  qtl-train publish --quantizer $name runs/$name/checkpoint -o runs/digits/checkpoint
done
qtl-train local training/recipes/digits-beside.toml
for seed in 1 2 3; do
  qtl-train local training/recipes/digits-quantizer.toml --start runs/digits-beside/checkpoint \\
    --seed $seed --run runs/quantizer-$seed
done
qtl-train publish runs/quantizer-*/checkpoint -o examples/digits
for name in small tiny; do
  for seed in 1 2 3; do
    qtl-train local training/recipes/$name.toml --seed $seed --run runs/$name-$seed
  done
  qtl-train publish --quantizer $name runs/$name-*/checkpoint -o examples/digits
done
```
"""

_LIMITS = """\
## What it is not for

It knows handwritten digits on a grid and the wordings it was trained on. It is here to show and test
the system end to end with something that can be right or wrong, not to read other pictures.
"""


def model_card(card: dict[str, Any], folder: Path) -> str:
    """The text of the README.

    Args:
        card: what ``publish`` returns.
        folder: the checkpoint.
    """
    checkpoint = load_checkpoint(folder)
    parts = [_head(checkpoint), _MADE_BY, _by_bits(card), _by_type(card)]
    parts += [_further(checkpoint, card)] if checkpoint.quantizers else []
    parts.append(_LIMITS)
    return "\n".join(parts)


def row_at(result: dict[str, Any], levels: int) -> dict[str, Any]:
    """The row of an evaluation at one level count (0: unquantized)."""
    found: dict[str, Any] = next(row for row in result["table"] if row["levels"] == levels)
    return found


def _head(checkpoint: Checkpoint) -> str:
    model = checkpoint.model
    parts = {
        "tower and connector": model.vision,
        "language model": model.decoder,
        "vision quantizer": model.vision_quantizer,
        "language quantizer": model.language_quantizer,
    }
    sizes = {name: sum(p.numel() for p in part.parameters()) for name, part in parts.items()}
    listed = "\n".join(f"- {name}: {count:,} parameters" for name, count in sizes.items())
    quantizer = model.vision_quantizer
    return f"""\
# Digit scenes, 96 x 96

![one of the held-out pictures](scene.png)

A LLaVA-layout model (SigLIP tower with a convolutional stem, MLP connector, Llama decoder, byte-level
BPE) with {sum(sizes.values()):,} parameters, trained from scratch on pictures of real handwritten
digits (scikit-learn's 1,797 scans, split by scan: 70 % train, 15 % validation, 15 % test). It answers
five families of questions about coloured digits in a 3x3 grid, and nothing else.

{listed}
- at the cut: {checkpoint.llava.config.image_seq_length} tokens of {quantizer.width}, merged \
{quantizer.merge} x {quantizer.merge}, {quantizer.code_dim} codes each
"""


def _coded(card: dict[str, Any], levels: int) -> str:
    found = card["coded"].get(str(levels))
    return "-" if found is None else f"{found:.1f}"


def _by_bits(card: dict[str, Any]) -> str:
    best, seeds = card["chosen"], card["test"]
    chosen = seeds[best]
    lines = [
        "## Accuracy at each bit width",
        "",
        f"Macro accuracy in percent over five families, {chosen['n']:,} test questions, both sides in one",
        f"process. Candidate {best + 1} of {len(seeds)} (seeds of the quantizer fine-tune) was chosen on the",
        "validation split, by the mean of 2 bits and 16 bit; the last column is mean and standard deviation",
        "over the seeds. `card.json` has every number.",
        "",
        "*Coded* is the mean of entropy-coded pictures of the validation split.",
        "",
        "| bits | levels | packed, bytes | coded, bytes | validation | test | test, all seeds |",
        "|---:|---:|---:|---:|---:|---:|---:|",
    ]
    for row in chosen["table"]:
        spread = [row_at(result, row["levels"])["accuracy"]["macro"] for result in seeds]
        deviation = float(np.std(spread, ddof=1)) if len(spread) > 1 else 0.0
        validation = row_at(card["validation"], row["levels"])["accuracy"]["macro"]
        lines.append(
            f"| {row['bits']} | {row['levels'] or '-'} | {row['payload_bytes']:,} | "
            f"{_coded(card, row['levels'])} | {validation:.2f} | "
            f"{row['accuracy']['macro']:.2f} | {np.mean(spread):.2f} ± {deviation:.2f} |"
        )
    coded = card["test_coded_text"]["table"][0]["accuracy"]["macro"]
    lines += ["", f'With the question coded as well (`text = "codes"`, 2 bits for both): {coded:.2f}.', ""]
    return "\n".join(lines)


def _further(checkpoint: Checkpoint, card: dict[str, Any]) -> str:
    baseline = row_at(card["test"][card["chosen"]], 0)["accuracy"]["macro"]
    lines = [
        "## Further quantizers",
        "",
        "Fewer codes for the same weights: `qtl-export --quantizer NAME`. Each was fitted alone, everything",
        "else held still, and chosen on the validation split; the last column is mean and standard deviation",
        "over the seeds. The language model has seen such quantizers in training.",
        f"Unquantized: {baseline:.2f}.",
        "",
        "| quantizer | tokens x codes | levels | packed, bytes | coded, bytes | test | test, all seeds |",
        "|---|---:|---:|---:|---:|---:|---:|",
    ]
    for name in checkpoint.quantizers:
        folder = checkpoint.path / QUANTIZERS_FOLDER / name
        settings = load_checkpoint(checkpoint.path, quantizer=name).settings.vision
        found = json.loads((folder / "card.json").read_text("utf-8"))
        rows = [result["table"][0] for result in found["test"]]
        spread = [row["accuracy"]["macro"] for row in rows]
        deviation = float(np.std(spread, ddof=1)) if len(spread) > 1 else 0.0
        row = rows[found["chosen"]]
        tokens = checkpoint.llava.config.image_seq_length // settings.merge**2
        lines.append(
            f"| `{name}` | {tokens} x {settings.code_dim} | {row['levels']} | {row['payload_bytes']:,} | "
            f"{_coded(found, row['levels'])} | {row['accuracy']['macro']:.2f} | "
            f"{np.mean(spread):.2f} ± {deviation:.2f} |"
        )
    return "\n".join([*lines, ""])


def _by_type(card: dict[str, Any]) -> str:
    test = card["test"][card["chosen"]]
    full, two = row_at(test, 0), row_at(test, 4)
    lines = [
        "## Accuracy by question type (test)",
        "",
        "| type | 16 bit | 2 bits | guess from the question alone |",
        "|---|---:|---:|---:|",
    ]
    for family, kinds in FAMILIES.items():
        values = full["accuracy"][family], two["accuracy"][family], test["question_only"][family]
        lines.append(f"| **{family}** | " + " | ".join(f"**{value:.2f}**" for value in values) + " |")
        for kind in kinds:
            values = full["types"][kind], two["types"][kind], test["question_only_types"][kind]
            lines.append(f"| {kind} | " + " | ".join(f"{value:.2f}" for value in values) + " |")
    return "\n".join([*lines, ""])
