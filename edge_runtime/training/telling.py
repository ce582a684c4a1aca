"""The summary of a training run, for people."""

from __future__ import annotations

from collections.abc import Mapping


def lines(result: Mapping[str, object]) -> list[str]:
    """A line for each thing a run came to."""
    return [f"{name.replace('_', ' ')}: {_shown(value)}" for name, value in result.items()]


def _shown(value: object) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{name} {_shown(part)}" for name, part in value.items()) or "none"
    if isinstance(value, list):
        return "; ".join(map(_shown, value)) or "none"
    if isinstance(value, float):
        return f"{value:,.1f}" if abs(value) >= 100 else f"{value:.3g}"
    return f"{value:,}" if isinstance(value, int) else str(value)
