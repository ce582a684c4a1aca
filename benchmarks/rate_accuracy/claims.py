"""The numbers to reach, computed from the rows: each with what it compares and whether it holds."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

from benchmarks.rate_accuracy.study import size_of
from qtl_training.rivals.methods import CODED, PICTURES

Row = dict[str, Any]

_OVERHEAD = 64
_TOKEN_BITS, _TINY_BYTES = 12, 60


def claims(rows: Sequence[Row], tokens: int) -> list[dict[str, Any]]:
    """Every claim about rows that are there.

    Args:
        rows: of the table.
        tokens: visual tokens of a picture.

    Returns:
        ``claim`` in words, ``holds`` (None where a row it needs is missing), and the numbers.
    """
    by_name = {row["method"]: row for row in rows}
    checks: tuple[tuple[str, Sequence[str], Callable[..., dict[str, Any]]], ...] = (
        ("the paper's 2 bits within 1 point of 16 bit, 87.5 % fewer payload bytes, before entropy coding",
         ("paper-2bit", "fp16"), _paper),
        ("small: at most 1/8 of the paper's packed bytes at its accuracy or better",
         ("small", "paper-2bit"), _small_and_paper),
        ("small: at most 0.5 point below the checkpoint's 16 bit", ("small", "shipped-fp16"),
         lambda row, full: _gap(row, full, by_name.get("fp16"), 0.5)),
        ("tiny: at most 1.5 points below the checkpoint's 16 bit", ("tiny", "shipped-fp16"),
         lambda row, full: _gap(row, full, by_name.get("fp16"), 1.5)),
        (f"tiny: at most {_TOKEN_BITS} bits a visual token and {_TINY_BYTES} bytes a picture",
         ("tiny",), lambda tiny: _tiny(tiny, tokens)),
    )  # fmt: skip
    out = []
    for text, needed, check in checks:
        missing = [name for name in needed if name not in by_name]
        found = {"missing": missing} if missing else check(*(by_name[name] for name in needed))
        out.append({"claim": text, "holds": None, **found})
    curves = {codec: [row for row in rows if row["family"] == codec] for codec in PICTURES}
    out.append(
        _against(
            "small: at most 1/6 of the best picture codec's bytes, net of its header, at equal accuracy",
            by_name.get("small"),
            {name: curve for name, curve in curves.items() if curve},
            1 / 6,
            whole=False,
        )
    )
    for family, given in (("vq", ""), (f"vq-{CODED}", ", our entropy coder lent to it")):
        curve = [row for row in rows if row["family"] == family]
        out.append(_against(
            f"tiny: at most the vector quantizer's bytes at its accuracy{given}",
            by_name.get("tiny"), {family: curve} if curve else {}, 1.0, whole=True))  # fmt: skip
    most = max((row["overhead_bytes_max"] for row in rows), default=None)
    out.append(
        {
            "claim": f"header and framing: at most {_OVERHEAD} bytes beyond payload and question",
            "holds": None if most is None else most <= _OVERHEAD,
            "overhead_bytes_max": most,
        }
    )
    return out


def bytes_at(curve: Sequence[Row], macro: float) -> dict[str, Any]:
    """The bytes a method needs for an accuracy, on the curve of its rows that no other of them beats.

    Between two rows the logarithm of the bytes is interpolated over accuracy.

    Returns:
        ``bytes``, and ``where``: "at" a row or "between" two; "below" if the smallest row is already
        better, so that the true number is at most this; "beyond" if no row is as good, so that it is more
        than this (the bytes of the most accurate row).
    """
    front: list[Row] = []
    for row in sorted(curve, key=lambda row: (size_of(row), -row["accuracy"]["macro"])):
        if not front or row["accuracy"]["macro"] > front[-1]["accuracy"]["macro"]:
            front.append(row)
    above = next((i for i, row in enumerate(front) if row["accuracy"]["macro"] >= macro), None)
    if above is None:
        return {"bytes": size_of(front[-1]), "where": "beyond", "best_macro": front[-1]["accuracy"]["macro"]}
    if front[above]["accuracy"]["macro"] == macro:
        return {"bytes": size_of(front[above]), "where": "at", "rows": [front[above]["method"]]}
    if above == 0:
        return {"bytes": size_of(front[0]), "where": "below", "macro": front[0]["accuracy"]["macro"]}
    low, high = front[above - 1], front[above]
    span = high["accuracy"]["macro"] - low["accuracy"]["macro"]
    share = (macro - low["accuracy"]["macro"]) / span
    logarithm = math.log(size_of(low)) * (1 - share) + math.log(size_of(high)) * share
    return {"bytes": math.exp(logarithm), "where": "between", "rows": [low["method"], high["method"]]}


def _paper(paper: Row, full: Row) -> dict[str, Any]:
    points = full["accuracy"]["macro"] - paper["accuracy"]["macro"]
    fewer = 100 * (1 - paper["payload_bytes_mean"] / full["payload_bytes_mean"])
    holds = points <= 1 and fewer >= 87.5
    return {"holds": holds, "points_below_16_bit": points, "percent_fewer_bytes": fewer}


def _small_and_paper(small: Row, paper: Row) -> dict[str, Any]:
    share = small["payload_bytes_mean"] / paper["payload_bytes_mean"]
    ahead = small["accuracy"]["macro"] - paper["accuracy"]["macro"]
    return {"holds": share <= 1 / 8 and ahead >= 0, "share_of_bytes": share, "points_ahead": ahead}


def _gap(row: Row, full: Row, tuned: Row | None, most: float) -> dict[str, Any]:
    """Against the checkpoint as it is, which ours leave as it is; beside it the fine-tuned 16 bit."""
    points = full["accuracy"]["macro"] - row["accuracy"]["macro"]
    further = None if tuned is None else tuned["accuracy"]["macro"] - row["accuracy"]["macro"]
    return {
        "holds": points <= most,
        "points_below_16_bit": points,
        "points_below_fine_tuned_16_bit": further,
    }


def _tiny(tiny: Row, tokens: int) -> dict[str, Any]:
    token_bits = 8 * tiny["payload_bytes_mean"] / tokens
    return {
        "holds": token_bits <= _TOKEN_BITS and tiny["payload_bytes_mean"] <= _TINY_BYTES,
        "bits_a_token": token_bits,
        "payload_bytes_mean": tiny["payload_bytes_mean"],
    }


def _against(
    text: str, ours: Row | None, curves: dict[str, list[Row]], share: float, *, whole: bool
) -> dict[str, Any]:
    """Ours against the best of some curves at our accuracy: at most ``share`` of its bytes.

    A curve that never gets as accurate as ours is beaten by any size; it then counts with the bytes of
    its most accurate row, which is the stricter reading. A curve that is more accurate than ours from
    its first row on might need still fewer bytes: then nothing is claimed, unless the curve is all there
    is (``whole``).
    """
    if ours is None or not curves:
        missing = text.partition(":")[0] if ours is None else "rivals"
        return {"claim": text, "holds": None, "missing": [missing]}
    needs = {name: bytes_at(curve, ours["accuracy"]["macro"]) for name, curve in curves.items()}
    reached = {name: need for name, need in needs.items() if need["where"] != "beyond"}
    best = min(reached or needs, key=lambda name: float((reached or needs)[name]["bytes"]))
    ratio = ours["payload_bytes_mean"] / needs[best]["bytes"]
    open_ended = not whole and any(need["where"] == "below" for need in needs.values())
    return {
        "claim": text,
        "holds": None if open_ended and ratio <= share else ratio <= share,
        "share_of_bytes": ratio,
        "most": share,
        "best": best,
        "macro": ours["accuracy"]["macro"],
        "payload_bytes_mean": ours["payload_bytes_mean"],
        "rivals_need": needs,
    }
