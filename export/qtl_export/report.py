"""What validation found as a table, and what an export made as JSON."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec

from qtl_core.bundle import Cut, VariantEntry
from qtl_core.nn.post_training import Fitted
from qtl_core.trainable import Training
from qtl_export.auto_levels import AutoLevels
from qtl_export.variants.table import variant_lines


@dataclass(frozen=True)
class Exported:
    """A bundle that was put in place.

    Attributes:
        bundle: its folder.
        fingerprint: of the pair.
        model: name of the model.
        cut: what crosses for a picture.
        text: how questions cross.
        sizes: bytes of each half and of the graph.
        validation: what both manifests say.
        auto: why the cut has the levels it has, where ``--bits auto`` chose them.
        fitted: what the quantizer came to that was fitted to pictures.
        variants: further graphs for particular devices, as the manifest has them.
        tiles: tiles a picture has at most; the cut is of one.
        training: what the client half can be trained with.
    """

    bundle: Path
    fingerprint: str
    model: str
    cut: Cut
    text: str
    sizes: dict[str, int]
    validation: dict[str, Any]
    auto: AutoLevels | None = None
    fitted: Fitted | None = None
    variants: Mapping[str, VariantEntry] = field(default_factory=dict)
    tiles: int = 1
    training: Training | None = None

    def as_json(self) -> str:
        """One line of JSON."""
        return json.dumps(
            {
                "bundle": str(self.bundle),
                "model": self.model,
                "bits": self.cut.bits,
                "levels": self.cut.levels,
                "tiles": self.tiles,
                "tokens": self.cut.tokens,
                "code_dim": self.cut.code_dim,
                "payload_bytes": self.cut.payload_bytes,
                "feature_bytes_16bit": self.cut.feature_bytes_16bit,
                "text": self.text,
                "fingerprint": self.fingerprint,
                "sizes": self.sizes,
                "validation": self.validation,
                "auto": None if self.auto is None else self.auto.as_json(),
                "fitted": None if self.fitted is None else self.fitted.as_json(),
                "variants": msgspec.to_builtins(self.variants),
                "training": None if self.training is None else self._training(self.training),
            }
        )

    def _training(self, training: Training) -> dict[str, Any]:
        return {
            "recipe": training.name,
            "fingerprint": training.fingerprint,
            "steps": [stage.stop or stage.steps for stage in training.stages],
            "bytes": self.sizes["training"],
        }

    def as_text(self) -> str:
        """A few lines for a terminal."""
        cut = self.cut
        coded = f"{cut.levels} levels" if cut.quantized else "unquantized"
        what, more = ("tile", f", up to {self.tiles} tiles a picture") if self.tiles > 1 else ("picture", "")
        lines = [
            f"{self.bundle}: {self.model}, {cut.bits} bits ({coded}), {cut.payload_bytes:,} bytes a {what} "
            f"({cut.tokens} tokens x {cut.code_dim}){more}; 16-bit features take {cut.feature_bytes_16bit:,}",
            f"  client {self.sizes['client']:,} bytes, server {self.sizes['server']:,} bytes, "
            f"fingerprint {self.fingerprint}",
        ]
        entropy = self.validation["entropy"]
        if entropy["tables"] is None and cut.quantized:
            lines.append(f"  packed codes only, no entropy coder: {entropy['why']}")
        elif cut.quantized:
            lines.append(f"  entropy coder: {entropy['classes']} classes, tables from {entropy['tables']}")
        if self.fitted is not None:
            lines.append(f"  {self.fitted.as_text()}")
        if self.training is not None:
            told = self._training(self.training)
            lines.append(
                f"  can be trained: recipe {told['recipe']}, {sum(told['steps']):,} steps, training "
                f"fingerprint {told['fingerprint']}; the training step takes {told['bytes']:,} bytes of the "
                "client half"
            )
        if self.auto is not None:
            lines.insert(0, self.auto.as_text())
        if not self.validation["pictures"]:
            return "\n".join([*lines, "  not validated"])
        lines += [
            f"  validated on {pictures(self.validation)}: {self.validation['source']}",
            f"  {self.validation['device']} beside {self.validation['against']}",
        ]
        table = [("", "measured", "bound"), *rows(self.validation)]
        widths = [max(len(row[column]) for row in table) for column in range(3)]
        lines += [
            f"    {name:<{widths[0]}}  {measured:>{widths[1]}}  {bound:>{widths[2]}}".rstrip()
            for name, measured, bound in table
        ]
        why_not = self.validation["answers"]["why_not"]
        if why_not:
            lines.append(f"  no answers compared: {why_not}")
        return "\n".join([*lines, *variant_lines(self.variants)])


def pictures(validation: dict[str, Any]) -> str:
    """How many pictures a validation saw, and in how many tiles."""
    n, tiles = validation["pictures"], validation.get("tiles", 0)
    return f"{n} pictures in {tiles} tiles" if tiles > n else f"{n} pictures"


def rows(validation: dict[str, Any]) -> list[tuple[str, str, str]]:
    """The table of a validation: what, measured, bound."""
    table = _codes(validation["codes"]) if "codes" in validation else _features(validation["features"])
    answers = validation["answers"]
    if answers["asked"]:
        table.append(("answers compared", f"{answers['asked']:,}", ""))
        table.append(("answers that differ", f"{answers['differ']:,}", ""))
    else:
        table.append(("answers compared", "none", ""))
    if answers["text_codes"]:
        table.append(("question codes compared", f"{answers['text_codes']:,}", ""))
        table.append(("question codes that differ", f"{answers['text_codes_differ']:,}", ""))
    table += _entropy(validation["entropy"])
    table += _asked(validation.get("questions"))
    if answers["known"]:
        share = answers["right"] / answers["known"]
        table.append(("right answers", f"{answers['right']:,} of {answers['known']:,} ({share:.1%})", ""))
    return table


def _asked(asked: dict[str, Any] | None) -> list[tuple[str, str, str]]:
    if asked is None:
        return []
    about = f", {asked['about_known']:,} about pictures it was fitted to" if asked["about_known"] else ""
    return [
        (f"right of {asked['questions']:,} questions at 16 bit", f"{asked['at_16_bit']:.2%}", ""),
        (f"right from codes{about}", f"{asked['quantized']:.2%}", ""),
        ("difference, percentage points", f"{asked['difference']:+.2f}", ""),
    ]


def _entropy(entropy: dict[str, Any]) -> list[tuple[str, str, str]]:
    if entropy.get("coded_bytes_mean") is None:
        return []
    return [
        (
            "payload entropy-coded, mean bytes",
            f"{entropy['coded_bytes_mean']:.1f}",
            f"{entropy['fixed_bytes']:,}",
        )
    ]


def _codes(codes: dict[str, Any]) -> list[tuple[str, str, str]]:
    any_differ = bool(codes["differ"])
    return [
        ("codes compared", f"{codes['compared']:,}", ""),
        ("codes that differ", f"{codes['differ']:,}", f"{codes['allowed']:,} ({codes['share_bound']:g})"),
        ("largest difference, levels", f"{codes['largest_difference']}", "1"),
        (
            "farthest from a boundary, levels",
            f"{codes['farthest_from_boundary']:.1e}" if any_differ else "-",
            f"{codes['boundary_bound']:g}",
        ),
        ("payloads that differ", f"{codes['payloads_differ']:,} of {codes['payloads']:,}", ""),
        ("same codes, other bytes", f"{codes['mispacked']:,}", "0"),
        ("numpy and PyTorch, same scaled features", f"{codes['reference_differ']:,} differ", "0"),
    ]


def _features(features: dict[str, Any]) -> list[tuple[str, str, str]]:
    allowed = features["bound"] * features["largest_feature"]
    return [
        ("features compared", f"{features['compared']:,}", ""),
        ("features that differ", f"{features['differ']:,}", ""),
        ("largest difference", f"{features['largest_difference']:.1e}", f"{allowed:.1e}"),
        ("largest feature", f"{features['largest_feature']:.3g}", ""),
        ("too large for half precision", f"{features['infinite']:,}", "0"),
        ("payloads that differ", f"{features['payloads_differ']:,} of {features['payloads']:,}", ""),
    ]
