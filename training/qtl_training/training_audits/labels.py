"""``qtl-audit labels``: what a server recovers of labels, for every placement of labels and head."""

from __future__ import annotations

import platform
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

import msgspec
from tqdm import tqdm

from qtl_core.gradients import GRAD_BITS
from qtl_core.nn.checkpoint import load_checkpoint
from qtl_training.audit import adversaries
from qtl_training.audit.report import spread
from qtl_training.audit.work import weights_digest
from qtl_training.features import tower_features
from qtl_training.split.samples import DigitSamples
from qtl_training.training_audits.label_attacks import ATTACKS, KNOWN, chance, recovered
from qtl_training.training_audits.observed import STAGE, Observed, forget_pictures, observe
from qtl_training.training_audits.page import table

PLACEMENTS: Final[dict[str, tuple[str, bool]]] = {
    "scores come down": ("server", False),
    "head on the client, begun as the model's": ("client", False),
    "head on the client, begun at random": ("client", True),
}
"""Where the head is, and whether it begins from a secret seed."""

STATES: Final = ("start", "end")
"""A new connector, so that the model knows nothing of pictures; and the checkpoint as it is, trained on."""


@dataclass(frozen=True, kw_only=True)
class LabelEffort:
    """What the audit may spend.

    Attributes:
        scenes: whose tower features are cached.
        recorded: steps of 320 questions that are attacked.
        steps: trained in all at the end of training; at its start nothing comes before the recorded ones.
    """

    scenes: int = 1000
    recorded: int = 8
    steps: int = 60


FULL: Final = LabelEffort()
QUICK: Final = LabelEffort(scenes=300, recorded=3, steps=12)


def audit_labels(
    checkpoint: Path,
    *,
    effort: LabelEffort,
    seeds: int,
    quick: bool = False,
    shipped: bool = False,
    progress: bool = True,
) -> dict[str, Any]:
    """Attacks every placement; docs/audit.md lists the keys.

    Args:
        checkpoint: trained on digit scenes.
        effort: how much is recorded.
        seeds: runs of each.
        quick: whether the effort is a shortened one.
        shipped: whether it is the checkpoint that comes with the package.
        progress: whether to show bars.

    Raises:
        CheckpointError: a checkpoint that cannot be read.
        RecipeError: one whose tokenizer does not tell the digit scenes' answers apart.
    """
    found: dict[tuple[str, str], list[Observed]] = {}
    total = seeds * len(PLACEMENTS) * len(STATES)
    with tqdm(total=total, desc="audit", unit="run", disable=not progress or None) as bar:
        for seed in range(1, seeds + 1):
            stage = msgspec.structs.replace(STAGE, scenes=effort.scenes)
            vision = load_checkpoint(checkpoint).model.vision
            features = tower_features(vision, DigitSamples(stage, seed).scenes, progress=progress)
            for placement, (head, secret) in PLACEMENTS.items():
                for state in STATES:
                    model = load_checkpoint(checkpoint)
                    if state == "start":
                        forget_pictures(model, seed)
                    seen = observe(
                        model,
                        features,
                        head,
                        scenes=effort.scenes,
                        steps=effort.recorded if state == "start" else effort.steps,
                        recorded=effort.recorded,
                        seed=seed,
                        head_seed=seed if secret else None,
                        progress=progress,
                    )
                    found.setdefault((placement, state), []).append(seen)
                    bar.update()
    report = {
        "checkpoint": load_checkpoint(checkpoint).settings.name,
        "weights": {"sha256": weights_digest(checkpoint), "shipped": shipped},
        "adversary": adversaries.SERVER,
        "quick": quick,
        "seeds": seeds,
        "effort": asdict(effort),
        "examples": KNOWN,
        "questions": sum(len(one.labels) for one in next(iter(found.values()))),
        "rows": [_row(*about, runs) for about, runs in found.items()],
        "machine": platform.machine(),
    }
    return {**report, "summary": summary(report)}


def _row(placement: str, state: str, runs: list[Observed]) -> dict[str, Any]:
    at_bits = {
        str(bits): {
            attack: spread([recovered(attack, seen, bits, seed) for seed, seen in enumerate(runs, 1)])
            for attack in ATTACKS
        }
        for bits in GRAD_BITS
    }
    return {
        "placement": placement,
        "state": state,
        "right": spread([seen.right for seen in runs]),
        "chance": spread([chance(seen) for seen in runs]),
        "recovered": at_bits,
    }


def summary(found: dict[str, Any]) -> list[str]:
    """A line for each placement: the best attack without examples, and with some."""
    lines = [f"Labels, against {found['adversary']}:", "- shared labels: 100 %, they are sent."]
    for row in found["rows"]:
        plain, told = (_best(row, examples=examples) for examples in (False, True))
        lines.append(
            f"- {row['placement']}, {row['state']} of training: {plain} without a known label, {told} with "
            f"{found['examples']} of each answer; chance {row['chance']['mean']:.1f} %, the model answers "
            f"{row['right']['mean']:.1f} % right."
        )
    lines.append("Labels that stay home are not hidden from a server that looks.")
    return lines


def markdown(found: dict[str, Any]) -> str:
    """The table, and what it was measured on."""
    head = ["labels and head", "training", "`grad_bits`", "the model is right, %", "chance, %"]
    head += [f"{name}, %" for name in ATTACKS]
    rows = [["shared", "", "", "", "", *["100, sent"] * len(ATTACKS)]]
    for row in found["rows"]:
        for bits, attacks in row["recovered"].items():
            cells = [row["placement"], row["state"], bits, _cell(row["right"]), _cell(row["chance"])]
            rows.append([*cells, *(_cell(attacks[name]) for name in ATTACKS)])
    return (
        f"Adversary: {found['adversary']}.\n\n{table(head, rows, words=2)}\n\n"
        f"Weights {found['weights']['sha256'][:8]}; {found['seeds']} seed(s); {found['questions']:,} "
        f"questions a row; at the end of training {found['effort']['steps']} steps were taken with that "
        f"placement{'; a shortened run' if found['quick'] else ''}."
    )


def _best(row: dict[str, Any], *, examples: bool) -> str:
    found = [
        (numbers["mean"], attack, bits)
        for bits, attacks in row["recovered"].items()
        for attack, numbers in attacks.items()
        if attack.endswith("examples") == examples
    ]
    best, worst = max(found), min(one for one in found if one[1] == max(found)[1])
    span = f"{best[0]:.1f} %" if best[0] - worst[0] < 0.05 else f"{worst[0]:.1f} to {best[0]:.1f} %"
    return f"{span} ({best[1]})"


def _cell(value: dict[str, float | None]) -> str:
    deviation = "" if value["sd"] is None else f" ± {value['sd']:.1f}"
    return f"{value['mean']:.1f}{deviation}"
