"""The plain-language summary says what was measured, whatever that was."""

from __future__ import annotations

from typing import Any

import pytest

from qtl_training.audit import adversaries
from qtl_training.audit.summary import summary


def spread(mean: float, sd: float | None = 0.1) -> dict[str, float | None]:
    return {"mean": mean, "sd": sd}


def row(name: str, digits: float, quantizer: str = "") -> dict[str, Any]:
    return {
        "representation": name,
        "quantizer": quantizer,
        "packed_bytes": 72,
        "digits": spread(digits),
        "colours": spread(99.0),
        "positions": spread(99.5),
    }


def report(**attacks: Any) -> dict[str, Any]:
    return {
        "checkpoint": "digits",
        "weights": {"sha256": "0123456789abcdef", "shipped": True},
        "quick": False,
        "seeds": 3,
        "effort": {"test_scenes": 1000},
        "attacks": attacks,
    }


def attributes(coded: float) -> dict[str, Any]:
    chance = {"digits": spread(10), "colours": spread(17), "positions": spread(68)}
    return {
        "proves": True,
        "margin_points": 88.0,
        "threshold_points": 20.0,
        "chance": chance,
        "rows": [row("16-bit", 98.0), row("2-bit", coded), row("tiny", coded, "tiny")],
    }


@pytest.mark.parametrize(
    ("coded", "said"),
    [
        (97.0, "as much as 16-bit features give"),
        (54.0, "50 % of what 16-bit features give above chance"),
        (27.6, "only 20 % of what"),
        (10.5, "next to nothing"),
        (110.0, "more than the attacker got out of 16-bit features"),
    ],
)
def test_codes_are_compared_with_features(coded: float, said: str) -> None:
    lines = summary(report(attributes=attributes(coded)))
    assert any(line.startswith("- 2-bit codes") and said in line for line in lines)
    assert any(line.startswith("- 'tiny' codes") and said in line for line in lines)
    assert f"Against {adversaries.SERVER}:" in lines


def test_what_is_read_by_chance_only_is_not_called_shown() -> None:
    told = "\n".join(summary(report(attributes=attributes(10.5))))
    assert "So not hidden from the server: colours; positions." in told
    assert "no proof that it is not there: digits." in told
    told = "\n".join(summary(report(attributes=attributes(97.0))))
    assert "So not hidden from the server: digits; colours; positions." in told
    assert "Not found" not in told


def way(coding: str, pad: int, leaks: bool) -> dict[str, Any]:
    one = {
        "accuracy": spread(97.0 if leaks else 50.0),
        "chance": spread(50.0),
        "bits": spread(0),
        "leaks": leaks,
    }
    return {
        "representation": "small",
        "coding": coding,
        "pad": pad,
        "payload_bytes": {"mean": 20, "least": 9, "most": 31},
        "properties": {"same_picture": one},
    }


@pytest.mark.parametrize(
    ("ways", "said"),
    [
        (
            [("coded", 0, True), ("coded", 32, True), ("coded", 64, False), ("coded", 128, False)],
            "of 64 B: nothing",
        ),
        (
            [("coded", 0, True), ("coded", 32, True), ("coded", 64, True)],
            "multiples of 64 B, does not end that",
        ),
        ([("coded", 0, False), ("coded", 32, False)], "lengths tell nothing measurable"),
        ([("packed", 0, False)], "lengths tell nothing about the picture"),
        ([("packed", 0, True)], "lengths tell something about the picture with small"),
    ],
)
def test_lengths_are_told_as_measured(ways: list[tuple[str, int, bool]], said: str) -> None:
    found = {"proves": True, "rows": [way(*one) for one in ways]}
    lines = summary(report(lengths=found))
    assert any(said in line for line in lines)
    assert f"Against {adversaries.EAVESDROPPER}:" in lines
