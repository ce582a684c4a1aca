"""What the device's side costs over what it cannot avoid, in one run and in turns.

    python -m benchmarks.edge_latency --geometry so400m --json build/latency.json

Random weights at the tower's published sizes. ``--quick`` takes fewer rounds and says so. Each ratio is the
median over the rounds of the ratio within a round, so that a machine that is busy with other things counts on
both sides. Beside each stands the same ratio of processor time, which other programs touch less, and the
spread over the rounds.
"""

from __future__ import annotations

import io
import json
import platform
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any, Final

import click
import numpy as np
import onnxruntime
import torch
from PIL import Image

from benchmarks.edge_latency.client_half import GEOMETRIES, Built, build
from edge_runtime import cold
from edge_runtime.client import EdgeClient
from edge_runtime.encoder import CPU
from edge_runtime.golden import difference, golden_of
from edge_runtime.machine import look
from edge_runtime.variants import variant
from qtl_core import messages as m
from qtl_core import wire
from qtl_core.exits import run

ROUNDS: Final = {"tiny": 60, "base": 15, "so400m": 7}
QUICK_ROUNDS: Final = {"tiny": 20, "base": 5, "so400m": 3}
RATIOS: Final = {
    "graph_over_tower": ("graph", "tower", 1.02),
    "runtime_over_graph": ("runtime", "graph", 1.05),
    "int8_over_fp32": ("int8", "graph", 0.55),
    "ort_over_torch": ("graph", "torch", 0.8),
}
"""Name -> what, over what, and at most how much (the goals are for so400m)."""
GOALS: Final = {**{name: goal for name, (_, _, goal) in RATIOS.items()}, "resident_over_model": 1.4}
_PACKAGES: Final = ("torch", "transformers", "onnxruntime", "numpy", "Pillow")


@click.command()
@click.option("--geometry", type=click.Choice(list(GEOMETRIES)), default="base", show_default=True)
@click.option("--threads", type=click.IntRange(1), metavar="N", help="Of all runtimes.  [default: all cores]")
@click.option("--rounds", type=click.IntRange(1), metavar="N", help="How many turns of each.")
@click.option("--quick", is_flag=True, help="Fewer rounds; the JSON says so.")
@click.option(
    "--json", "json_file", type=click.Path(path_type=Path), metavar="FILE", help="Write the numbers here."
)
def cli(geometry: str, threads: int | None, rounds: int | None, quick: bool, json_file: Path | None) -> None:
    """Latency and memory of the client graph at a tower's geometry."""
    machine = look()
    threads = threads or machine.cores
    rounds = rounds or (QUICK_ROUNDS if quick else ROUNDS)[geometry]
    with tempfile.TemporaryDirectory(prefix="qtl-latency-") as folder:
        built = build(GEOMETRIES[geometry], Path(folder))
        turns, busy = in_turns(ways(built, threads), len(built.pictures), rounds)
        codes = int8_codes(built)
        model = variant(built.half, "").bytes
        fresh = cold.start(built.half.path, "fp32", CPU, threads)
        fresh_int8 = cold.start(built.half.path, "int8", CPU, threads)
        result: dict[str, Any] = {
            "quick": quick,
            "geometry": geometry,
            "weights": "random",
            "threads": threads,
            "rounds": rounds,
            **{name: median_ratio(turns[a], turns[b]) for name, (a, b, _) in RATIOS.items()},
            "cpu": {name: median_ratio(busy[a], busy[b]) for name, (a, b, _) in RATIOS.items()},
            "spread": {name: spread(turns[a], turns[b]) for name, (a, b, _) in RATIOS.items()},
            "cpu_spread": {name: spread(busy[a], busy[b]) for name, (a, b, _) in RATIOS.items()},
            "int8_codes_differ": codes["share"],
            "cold_start_s": fresh.seconds,
            "resident_over_model": None if fresh.resident is None else fresh.resident / model,
            "int8_cold_start_s": fresh_int8.seconds,
            "int8_codes": codes,
            "resident_bytes": fresh.resident,
            "model_bytes": model,
            "int8_bytes": variant(built.half, "int8").bytes,
            "ms": {name: 1000 * statistics.median(seconds) for name, seconds in turns.items()},
            "cpu_ms": {name: 1000 * statistics.median(seconds) for name, seconds in busy.items()},
            "goals": GOALS,
            "versions": {"python": platform.python_version(), **{name: version(name) for name in _PACKAGES}},
            "machine": {"cpu": machine.cpu, "architecture": machine.architecture, "cores": machine.cores,
                        "speedups": machine.speedups},
        }  # fmt: skip
    click.echo(table(result))
    if json_file is not None:
        json_file.parent.mkdir(parents=True, exist_ok=True)
        json_file.write_text(json.dumps(result, indent=1) + "\n", "utf-8")


def ways(built: Built, threads: int) -> dict[str, Callable[[int], Any]]:
    """What is timed, each as a function of the number of the picture."""
    torch.set_num_threads(threads)
    tower, graph = _session(built.tower, threads), _session(built.half.file("client.onnx"), threads)
    int8 = _session(built.half.file("client.int8.onnx"), threads)
    pixels = (built.pictures.astype(np.float32).transpose(0, 3, 1, 2) - 127.5) / 127.5
    client = EdgeClient(built.half.path, threads=threads)
    files = [_png(picture) for picture in built.pictures]
    tensors = torch.from_numpy(built.pictures)

    def message(i: int) -> list[bytes]:
        """A picture file to the frames that would be sent."""
        encoded = client.encode(files[i])
        payload, codec = (
            (encoded.payload, m.CODEC_PACKED) if encoded.coded is None else (encoded.coded, m.CODEC_RANS)
        )
        frame = wire.frame_codes("v", payload, codec=codec)
        return wire.join(m.Ask(id=1, frames=(frame,), question="what is in the picture?"), [payload])

    def pytorch(i: int) -> torch.Tensor:
        with torch.inference_mode():
            result: torch.Tensor = built.partition(tensors[i : i + 1])
        return result

    return {
        "tower": lambda i: tower.run(None, {"pixels": pixels[i : i + 1]}),
        "graph": lambda i: graph.run(None, {"picture": built.pictures[i : i + 1]}),
        "runtime": message,
        "int8": lambda i: int8.run(None, {"picture": built.pictures[i : i + 1]}),
        "torch": pytorch,
    }


def in_turns(
    todo: Mapping[str, Callable[[int], object]],
    pictures: int,
    rounds: int,
    clock: Callable[[], float] = time.perf_counter,
    processor: Callable[[], float] = time.process_time,
) -> tuple[dict[str, list[float]], dict[str, list[float]]]:
    """Times each way in each round, all with the same picture in a round, after one warm-up of each.

    Args:
        todo: what to time.
        pictures: how many there are to go through.
        rounds: how often.
        clock: seconds.
        processor: seconds that this process kept processors busy.

    Returns:
        Seconds, and processor seconds, by way.
    """
    seconds: dict[str, list[float]] = {name: [] for name in todo}
    busy: dict[str, list[float]] = {name: [] for name in todo}
    for way in todo.values():
        way(0)
    for round_ in range(rounds):
        # Every other round backwards: none always follows the same one.
        names = list(todo) if round_ % 2 == 0 else list(todo)[::-1]
        for name in names:
            start, worked = clock(), processor()
            todo[name](round_ % pictures)
            seconds[name].append(clock() - start)
            busy[name].append(processor() - worked)
    return seconds, busy


def median_ratio(a: list[float], b: list[float]) -> float:
    """Median over the rounds of one time over another."""
    return statistics.median(x / y for x, y in zip(a, b, strict=True))


def spread(a: list[float], b: list[float]) -> list[float]:
    """The smallest and the largest of the rounds' ratios."""
    ratios = [x / y for x, y in zip(a, b, strict=True)]
    return [min(ratios), max(ratios)]


def int8_codes(built: Built) -> dict[str, Any]:
    """How the int8 graph's codes differ from the fp32 graph's, which are the golden ones."""
    golden = golden_of(built.half)
    if golden is None:
        raise click.ClickException("the client half has no golden pictures")
    session = _session(built.half.file("client.int8.onnx"), 0)
    found = [session.run(None, {"picture": one[np.newaxis]})[0][0].tobytes() for one in golden.pictures]
    apart = difference(built.half.manifest.cut, golden.payloads, found)
    return {
        "compared": apart.compared,
        "differ": apart.differ,
        "share": apart.share,
        "largest_difference": apart.largest,
    }


def table(result: dict[str, Any]) -> str:
    """The ratios beside their goals, and the times."""
    lines = [f"{result['geometry']}, {result['threads']} threads, {result['rounds']} rounds in turns"]
    for name in (*RATIOS, "resident_over_model"):
        value = result[name]
        shown = "unknown" if value is None else f"{value:.3f}"
        line = f"  {name:<20} {shown:>8}   at most {result['goals'][name]:.2f} at so400m"
        if name in RATIOS:
            low, high = result["cpu_spread"][name]
            line += f"; of processor time {result['cpu'][name]:.3f} ({low:.3f} to {high:.3f})"
        lines.append(line)
    codes = result["int8_codes"]
    lines.append(
        f"  {'int8_codes_differ':<20} {100 * codes['share']:>7.2f}%   of {codes['compared']:,}, by at most "
        f"{codes['largest_difference']:.0f}"
    )
    lines.append(f"  {'cold_start_s':<20} {result['cold_start_s']:>8.2f}")
    lines += [f"  {name:<20} {ms:>8.2f} ms" for name, ms in result["ms"].items()]
    return "\n".join(lines)


def _session(path: Path, threads: int) -> Any:
    """A bare onnxruntime session with the same options as the device's."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.log_severity_level = 3
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    return onnxruntime.InferenceSession(str(path), sess_options=options, providers=[CPU])


def _png(picture: np.ndarray[Any, Any]) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(picture).save(buffer, "PNG")
    return buffer.getvalue()


if __name__ == "__main__":
    sys.exit(run(lambda: cli.main(prog_name="python -m benchmarks.edge_latency", standalone_mode=False)))
