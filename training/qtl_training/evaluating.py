"""Accuracy of a checkpoint on the digit questions, by family and type, beside guessing from the question."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tqdm import tqdm

from qtl_core.codes import bits_of, packed_size
from qtl_core.nn.checkpoint import load_checkpoint
from qtl_training.answering import answered_right
from qtl_training.digits.dataset import question_only, question_set, share_right
from qtl_training.digits.questions import FAMILIES
from qtl_training.features import tower_features


def evaluate_checkpoint(
    folder: Path,
    split: str,
    levels: Sequence[int],
    *,
    quantizer: str = "",
    text_levels: int | None = None,
    progress: bool = True,
) -> dict[str, Any]:
    """Accuracy in percent at each level count, both sides of the cut in one process.

    Args:
        folder: the checkpoint.
        split: "validation" or "test".
        levels: level counts; 0 is the unquantized model. Empty: the quantizer's own.
        quantizer: one of the checkpoint's further quantizers; "" for its own.
        text_levels: L of the language quantizer; None where questions travel as text.
        progress: whether to show bars.

    Returns:
        ``split``, ``n``, ``question_only`` and ``question_only_types``, and ``table``: for each level
        count ``levels, bits, payload_bytes, accuracy{family, macro}, types``.
    """
    checkpoint = load_checkpoint(folder, quantizer=quantizer)
    data = question_set(split)
    features = tower_features(checkpoint.model.vision, data.scenes, progress=progress)
    guess, guess_types = question_only(data.questions)
    coder = checkpoint.model.vision_quantizer
    tokens = features.shape[1]
    counts = levels or [checkpoint.settings.vision.levels]
    rows = []
    for count in tqdm(counts, desc="level counts", disable=not progress or None):
        right = answered_right(checkpoint, features, data.questions, count or None, text_levels=text_levels)
        by_family, by_type = share_right(data.questions, right)
        codes = tokens // coder.merge**2 * coder.code_dim
        size = packed_size(codes, count) if count else 2 * tokens * coder.width
        rows.append(
            {
                "levels": count,
                "bits": bits_of(count) if count else 16,
                "payload_bytes": size,
                "accuracy": by_family,
                "types": by_type,
            }
        )
    return {
        "split": split,
        "quantizer": quantizer,
        "n": len(data.questions),
        "text_levels": text_levels,
        "question_only": guess,
        "question_only_types": guess_types,
        "table": rows,
    }


def table(result: dict[str, Any]) -> str:
    """The result as text: families, then types, one column for each level count."""
    columns = [
        ("guess", result["question_only"], result["question_only_types"]),
        *(
            ("16 bit" if row["levels"] == 0 else f"L={row['levels']}", row["accuracy"], row["types"])
            for row in result["table"]
        ),
    ]
    lines = [f"{result['split']}, {result['n']} questions, percent right; guess: from the question alone"]
    lines.append(f"{'':16}" + "".join(f"{name:>9}" for name, _, _ in columns))
    for family, kinds in FAMILIES.items():
        lines.append(f"{family:16}" + "".join(f"{values[family]:9.2f}" for _, values, _ in columns))
        lines += [
            f"  {kind:14}" + "".join(f"{values[kind]:9.2f}" for _, _, values in columns) for kind in kinds
        ]
    lines.append(f"{'macro':16}" + "".join(f"{values['macro']:9.2f}" for _, values, _ in columns))
    return "\n".join(lines)
