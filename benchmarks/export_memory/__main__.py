"""Memory of an export beside the sizes of what is exported.

    python -m benchmarks.export_memory --geometry so400m --json build/export-memory.json

Random weights: a SigLIP tower at published sizes before a decoder that is several times larger, in shards,
in bfloat16. The export (two bits, a quantizer fitted to a few pictures, codes validated) runs in a process of
its own. ``ratio`` is its most memory, beyond what it takes to import PyTorch, over the client partition in
float32.
``--quick`` takes the geometry "medium" and says so.
"""

from __future__ import annotations

import json
import platform
import subprocess
import sys
import tempfile
from importlib.metadata import version
from pathlib import Path
from typing import Any, Final

import click
import torch

from benchmarks.export_memory.random_checkpoint import SIZES, write, write_pictures
from edge_runtime.machine import look
from qtl_core.exits import run

GOAL: Final = 2.5
PICTURES: Final = 4
CODE_DIM: Final = 256
"""Codes a token, at most: so few that four pictures are enough to fit them to."""
_PACKAGES: Final = ("torch", "transformers", "safetensors", "onnxscript", "onnxruntime", "numpy")
_DTYPES: Final = {"bfloat16": torch.bfloat16, "float16": torch.float16, "float32": torch.float32}


@click.command()
@click.option("--geometry", type=click.Choice(list(SIZES)), default="so400m", show_default=True)
@click.option("--dtype", type=click.Choice(list(_DTYPES)), default="bfloat16", show_default=True)
@click.option(
    "--work",
    type=click.Path(path_type=Path),
    metavar="DIR",
    help="Where checkpoint and bundle lie meanwhile; 14 GB for so400m.  [default: a temporary folder]",
)
@click.option("--quick", is_flag=True, help="The geometry medium; the JSON says so.")
@click.option(
    "--json", "json_file", type=click.Path(path_type=Path), metavar="FILE", help="Write the numbers here."
)
def cli(geometry: str, dtype: str, work: Path | None, quick: bool, json_file: Path | None) -> None:
    """Peak memory of an export over the size of its client partition."""
    result = measured("medium" if quick else geometry, dtype, work)
    result["quick"] = quick
    click.echo(table(result))
    if json_file is not None:
        json_file.parent.mkdir(parents=True, exist_ok=True)
        json_file.write_text(json.dumps(result, indent=1) + "\n", "utf-8")


def measured(geometry: str, dtype: str, work: Path | None = None) -> dict[str, Any]:
    """Writes a checkpoint, exports it in a process of its own, and returns the numbers."""
    sizes = SIZES[geometry]
    with tempfile.TemporaryDirectory(prefix="qtl-export-memory-", dir=work) as name:
        folder = Path(name)
        decoder = write(folder / "checkpoint", sizes, _DTYPES[dtype])
        write_pictures(folder / "pictures", PICTURES, sizes.side)
        places = [str(folder / each) for each in ("checkpoint", "pictures", "bundle")]
        command = [sys.executable, "-m", "benchmarks.export_memory.measured", *places]
        command.append(str(min(CODE_DIM, sizes.tokens // 2)))
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            raise click.ClickException(f"the export failed:\n{done.stderr.strip()}")
        found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    client = found["client_bytes"]
    return {
        "geometry": geometry,
        "weights": f"random, {dtype}",
        "ratio": (found["peak_bytes"] - found["import_torch_bytes"]) / client,
        "ratio_beyond_all_imports": (found["peak_bytes"] - found["import_all_bytes"]) / client,
        "goal": GOAL,
        "decoder_bytes": decoder,
        "decoder_over_client": decoder / client,
        **found,
        "versions": {"python": platform.python_version(), **{name: version(name) for name in _PACKAGES}},
        "machine": {"cpu": look().cpu, "architecture": look().architecture, "cores": look().cores},
    }


def table(result: dict[str, Any]) -> str:
    """The numbers and the stages, for people."""
    beyond = result["import_torch_bytes"]
    lines = [
        f"{result['geometry']}, {result['weights']}: client partition {_mega(result['client_bytes'])}, "
        f"decoder {_mega(result['decoder_bytes'])} on disk ({result['decoder_over_client']:.1f} times), "
        f"server half {_mega(result['server_bytes'])}",
        f"peak {_mega(result['peak_bytes'])}; {_mega(beyond)} of it is PyTorch, "
        f"{_mega(result['import_all_bytes'] - beyond)} the other imports",
        f"ratio {result['ratio']:.2f} (goal: at most {result['goal']}), "
        f"{result['ratio_beyond_all_imports']:.2f} beyond all imports; {result['seconds']:.0f} s",
    ]
    stages = result["peak_bytes_by_stage"].items()
    lines += [f"{(peak - beyond) / result['client_bytes']:>8.2f}  {stage}" for stage, peak in stages]
    return "\n".join(lines)


def _mega(n: int) -> str:
    return f"{n / 1e6:,.0f} MB"


if __name__ == "__main__":
    sys.exit(run(lambda: cli.main(prog_name="python -m benchmarks.export_memory", standalone_mode=False)))
