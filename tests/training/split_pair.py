"""A split run in one process: the server in a thread of its own, each client in another, over loopback."""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch

from edge_runtime.training.client import Done, Link, TrainingClient
from qtl_core.errors import LinkError
from qtl_training.local import train
from qtl_training.recipe import Recipe, read_recipe
from qtl_training.split.agreement import fingerprint
from qtl_training.split.client import Bars, TorchRun
from qtl_training.split.server import TrainingServer
from qtl_training.split.serving import Serving
from server_runtime.config import ServerConfig
from server_runtime.listener import Listener

MODEL = """
[model]
image_size = 96
patch_size = 16
stem_widths = [4, 8, 8]
stem_blocks = [0, 0, 1]
tower_width = 16
tower_layers = 1
tower_heads = 2
tower_mlp = 16
width = 16
layers = 2
heads = 2
mlp = 16
vocabulary = 300
[model.vision]
code_dim = 8
scaling = "frozen"
merge = 2
[model.language]
code_dim = 16
"""

STAGE = """kind = "split"
steps = {steps}
scenes = 16
micro_batches = 2
pictures = 3
questions = 2
levels = [4]
train = ["connector", "decoder", "vision_quantizer"]
optimizer = {{ lr = 1e-3 }}"""


def recipe_of(folder: Path, *stages: str, top: str = "", steps: int = 3) -> Recipe:
    """A recipe of a tiny model; each of ``stages`` is what its stage has beyond the common settings."""
    file = folder / "pair.toml"
    text = f'name = "pair"\nseed = 3\ncheckpoint_every = 0.0\nlog_every = 1\n{top}\n{MODEL}'
    for more in stages:
        given = {line.split(" = ")[0] for line in more.splitlines()}
        lines = [line for line in STAGE.format(steps=steps).splitlines() if line.split(" = ")[0] not in given]
        text += "\n".join(["[[stages]]", *lines, more, ""])
    file.write_text(text)
    return read_recipe(file)


def served(recipe: Recipe, folder: Path) -> TrainingServer:
    """A training server that listens; the caller serves."""
    serving = Serving(recipe, folder)
    listener = Listener(ServerConfig(bind="tcp://127.0.0.1:*"), max_payload=serving.largest)
    return TrainingServer(serving, fingerprint(recipe), listener)


def across(recipe: Recipe, folder: Path) -> Done:
    """Runs it across the cut; checkpoints and logs are in folder/server and folder/client."""
    torch.set_num_threads(1)
    server = served(recipe, folder / "server")
    with ThreadPoolExecutor() as threads:
        serving = threads.submit(server.serve)
        try:
            return client_of(recipe, folder / "client", server.endpoint).train()
        except LinkError:
            serving.result(0)  # says why, if it was the server
            raise
        finally:
            server.stop()


def client_of(recipe: Recipe, folder: Path, endpoint: str) -> TrainingClient:
    run = TorchRun(recipe, folder, progress=False)
    link = Link(server=endpoint, timeout=20.0, comeback=1.0)
    return TrainingClient(run, link, watch=Bars("pair", 1, shown=False), evaluation=run.evaluation)


def in_one(recipe: Recipe, folder: Path) -> Path:
    """Runs it in one process; returns its checkpoint."""
    torch.set_num_threads(1)
    return train(recipe, folder, progress=False)


def weights(folder: Path) -> dict[str, bytes]:
    return {name: (folder / name).read_bytes() for name in ("model.safetensors", "qtl.safetensors")}


def log(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
