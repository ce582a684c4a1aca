"""What the entropy coder saves on the shipped checkpoint, what conditioning is worth, and what coding costs.

    python -m benchmarks.entropy_coder --json build/entropy.json

measures tables on training scenes and counts bytes on test scenes: static tables, tables that depend on the
code before, the coder's classes of tokens; payloads beside packed ones and constriction's; processor time
beside the client graph's; and how much damage the coder and the checksum let pass. ``--quick`` takes fewer
scenes and pictures. ``--so400m`` also runs a tower of that size with random weights, for the time of its
graph (4 GB of memory, a minute); a time measured elsewhere can be given instead.
"""

from __future__ import annotations

import json
import platform
import sys
import tempfile
import zlib
from importlib.metadata import version
from pathlib import Path
from typing import Any

import click
import numpy as np
from tqdm import tqdm

from benchmarks.entropy_coder import conditioning, timing
from benchmarks.entropy_coder.report import text
from qtl_core import shipped
from qtl_core.codes import bits_of, packed_size
from qtl_core.entropy import Tables, decode, encode_batch
from qtl_core.errors import CodeError
from qtl_core.exits import run
from qtl_core.messages import CODEC_RANS, Ask
from qtl_core.nn.checkpoint import Checkpoint, load_checkpoint
from qtl_core.wire import frame_codes, join, wire_size
from qtl_training.tables import codes_of, scene_features

LEVELS = (2, 4, 8, 16, 32)
_KNOWN, _TEST, _QUICK_KNOWN, _QUICK_TEST = 3000, 1000, 500, 200
_HELD_OUT = 24
_CORRUPTIONS = 10_000
_WORTH = 0.08
_PACKAGES = ("torch", "onnxruntime", "numpy")
_QUESTION = "how many red digits are there?"

_EXAMPLE = """
\b
Examples:
  python -m benchmarks.entropy_coder --quick --json build/entropy.json
  python -m benchmarks.entropy_coder --so400m-graph-ms 3800 --json build/entropy.json
"""


@click.command(epilog=_EXAMPLE)
@click.argument("checkpoint", required=False, type=click.Path(path_type=Path))
@click.option("--quick", is_flag=True, help="Fewer scenes and repeats; the JSON says so.")
@click.option("--so400m", is_flag=True, help="Time a tower of so400m's size with random weights.")
@click.option(
    "--so400m-graph-ms",
    "graph_ms",
    type=click.FloatRange(min=0, min_open=True),
    metavar="MS",
    help="Milliseconds of a so400m client graph, measured elsewhere on one thread.",
)
@click.option(
    "--json", "json_file", type=click.Path(path_type=Path), metavar="FILE", help="Write the numbers here."
)
def cli(
    checkpoint: Path | None, quick: bool, so400m: bool, graph_ms: float | None, json_file: Path | None
) -> None:
    """Bytes and time of the entropy coder on CHECKPOINT, by default the shipped one."""
    folder = shipped.digits() if checkpoint is None else checkpoint
    result: dict[str, Any] = {
        "quick": quick,
        "weights": "the shipped checkpoint (trained)" if checkpoint is None else str(folder),
        "known_scenes": _QUICK_KNOWN if quick else _KNOWN,
        "test_scenes": _QUICK_TEST if quick else _TEST,
    }
    result["rows"], codes, tables = _rows(folder, quick)
    with tempfile.TemporaryDirectory(prefix="qtl-entropy-") as work:
        result["graph_ms"] = timing.graph_ms(folder, Path(work) / "bundle", 20 if quick else 100)
    for row in result["rows"]:
        row["share_of_graph"] = row["encode_ms"] / result["graph_ms"]
    result["damage"] = damage(codes, tables)
    result["message"] = message_overhead(int(result["rows"][1]["coded_bytes_mean"]))
    result["so400m"] = _so400m(quick, so400m, graph_ms)
    result["versions"] = {
        "python": platform.python_version(),
        "constriction": _version_of("constriction"),
        **{name: version(name) for name in _PACKAGES},
    }
    result["machine"] = platform.machine()
    click.echo(text(result))
    if json_file is not None:
        json_file.parent.mkdir(parents=True, exist_ok=True)
        json_file.write_text(json.dumps(result, indent=1) + "\n", "utf-8")


def _rows(folder: Path, quick: bool) -> tuple[list[dict[str, Any]], conditioning.Codes, Tables]:
    """A row for each quantizer and level count; and the own quantizer's 2-bit codes with their tables."""
    own = load_checkpoint(folder)
    known = scene_features(own, "train", _QUICK_KNOWN if quick else _KNOWN)
    test = scene_features(own, "test", _QUICK_TEST if quick else _TEST)
    wanted = [("", levels) for levels in LEVELS]
    wanted += [(name, own.further[name].settings.levels) for name in own.quantizers]
    rows = []
    for name, levels in tqdm(wanted, desc="quantizers and levels", disable=None):
        checkpoint = load_checkpoint(folder, quantizer=name) if name else own
        row, codes, tables = _row(checkpoint, known, test, levels, quick)
        rows.append(row)
        if (name, levels) == ("", 4):
            kept = codes, tables
    return rows, *kept


def _row(
    checkpoint: Checkpoint, known: Any, test: Any, levels: int, quick: bool
) -> tuple[dict[str, Any], conditioning.Codes, Tables]:
    seen, codes = codes_of(checkpoint, known, levels), codes_of(checkpoint, test, levels)
    tables = Tables.fit(seen, levels)
    static = conditioning.bytes_of_picture(seen, codes, tables)
    saves = {name: 1 - size / static["static"] for name, size in static.items() if name != "static"}
    row = {
        "quantizer": checkpoint.quantizer or "own",
        "levels": levels,
        "bits": bits_of(levels),
        "codes": int(codes[0].size),
        "packed_bytes": packed_size(codes[0].size, levels),
        "cross_entropy_bytes": static,
        "saves_beyond_static": saves,
        "conditioning_pays": saves["classes"] >= _WORTH,
        **conditioning.coded(codes, tables),
        "held_out_tables_bytes_mean": conditioning.coded(codes, Tables.fit(seen[:_HELD_OUT], levels))[
            "coded_bytes_mean"
        ],
        "constriction_bytes_mean": conditioning.constriction_bytes(codes[:200], tables),
        "coded_bytes_mean_same_pictures": float(np.mean([len(d) for d in encode_batch(codes[:200], tables)])),
        **timing.coding(codes, tables, 50 if quick else 300, 256),
    }
    return row, codes, tables


def damage(codes: conditioning.Codes, tables: Tables) -> dict[str, Any]:
    """How many of 10,000 corruptions pass coder and CRC-32: one flipped bit, four, cut short or extended."""
    payloads = encode_batch(codes, tables)
    rng = np.random.default_rng(0)
    found: dict[str, Any] = {"corruptions": _CORRUPTIONS}
    for name, flips in (("one_bit", 1), ("four_bits", 4), ("length", 0)):
        passed = unseen = 0
        for number in range(_CORRUPTIONS):
            good = payloads[number % len(payloads)]
            bad = bytearray(good)
            for bit in rng.choice(8 * len(good), flips, replace=False).tolist():
                bad[bit // 8] ^= 1 << bit % 8
            if not flips:
                cut = int(rng.integers(-len(good), 5)) or 1
                bad = bad[:cut] if cut < 0 else bad + rng.bytes(cut)
            unseen += zlib.crc32(bad) == zlib.crc32(good)
            try:
                decode(bytes(bad), tables, codes.shape[1:])
                passed += 1
            except CodeError:
                pass
        found[name] = {"coder_misses": passed / _CORRUPTIONS, "checksum_misses": unseen / _CORRUPTIONS}
    return found


def message_overhead(payload: int) -> dict[str, int]:
    """Bytes of a question's message beyond payload and question, all framing and the checksum included."""
    data = bytes(range(payload))
    ask = Ask(1, (frame_codes("v", data, codec=CODEC_RANS),), _QUESTION)
    frames, plain = join(ask, [data]), payload + len(_QUESTION)
    return {
        "payload": payload,
        "question": len(_QUESTION),
        "overhead": wire_size(frames) - plain,
        "overhead_curve": wire_size(frames, curve=True) - plain,
    }


def _so400m(quick: bool, measure: bool, given_ms: float | None) -> dict[str, Any]:
    repeats = 2 if quick else 5
    graph = timing.so400m_tower_ms(1 if quick else 3) if measure else given_ms
    cases = [(4, 1)] if quick else [(2, 1), (4, 1), (4, 64), (8, 1)]
    rows = [
        timing.so400m(levels, classes, repeats, 8) for levels, classes in tqdm(cases, "so400m", disable=None)
    ]
    for row in rows:
        row["share_of_graph"] = None if graph is None else row["encode_ms"] / graph
    source = "random weights, PyTorch, one thread" if measure else "given" if given_ms else "not measured"
    return {"graph_ms": graph, "graph": source, "codes": "Gaussian features, k = 3", "rows": rows}


def _version_of(package: str) -> str | None:
    try:
        return version(package)
    except ImportError:
        return None


if __name__ == "__main__":
    sys.exit(run(lambda: cli.main(standalone_mode=False)))
