"""What ``qtl-audit hijack`` found: signs over a run, the summary and the tables."""

from __future__ import annotations

from typing import Any, Final

import numpy as np

from qtl_training.audit.inversion import ORIGINAL
from qtl_training.training_audits.page import table
from qtl_training.training_audits.watching import SIGNS, told_apart

BEFORE: Final = "before"
_STEERING: Final = ("half", "hijacking")


def summary(found: dict[str, Any]) -> list[str]:
    """What was drawn before and after, and which signs tell the servers apart."""
    lines = [f"Hijacking, by {found['adversary']}, at {found['representation']}:"]
    for row in found["rows"]:
        drawn, taken = row["leaks"], "" if row["server"] != BEFORE else " (no step taken)"
        lines.append(
            f"- {row['server']}: {drawn['psnr']:.2f} dB, {drawn['reader']['digits']:.1f} % of digits "
            f"read off the drawings{taken}"
        )
    for server in _STEERING:
        signs = found["signs"][server]
        named = [
            f"{name} ({one['told_apart']:.2f})" for name, one in signs.items() if one["told_apart"] > 0.9
        ]
        lines.append(f"- {server} is told from honest by {', '.join(named) or 'nothing that was watched'}")
    return lines


def markdown(found: dict[str, Any]) -> str:
    """Both tables, and what they were measured on."""
    head = ["server", "decoder learns from", "PSNR, dB", "SSIM", "digits, %", "colours, %", "positions, %"]
    rows = []
    for row in found["rows"]:
        rows.append([row["server"], "the client's weights", *_drawn(row["leaks"])])
        if row["pilot_leaks"] is not None:
            rows.append([row["server"], "the pilot", *_drawn(row["pilot_leaks"])])
    rows.append([ORIGINAL, "", *_drawn(found[ORIGINAL])])
    rows_of_signs = []
    for name, label in SIGNS.items():
        of = {server: found["signs"][server][name] for server in ("honest", *_STEERING)}
        cells = [f"{one['mean']:.3g} ± {one['sd']:.2g}" for one in of.values()]
        rows_of_signs.append([label, *cells, *(f"{of[one]['told_apart']:.2f}" for one in _STEERING)])
    effort = found["effort"]
    watched = ["what a client can watch", "honest", *_STEERING, "told apart, half", "told apart, hijacking"]
    return (
        f"Adversary: {found['adversary']}.\n\n{table(head, rows, words=2)}\n\n"
        f"{table(watched, rows_of_signs)}\n\n"
        f"Weights {found['weights']['sha256'][:8]}; one seed; {found['representation']} codes; "
        f"{effort['steps']} steps of {found['pictures']} pictures, a look every {effort['look_every']}; "
        f"pilot of {effort['pilot_steps']} steps{'; a shortened run' if found['quick'] else ''}."
    )


def signs(honest: list[dict[str, float]], seen: list[dict[str, float]]) -> dict[str, dict[str, float]]:
    found = {}
    for name in SIGNS:
        values = [one[name] for one in seen]
        found[name] = {
            "mean": float(np.mean(values)),
            "sd": float(np.std(values)),
            "last": values[-1],
            "told_apart": told_apart([one[name] for one in honest], values),
        }
    return found


def _drawn(drawn: dict[str, Any]) -> list[str]:
    ratio = "" if drawn["psnr"] is None else f"{drawn['psnr']:.2f}"
    read = [f"{drawn['reader'][name]:.1f}" for name in ("digits", "colours", "positions")]
    return [ratio, f"{drawn['ssim']:.3f}", *read]
