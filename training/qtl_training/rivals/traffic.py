"""Bytes of a question: payload, and the whole ASK on the wire, in plaintext and under CURVE."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from qtl_core.messages import Ask
from qtl_core.wire import frame_codes, join, wire_size
from qtl_training.digits.dataset import QuestionSet


def sizes(payloads: Mapping[int, bytes], data: QuestionSet) -> dict[str, Any]:
    """Means over the questions, each asked in a message of its own with its picture's payload.

    Args:
        payloads: one for each scene that a question is about.
        data: the questions.

    Returns:
        ``payload_bytes_mean, payload_bytes_p95, wire_bytes_mean, wire_bytes_curve_mean`` and
        ``overhead_bytes_max``: the most that header and framing (without CURVE) add to payload and question.
    """
    asked = [payloads[question.scene] for question in data.questions]
    plain, curve, overhead = [], [], []
    for number, (question, payload) in enumerate(zip(data.questions, asked, strict=True), 1):
        frames = join(Ask(number, (frame_codes("v", payload),), question.text), [payload])
        plain.append(wire_size(frames))
        curve.append(wire_size(frames, curve=True))
        overhead.append(plain[-1] - len(payload) - len(question.text.encode()))
    lengths = np.array([len(payload) for payload in asked])
    return {
        "payload_bytes_mean": float(lengths.mean()),
        "payload_bytes_p95": float(np.percentile(lengths, 95)),
        "wire_bytes_mean": float(np.mean(plain)),
        "wire_bytes_curve_mean": float(np.mean(curve)),
        "overhead_bytes_max": max(overhead),
    }
