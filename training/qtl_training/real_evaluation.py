"""Accuracy of a bundle on the digit questions through the real path, with the bytes that crossed."""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import asdict
from pathlib import Path
from typing import Any

from edge_runtime import EdgeClient
from qtl_core.bundle import open_half
from qtl_training import real_path
from qtl_training.digits.dataset import accuracy, question_only, question_set
from qtl_training.digits.questions import FAMILIES


def evaluate_bundle(
    bundle: Path, split: str, *, each_type: int, server: str | None = None, progress: bool = True
) -> dict[str, Any]:
    """Asks the questions of ``split`` and counts.

    Args:
        bundle: both halves; the client half alone will do where ``server`` is given.
        split: "validation" or "test".
        each_type: questions of each type.
        server: an address to ask; None starts a server on the bundle.
        progress: whether to show a bar.

    Returns:
        ``accuracy{family, macro}`` and ``question_only{...}`` in percent, ``types`` and
        ``question_only_types``, ``n``, the mean traffic, and the cut (``bits, levels, tokens, code_dim``).
    """
    open_half(bundle, "client")
    if server is None:
        open_half(bundle, "server")
    data = question_set(split, each_type=each_type)
    guess, guess_types = question_only(data.questions)
    with (
        real_path.server(bundle) if server is None else nullcontext(server) as address,
        EdgeClient(bundle, address) as client,
    ):
        replies, traffic = real_path.ask_all(client, data, progress=progress)
        cut, handshake = client.manifest.cut, client.handshake_bytes
        fingerprint = client.manifest.fingerprint
    by_family, by_type = accuracy(data.questions, replies)
    return {
        "split": split,
        "n": len(data.questions),
        "accuracy": by_family,
        "question_only": guess,
        "types": by_type,
        "question_only_types": guess_types,
        "bits": cut.bits,
        "levels": cut.levels,
        "tokens": cut.tokens,
        "code_dim": cut.code_dim,
        **asdict(traffic),
        "handshake_bytes": handshake,
        "fingerprint": fingerprint,
    }


def table(result: dict[str, Any]) -> str:
    """The result as text."""
    lines = [
        f"{result['split']}: {result['n']} questions at {result['bits']} bits through server and socket",
        f"{'':16}{'right %':>9}{'guess %':>9}",
    ]
    for family, kinds in FAMILIES.items():
        lines.append(f"{family:16}{result['accuracy'][family]:9.2f}{result['question_only'][family]:9.2f}")
        lines += [
            f"  {kind:14}{result['types'][kind]:9.2f}{result['question_only_types'][kind]:9.2f}"
            for kind in kinds
        ]
    lines.append(f"{'macro':16}{result['accuracy']['macro']:9.2f}{result['question_only']['macro']:9.2f}")
    lines.append(
        f"bytes a question: payload {result['payload_bytes']:.0f}, up {result['bytes_up']:.0f}, "
        f"down {result['bytes_down']:.0f} (16-bit features {result['feature_bytes_16bit']:.0f}, "
        f"JPEG {result['jpeg_bytes']:.0f}); guess: from the question alone"
    )
    return "\n".join(lines)
