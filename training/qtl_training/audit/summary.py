"""The audit in plain language: what is not hidden, and from whom. Every number in it was measured."""

from __future__ import annotations

from typing import Any

from qtl_training.audit import adversaries
from qtl_training.audit.representations import FEATURES

_READ = ("digits", "colours", "positions")
_MORE, _AS_MUCH, _MOST, _SOME = 1.05, 0.95, 0.5, 0.1
_WORTH_SAYING = 1.0  # points of accuracy
_SAID = {
    "digits": "how many digits there are",
    "colours": "how many colours there are",
    "empty": "whether the picture is empty",
    "same_picture": "whether two questions are about the same picture",
}


def summary(found: dict[str, Any]) -> list[str]:
    """One line for each finding, by adversary."""
    attacks = found["attacks"]
    lines = [_opening(found), _QUANTIZING]
    if "attributes" in attacks or "inversion" in attacks:
        lines.append(f"Against {adversaries.SERVER}:")
    if "attributes" in attacks:
        lines += _attributes(attacks["attributes"])
    if "inversion" in attacks:
        lines += _inversion(attacks["inversion"])
    if "text" in attacks:
        lines.append(f'Against {adversaries.SERVER}, where questions travel as codes (text = "codes"):')
        lines += _text(attacks["text"])
    if "lengths" in attacks:
        lines.append(f"Against {adversaries.EAVESDROPPER}:")
        lines += _lengths(attacks["lengths"])
    lines.append(_OTHERS)
    return lines


_QUANTIZING = (
    "Quantizing is not encryption: it makes a picture's codes small, and whoever holds the codes and the "
    "client's half of the bundle can compute from them what the numbers below say."
)
_OTHERS = (
    f"Not attacked here: {adversaries.STRANGER} and {adversaries.CLIENT}. Under CURVE the first has no "
    "authorised key and the second a session of its own (docs/protocol.md), so neither is sent any "
    "codes. Times were not attacked either. Without CURVE (--insecure), everyone on the way holds what the "
    "server holds, and the server's numbers are theirs."
)


def _opening(found: dict[str, Any]) -> str:
    which = "the shipped checkpoint" if found["weights"]["shipped"] else "checkpoint"
    seeds = "1 seed" if found["seeds"] == 1 else f"{found['seeds']} seeds"
    text = (
        f"Audit of {which} {found['checkpoint']!r} (weights {found['weights']['sha256'][:8]}), {seeds}, "
        f"scored on {found['effort']['test_scenes']:,} test scenes nobody was asked about."
    )
    if found["quick"]:
        text += " A shortened run: its attackers learn less than those of a full one."
    return text


def _attributes(found: dict[str, Any]) -> list[str]:
    rows, chance = found["rows"], found["chance"]
    full = rows[0]
    if not found["proves"]:
        return [
            f"- Contents read straight from codes: PROVES NOTHING. On 16-bit features this attacker reads "
            f"{_percent(full['digits'])} of the digits, {found['margin_points']:.1f} points above chance; at "
            f"least {found['threshold_points']:g} would show that it can attack at all."
        ]
    read = ", ".join(
        f"{_percent(full[name])} of {name} (chance {_percent(chance[name])})" for name in _READ
    )  # fmt: skip
    lines = [f"- Contents read straight from 16-bit features: {read}."]
    for row in rows[1:]:
        lines.append(
            f"- {_named(row)}: {_three(row)}: of the digits "
            f"{_compared(row['digits'], full['digits'], chance['digits'])}."
        )
    hidden, shown = _hidden(rows[1:], chance)
    if shown:
        lines.append(f"- So not hidden from the server: {shown}.")
    if hidden:
        lines.append(f"- Not found by this attacker, which is no proof that it is not there: {hidden}.")
    return lines


def _inversion(found: dict[str, Any]) -> list[str]:
    rows, mean = found["rows"], found["mean_image"]
    full = rows[0]
    if not found["proves"]:
        return [
            f"- Pictures drawn from codes: PROVES NOTHING. From 16-bit features this attacker comes "
            f"{found['margin_db']:.2f} dB above the mean picture; at least {found['threshold_db']:g} dB "
            "would show that it can attack at all."
        ]
    reads = found["reader_proves"]
    line = (
        f"- Pictures drawn from 16-bit features: {_db(full)} (the mean picture: {_db(mean)}; the attacker is "
        f"{found['margin_db']:.2f} dB above it, {found['threshold_db']:g} dB were asked for)."
    )
    if reads:
        line += (
            f" A reader of clean pictures reads {_three(full['reader'])} off them (off the mean picture: "
            f"{_three(mean['reader'])}; off the originals: {_three(found['original']['reader'])})."
        )
    else:
        line += (
            f" What can be read off them PROVES NOTHING: the reader reads "
            f"{_percent(found['original']['reader']['digits'])} of the originals' digits; at least "
            f"{found['reader_threshold']:g} % would show that it can read at all."
        )
    lines = [line]
    for row in rows[1:]:
        line = f"- Drawn from {_named(row)}: {_db(row)}"
        if reads:
            got = [part["reader"]["digits"] for part in (row, full, mean)]
            line += f"; {_three(row['reader'])}: of the digits {_compared(*got)}"
        lines.append(line + ".")
    return lines


def _text(found: dict[str, Any]) -> list[str]:
    rows = found["rows"]
    if not found["proves"]:
        return [
            f"- PROVES NOTHING: even of 16-bit embeddings only {_percent(rows[0]['tokens'])} of the tokens "
            "came back."
        ]
    each = ", ".join(f"{row['representation']} {_percent(row['tokens'])}" for row in rows)
    lines = [f"- Tokens of the question recovered: {each} (chance {_percent(found['chance'])})."]
    least = min(row["tokens"]["mean"] for row in rows[1:]) if rows[1:] else rows[0]["tokens"]["mean"]
    if least >= 99:
        lines.append("- Coding a question hides nothing of it from the server at any of these widths.")
    else:
        lines.append(f"- At the worst width for the attacker {least:.1f} % of the tokens still come back.")
    return lines


def _lengths(found: dict[str, Any]) -> list[str]:
    if not found["proves"]:
        return [
            f"- PROVES NOTHING: of a planted leak the attacker finds "
            f"{_percent(found['planted']['accuracy'])}; at least {found['threshold_percent']:g} % would show "
            "that it can attack at all."
        ]
    rows = found["rows"]
    fixed = [row for row in rows if row["coding"] != "coded"]
    lines = []
    if fixed:
        leaking = [row["representation"] for row in fixed if _leaks(row)]
        what = "16-bit features and codes packed at a fixed length"
        if leaking:
            lines.append(f"- {what}: lengths tell something about the picture with {', '.join(leaking)}.")
        else:
            lines.append(
                f"- {what}: lengths tell nothing about the picture; only the question's length shows."
            )
    for name in dict.fromkeys(row["representation"] for row in rows if row["coding"] == "coded"):
        lines.append(
            _coded([row for row in rows if row["representation"] == name and row["coding"] == "coded"])
        )
    return lines


def _coded(rows: list[dict[str, Any]]) -> str:
    plain = rows[0]
    size = plain["payload_bytes"]
    text = f"- {plain['representation']}, entropy-coded ({size['least']}-{size['most']} B): "
    told = [
        f"{_SAID[name]} {_percent(one['accuracy'])} (chance {_percent(one['chance'])})"
        for name, one in plain["properties"].items()
        if one["leaks"]
    ]
    text += f"told by lengths alone: {'; '.join(told)}." if told else "lengths tell nothing measurable."
    padded = rows[1:]
    if not told or not padded:
        return text
    hiding = [row["pad"] for row in padded if not _leaks(row)]
    if not hiding:
        most = max(padded, key=lambda row: row["pad"])
        return text + f" Padding, up to multiples of {most['pad']} B, does not end that."
    return text + f" Padded to multiples of {min(hiding)} B: nothing beyond the question's length."


def _leaks(row: dict[str, Any]) -> bool:
    return any(one["leaks"] for one in row["properties"].values())


def _hidden(rows: list[dict[str, Any]], chance: dict[str, Any]) -> tuple[str, str]:
    """What the codes do not tell, and what they do, by representation where they differ."""
    hidden, shown = [], []
    for name in _READ:
        telling = [
            row["representation"]
            for row in rows
            if row[name]["mean"] > chance[name]["mean"] + _WORTH_SAYING + 2 * (row[name]["sd"] or 0)
        ]
        silent = [row["representation"] for row in rows if row["representation"] not in telling]
        if telling:
            shown.append(name if not silent else f"{name} ({', '.join(telling)})")
        if silent:
            hidden.append(name if not telling else f"{name} ({', '.join(silent)})")
    return "; ".join(hidden), "; ".join(shown)


def _compared(value: dict[str, Any], full: dict[str, Any], chance: dict[str, Any]) -> str:
    """How much of what 16-bit features give above chance this gives."""
    room = full["mean"] - chance["mean"]
    share = (value["mean"] - chance["mean"]) / room if room > 0 else 0.0
    if share > _MORE:
        return f"more than the attacker got out of {FEATURES} features, which hold all of it"
    if share >= _AS_MUCH:
        return f"as much as {FEATURES} features give"
    if share >= _MOST:
        return f"{100 * share:.0f} % of what {FEATURES} features give above chance"
    if share >= _SOME:
        return f"only {100 * share:.0f} % of what {FEATURES} features give above chance"
    return f"next to nothing of what {FEATURES} features give above chance"


def _named(row: dict[str, Any]) -> str:
    kind = f"{row['representation']!r}" if row["quantizer"] else row["representation"]
    return f"{kind} codes ({row['packed_bytes']} B packed)"


def _three(row: dict[str, Any]) -> str:
    return ", ".join(f"{_percent(row[name])} of {name}" for name in _READ)


def _percent(value: dict[str, Any]) -> str:
    return f"{value['mean']:.1f} %"


def _db(row: dict[str, Any]) -> str:
    return f"{row['psnr']['mean']:.2f} dB, SSIM {row['ssim']['mean']:.3f}"
