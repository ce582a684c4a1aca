"""Rows of the table: what each seed measured, brought together."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from typing import Any

from qtl_training.rivals.methods import Variant

_MEANS = ("payload_bytes_mean", "payload_bytes_p95", "wire_bytes_mean", "wire_bytes_curve_mean")
_OPTIONAL = ("net_bytes_mean", "header_bytes", "fixed_bytes")


def collected(
    variants: Sequence[Variant], validation: Sequence[dict[str, Any]], test: Sequence[dict[str, Any]]
) -> list[dict[str, Any]]:
    """One row for each method and knob that was measured on the test split.

    Numbers are means over the seeds, ``accuracy_sd`` their sample deviation (None for one seed). Keys a
    method has no use for (``net_bytes_mean`` without a codec's header) are None.
    """
    by_label = {variant.label: variant for variant in variants}
    chosen_by = {(row["row"], result["lr"]): row for result in validation for row in result["rows"]}
    found: dict[str, list[tuple[dict[str, Any], dict[str, Any]]]] = {}
    for result in test:
        for row in result["rows"]:
            found.setdefault(row["row"], []).append((result, row))
    return [_row(name, pairs, by_label, chosen_by[name, pairs[0][0]["lr"]]) for name, pairs in found.items()]


def _row(
    name: str,
    pairs: Sequence[tuple[dict[str, Any], dict[str, Any]]],
    by_label: dict[str, Variant],
    chosen_by: dict[str, Any],
) -> dict[str, Any]:
    results, rows = [pair[0] for pair in pairs], [pair[1] for pair in pairs]
    variant = by_label[results[0]["variant"]]

    def mean(key: str) -> float:
        return statistics.fmean(row[key] for row in rows)

    families = list(rows[0]["accuracy"])
    scores = {family: [row["accuracy"][family] for row in rows] for family in families}
    types = {kind: statistics.fmean(row["types"][kind] for row in rows) for kind in rows[0]["types"]}
    return {
        "method": name,
        "family": rows[0]["family"],
        "kind": variant.kind,
        **{key: mean(key) for key in _MEANS},
        **{key: mean(key) if key in rows[0] else None for key in _OPTIONAL},
        "overhead_bytes_max": max(row["overhead_bytes_max"] for row in rows),
        "accuracy": {family: statistics.fmean(values) for family, values in scores.items()},
        "accuracy_sd": {
            family: statistics.stdev(values) if len(values) > 1 else None for family, values in scores.items()
        },
        "types": types,
        "seeds": [result["seed"] for result in results],
        "by_seed": [
            {"macro": row["accuracy"]["macro"], "payload_bytes_mean": row["payload_bytes_mean"]}
            for row in rows
        ],
        "settings": {**dict(variant.settings), "knob": rows[0]["knob"], "lr": results[0]["lr"]},
        "steps": results[0]["steps"],
        "chosen_by": {
            "split": "validation",
            "macro": chosen_by["accuracy"]["macro"],
            "payload_bytes_mean": chosen_by["payload_bytes_mean"],
        },
        "cpu_seconds_train": [result["cpu_seconds"]["train"] for result in results],
    }
