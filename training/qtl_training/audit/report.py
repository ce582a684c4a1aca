"""What an audit found, as the JSON holds it: means and deviations over seeds, and what that proves."""

from __future__ import annotations

import platform
import statistics
from collections.abc import Callable, Sequence
from importlib.metadata import version
from typing import Any

from qtl_training.audit import adversaries
from qtl_training.audit.attributes import CHANCE, THRESHOLD_POINTS
from qtl_training.audit.cells import READINGS
from qtl_training.audit.inversion import MEAN, ORIGINAL, READER_THRESHOLD, THRESHOLD_DB
from qtl_training.audit.lengths import CONTROL, PROPERTIES
from qtl_training.audit.representations import FEATURES, Representation
from qtl_training.audit.running import Pieces
from qtl_training.audit.settings import AuditSettings
from qtl_training.audit.summary import summary
from qtl_training.audit.target import Target

_PACKAGES = ("torch", "transformers", "numpy", "scikit-learn")
_THRESHOLD_PERCENT = 99.0  # of planted leaks found, and of 16-bit tokens inverted

Numbers = list[dict[str, Any]]
Report = dict[str, Any]


def report(settings: AuditSettings, target: Target, pieces: Pieces) -> Report:
    """The audit's result: docs/audit.md lists its keys."""
    makers: dict[str, Callable[[Target, dict[str, Numbers]], Report]] = {
        "inversion": _inversion,
        "attributes": _attributes,
        "lengths": _lengths,
        "text": _text,
    }
    found: Report = {
        "checkpoint": target.checkpoint.settings.name,
        "weights": {"sha256": target.weights, "shipped": settings.shipped},
        "quick": settings.quick,
        "seeds": settings.seeds,
        "effort": settings.public(),
        "attacks": {attack: makers[attack](target, found) for attack, found in pieces.items()},
        "versions": {"python": platform.python_version(), **{name: version(name) for name in _PACKAGES}},
        "machine": platform.machine(),
    }
    return {**found, "summary": summary(found)}


def spread(values: Sequence[float | None]) -> dict[str, float | None]:
    """Mean and standard deviation over seeds; None is the deviation of one seed, and the mean of none."""
    known = [value for value in values if value is not None]
    if not known:
        return {"mean": None, "sd": None}
    return {"mean": statistics.fmean(known), "sd": statistics.stdev(known) if len(known) > 1 else None}


def _inversion(target: Target, found: dict[str, Numbers]) -> Report:
    def scores(numbers: Numbers) -> Report:
        return {
            "psnr": spread([one["psnr"] for one in numbers]),
            "ssim": spread([one["ssim"] for one in numbers]),
            "reader": {name: spread([one["reader"][name] for one in numbers]) for name in READINGS},
        }

    margins = [
        full["psnr"] - mean["psnr"] for full, mean in zip(found[FEATURES], found[MEAN], strict=True)
    ]  # fmt: skip
    return {
        "adversary": adversaries.SERVER,
        "mean_image": scores(found[MEAN]),
        "original": scores(found[ORIGINAL]),
        "margin_db": min(margins),
        "threshold_db": THRESHOLD_DB,
        "proves": min(margins) >= THRESHOLD_DB,
        "reader_threshold": READER_THRESHOLD,
        "reader_proves": min(one["reader"]["digits"] for one in found[ORIGINAL]) >= READER_THRESHOLD,
        "rows": _rows(target, found, scores),
    }


def _attributes(target: Target, found: dict[str, Numbers]) -> Report:
    def scores(numbers: Numbers) -> Report:
        return {name: spread([one[name] for one in numbers]) for name in READINGS}

    margins = [
        full["digits"] - chance["digits"] for full, chance in zip(found[FEATURES], found[CHANCE], strict=True)
    ]
    return {
        "adversary": adversaries.SERVER,
        "chance": scores(found[CHANCE]),
        "margin_points": min(margins),
        "threshold_points": THRESHOLD_POINTS,
        "proves": min(margins) >= THRESHOLD_POINTS,
        "rows": _rows(target, found, scores),
    }


def _lengths(target: Target, found: dict[str, Numbers]) -> Report:
    rows = []
    for one in _attacked(target, found):
        numbers = found[one.name]
        for index, way in enumerate(numbers[0]["ways"]):
            seeds = [piece["ways"][index] for piece in numbers]
            rows.append(
                {
                    **_about(one, numbers),
                    **{key: way[key] for key in ("coding", "pad")},
                    "payload_bytes": way["payload_bytes"],
                    "length_bits": spread([seed["length_bits"] for seed in seeds]),
                    "properties": {
                        name: _property([seed["properties"][name] for seed in seeds]) for name in PROPERTIES
                    },
                }
            )
    planted = _property(found[CONTROL])
    return {
        "adversary": adversaries.EAVESDROPPER,
        "planted": planted,
        "threshold_percent": _THRESHOLD_PERCENT,
        "proves": planted["leaks"] and min(one["accuracy"] for one in found[CONTROL]) >= _THRESHOLD_PERCENT,
        "rows": rows,
    }


def _property(seeds: Numbers) -> Report:
    return {
        **{key: spread([one[key] for one in seeds]) for key in ("accuracy", "chance", "bits")},
        # One seed in many is beyond chance by chance.
        "leaks": 2 * sum(one["leaks"] for one in seeds) > len(seeds),
    }


def _text(target: Target, found: dict[str, Numbers]) -> Report:
    def scores(numbers: Numbers) -> Report:
        keys = ("tokens", "questions", "nearest_embedding")
        return {name: spread([one[name] for one in numbers]) for name in keys}

    full = found[FEATURES]
    return {
        "adversary": adversaries.SERVER,
        "chance": spread([one["chance"] for one in full]),
        "threshold_percent": _THRESHOLD_PERCENT,
        "proves": min(one["tokens"] for one in full) >= _THRESHOLD_PERCENT,
        "rows": _rows(target, found, scores, bytes_too=False),
    }


def _rows(
    target: Target,
    found: dict[str, Numbers],
    scores: Callable[[Numbers], Report],
    *,
    bytes_too: bool = True,
) -> list[Report]:
    return [
        {**_about(one, found[one.name], bytes_too=bytes_too), **scores(found[one.name])}
        for one in _attacked(target, found)
    ]


def _attacked(target: Target, found: dict[str, Numbers]) -> list[Representation]:
    return [one for one in target.representations if one.name in found]


def _about(one: Representation, numbers: Numbers, *, bytes_too: bool = True) -> Report:
    """What a row is about, and how long a seed of it took."""
    named: Report = {"representation": one.name, "levels": one.levels}
    if bytes_too:
        named |= {"quantizer": one.quantizer, "packed_bytes": one.packed_bytes}
    return {**named, "seconds": spread([piece["seconds"] for piece in numbers])}
