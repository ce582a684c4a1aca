"""The audit's numbers as Markdown, and their place in docs/audit.md."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from qtl_core.errors import InputError

START, END = "<!-- audit:start -->", "<!-- audit:end -->"
_READ = ("digits", "colours", "positions")


def markdown(found: dict[str, Any]) -> str:
    """Every table of a report, and its summary."""
    attacks = found["attacks"]
    parts = ["\n".join(line if line.startswith("- ") else f"\n{line}\n" for line in found["summary"]).strip()]
    if "attributes" in attacks or "inversion" in attacks:
        parts.append(_server(attacks.get("attributes"), attacks.get("inversion")))
    if "text" in attacks:
        parts.append(_text(attacks["text"]))
    if "lengths" in attacks:
        parts.append(_lengths(attacks["lengths"]))
    parts.append(_made(found))
    return "\n\n".join(parts)


def check_place(page: Path) -> None:
    """Checks that a page has a place for the tables, before anything slow begins.

    Raises:
        InputError: if it cannot be read, or has no markers.
    """
    _split(page)


def renew(page: Path, found: dict[str, Any], grid: Path | None = None) -> None:
    """Puts the tables between a page's markers, and shows the grid where there is one.

    Raises:
        InputError: if the page has no markers.
    """
    before, after = _split(page)
    text = markdown(found)
    if grid is not None:
        place = Path(os.path.relpath(grid, page.parent)).as_posix()
        text += f"\n\n![Originals, and beneath them what each representation gave away]({place})"
    page.write_text(f"{before}{START}\n{text}\n{END}{after}", "utf-8")


def _split(page: Path) -> tuple[str, str]:
    try:
        text = page.read_text("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{page} cannot be read ({error}); name a Markdown page with --docs") from error
    before, start, rest = text.partition(START)
    _, end, after = rest.partition(END)
    if not start or not end:
        raise InputError(f"{page} has no {START} ... {END} to fill; put these two lines where tables belong")
    return before, after


def _server(attributes: dict[str, Any] | None, inversion: dict[str, Any] | None) -> str:
    """Both attacks of the server side by side: one row a representation."""
    head = ["what crosses", "packed, B"]
    if attributes is not None:
        head += [f"{name}, %" for name in _READ]
    if inversion is not None:
        head += ["PSNR, dB", "SSIM", *(f"{name} off the picture, %" for name in _READ)]
    lines = [_line(head), "|---|" + "---:|" * (len(head) - 1)]
    rows = (attributes or inversion or {})["rows"]
    for index, row in enumerate(rows):
        cells = [row["representation"], f"{row['packed_bytes']:,}"]
        cells += _read(attributes["rows"][index] if attributes else None)
        cells += _drawn(inversion["rows"][index] if inversion else None)
        lines.append(_line(cells))
    chance = _read(attributes["chance"] if attributes else None)
    lines.append(
        _line(["chance; the mean picture", "", *chance, *_drawn(inversion and inversion["mean_image"])])
    )
    if inversion is not None:
        blank = [""] * len(chance)
        lines.append(_line(["the original", "", *blank, *_drawn(inversion["original"])]))
    return f"Adversary: {(attributes or inversion or {})['adversary']}.\n\n" + "\n".join(lines)


def _read(row: dict[str, Any] | None) -> list[str]:
    return [] if row is None else [_cell(row[name], 1) for name in _READ]


def _drawn(row: dict[str, Any] | None) -> list[str]:
    return [] if row is None else [_cell(row["psnr"], 2), _cell(row["ssim"], 3), *_read(row["reader"])]


def _text(found: dict[str, Any]) -> str:
    lines = [
        _line(["question codes", "tokens, %", "whole questions, %", "nearest embedding alone, %"]),
        "|---|---:|---:|---:|",
    ]
    for row in found["rows"]:
        cells = [_cell(row[name], 1) for name in ("tokens", "questions", "nearest_embedding")]
        lines.append(_line([row["representation"], *cells]))
    lines.append(_line(["chance", _cell(found["chance"], 1), "", ""]))
    return f'Adversary: {found["adversary"]}; only where `text = "codes"`.\n\n' + "\n".join(lines)


def _lengths(found: dict[str, Any]) -> str:
    names = list(found["rows"][0]["properties"])
    head = ["what crosses", "sent as", "payload, B", "bits in a length"]
    head += [f"{name.replace('_', ' ')}, %" for name in names]
    lines = [_line(head), "|---|---|---:|---:|" + "---:|" * len(names)]
    for row in found["rows"]:
        size = row["payload_bytes"]
        span = f"{size['least']:,}" if size["least"] == size["most"] else f"{size['least']}-{size['most']}"
        sent = row["coding"] + (f", padded to {row['pad']}" if row["pad"] else "")
        cells = [row["representation"], sent, span, _cell(row["length_bits"], 2)]
        for name in names:
            one = row["properties"][name]
            told = f"{_cell(one['accuracy'], 1)} ({one['chance']['mean']:.1f})"
            cells.append(f"**{told}**" if one["leaks"] else told)
        lines.append(_line(cells))
    return (
        f"Adversary: {found['adversary']}. Percent right, chance in brackets; bold: more than chance.\n\n"
        + "\n".join(lines)
    )


def _made(found: dict[str, Any]) -> str:
    effort = found["effort"]
    return (
        f"Weights {found['weights']['sha256'][:8]}; {found['seeds']} seed(s); "
        f"{effort['scenes']:,} training and {effort['test_scenes']:,} test scenes; "
        f"{effort['inversion_steps']:,}, {effort['attribute_steps']:,} and {effort['reader_steps']:,} "
        f"steps of {effort['batch']} for decoder, probe and reader"
        f"{'; a shortened run' if found['quick'] else ''}."
    )


def _cell(value: dict[str, Any], digits: int) -> str:
    if value["mean"] is None:
        return ""
    deviation = "" if value["sd"] is None else f" ± {value['sd']:.{digits}f}"
    return f"{value['mean']:.{digits}f}{deviation}"


def _line(cells: list[str]) -> str:
    return "| " + " | ".join(cells) + " |"
