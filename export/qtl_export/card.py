"""``README.md`` of each half: what it is, how it is run, and its numbers."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from edge_runtime.golden import FILE as GOLDEN
from qtl_core.bundle import Cut, HalfName, Picture, VariantEntry
from qtl_export.halves import Agreement
from qtl_export.report import pictures, rows
from qtl_export.variants.table import variant_markdown

README = "README.md"

_WHAT = {
    "client": (
        "The device's half: vision tower, connector and quantizer as one ONNX graph. It takes a picture "
        "and returns the bytes that cross the cut; there is no PyTorch on the device.",
        'edge_runtime ask --bundle PATH --server tcp://HOST:5555 --image FILE "question"',
    ),
    "server": (
        "The server's half: the quantizer's decoder and the language model. It takes the bytes that cross "
        "the cut and a question, and returns the answer.",
        "qtl-server PATH --bind tcp://127.0.0.1:5555",
    ),
}


def write_card(
    work: Path,
    half: HalfName,
    agreement: Agreement,
    fingerprint: str,
    validation: dict[str, Any],
    variants: Mapping[str, VariantEntry],
) -> None:
    """Writes the README of one half; ``variants`` stand in the client's."""
    what, command = _WHAT[half]
    cut, picture, text = agreement.cut, agreement.picture, agreement.text
    shape = f"{cut.tokens} tokens x {cut.code_dim}"
    crosses = (
        f"{shape} codes of {cut.levels} levels ({cut.bits} bits), scaling `{cut.scaling}`"
        if cut.quantized
        else f"{shape} unquantized half-precision features"
    )
    tiled = picture.most_tiles > 1
    fit = {"square": "stretched", "pad": "padded to a square", "crop": "cropped to its middle"}[picture.fit]
    if picture.resized is not None:
        fit += ", resized to {} x {} and that cropped or framed in black".format(*picture.resized[::-1])
    facts = [
        ("model", f"`{agreement.model}`"),
        ("fingerprint of the pair", f"`{fingerprint}`"),
        ("picture", f"{picture.width} x {picture.height}, {picture.resample}, {_cutting(picture) or fit}"),
        (f"what crosses for a {'tile' if tiled else 'picture'}", crosses),
        ("payload of a tile" if tiled else "payload", _payload(cut, validation["entropy"])),
        ("the same features at 16 bit", f"{cut.feature_bytes_16bit:,} bytes"),
        ("questions", _questions(agreement)),
        ("longest question", f"{text.max_tokens} tokens"),
    ]
    golden = work / half / GOLDEN
    if golden.is_file():
        size = golden.stat().st_size
        facts.append(("golden pictures", f"`{GOLDEN}`, {size:,} bytes; `edge_runtime selftest` checks them"))
    lines = [
        f"# {agreement.model}: {half} half",
        "",
        what,
        "",
        f"    {command}",
        "",
        "| | |",
        "|---|---|",
        *(f"| {name} | {value} |" for name, value in facts),
        "",
        "## Validation",
        "",
        *_validation(validation),
        "",
        *(variant_markdown(variants) if half == "client" else []),
        "## What it does not do",
        "",
        "Quantizing is not encryption: whoever holds both halves can reconstruct a good deal of the picture",
        "from its codes, and the server knows its own half.",
    ]
    if text.mode == "codes":
        lines.append(
            "Questions as codes hide nothing from the server: it can find each token's nearest embedding."
        )
    (work / half / README).write_text("\n".join(lines) + "\n", "utf-8")


def _cutting(picture: Picture) -> str:
    """How pictures are cut; empty where they are not."""
    if not picture.tiled:
        return ""
    return (
        f"tiles (`{type(picture.tiling).__name__.lower()}`), up to {picture.most_tiles} a picture; each is a "
        "picture to the graph, and is scaled by itself"
    )


def _payload(cut: Cut, entropy: dict[str, Any]) -> str:
    packed = f"{cut.payload_bytes:,} bytes"
    if entropy["tables"] is None:
        return packed
    mean = entropy["coded_bytes_mean"]
    coded = "entropy-coded" if mean is None else f"entropy-coded {mean:.1f} on average"
    others = "" if entropy["coded_on_other_pictures"] else ", on the pictures the tables were measured on"
    return f"{packed} packed, {coded} (tables from {entropy['tables']}{others})"


def _questions(agreement: Agreement) -> str:
    text = agreement.text
    if text.mode == "plain":
        return "as UTF-8 text"
    return f"as codes, {text.code_dim} of {text.levels} levels for every token"


def _validation(validation: dict[str, Any]) -> list[str]:
    if not validation.get("pictures"):
        return ["This bundle was not validated."]
    found = "within its bounds" if validation["passed"] else "**over its bounds**, put in place by force"
    return [
        f"`{validation['device']}` beside `{validation['against']}`, on {pictures(validation)}:",
        f"{validation['source']}. The bundle is {found}.",
        "",
        "| | measured | bound |",
        "|---|---:|---:|",
        *(f"| {name} | {measured} | {bound} |" for name, measured, bound in rows(validation)),
        *_unasked(validation["answers"]["why_not"]),
    ]


def _unasked(why_not: str) -> list[str]:
    return ["", f"No answers were compared: {why_not}."] if why_not else []
