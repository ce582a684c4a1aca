"""What the commands write: answers as they stream, one summary line, or one JSON line."""

from __future__ import annotations

import json
from typing import Any

import click

from qtl_core.exits import printable

from .answer import Answer


class Stream:
    """Writes an answer to stdout piece by piece.

    Args:
        label: written before the first piece; empty for none.
    """

    def __init__(self, label: str = "") -> None:
        self._label = label
        self._text = ""

    def piece(self, text: str) -> None:
        """Writes one piece at once."""
        if not self._text and self._label:
            click.echo(f"{self._label}: ", nl=False)
        self._text += text
        click.echo(printable(text), nl=False)

    def finish(self, answer: Answer) -> None:
        """Ends the line; an answer that is not what was streamed is written whole."""
        if self._text != answer.text or not self._text:
            self.abandon()
            self.piece(answer.text)
        click.echo()

    def abandon(self) -> None:
        """Ends a line whose answer did not come to its end."""
        if self._text:
            click.echo()
            self._text = ""


def summary(answer: Answer) -> str:
    """One line: what the answer cost, beside 16-bit features and JPEG."""
    payload = answer.payload_bytes
    tiles = f"{answer.tiles} tiles x " if answer.tiles > 1 else ""
    return (
        f"payload {payload} B ({tiles}{answer.tokens // answer.tiles} tokens x {answer.code_dim} codes x "
        f"{answer.bits} bit"
        f"{f', {answer.packed_bytes} B packed' if answer.packed_bytes != payload else ''}); "
        f"{answer.bytes_up} B up, {answer.bytes_down} B down; "
        f"as 16-bit features {answer.feature_bytes_16bit} B ({answer.feature_bytes_16bit / payload:.1f}x), "
        f"as JPEG {answer.jpeg_bytes} B ({answer.jpeg_bytes / payload:.1f}x); "
        f"{answer.ms.total:.0f} ms"
    )


def as_json(answer: Answer, image: str | None = None) -> str:
    """One JSON object on one line; ``image`` names the picture where there are several."""
    fields: dict[str, Any] = {} if image is None else {"image": image}
    fields |= {
        "answer": answer.answer,
        "bits": answer.bits,
        "levels": answer.levels,
        "tiles": answer.tiles,
        "tokens": answer.tokens,
        "code_dim": answer.code_dim,
        "payload_bytes": answer.payload_bytes,
        "packed_bytes": answer.packed_bytes,
        "codec": answer.codec,
        "bytes_up": answer.bytes_up,
        "bytes_down": answer.bytes_down,
        "feature_bytes_16bit": answer.feature_bytes_16bit,
        "jpeg_bytes": answer.jpeg_bytes,
        "ms": {
            "preprocess": round(answer.ms.preprocess, 3),
            "encode": round(answer.ms.encode, 3),
            "round_trip": round(answer.ms.round_trip, 3),
            "server": round(answer.ms.server, 3),
            "total": round(answer.ms.total, 3),
        },
    }
    # ASCII: whatever the locale of the script that reads it.
    return json.dumps(fields)
