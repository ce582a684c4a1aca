"""Makes ``tests/golden/trainable``: training graphs small enough to commit. Needs PyTorch; tests do not.

    python tests/edge/make_trainable.py

For each scaling: the graphs that qtl-export writes of a small connector and quantizer behind a tower that
takes means of pixels, and the weights that PyTorch's own client has after the replay of
``tests.edge.trainable``.
"""

from __future__ import annotations

import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from qtl_core import tensor_file, trainable
from qtl_core.nn.quantizer import Quantizer
from qtl_core.split_stage import levels_of
from qtl_export.graph import save, trace
from qtl_export.trainable.writing import client_tensors, described, write_description, write_step
from qtl_training.split.client_side import ClientSide
from tests.edge import trainable as replaying

WIDTH, CODE_DIM = 8, 5


class Means(nn.Module):
    """The tower: means of 8 x 8 pixels."""

    def forward(self, picture: Tensor) -> Tensor:
        cells = picture.float().reshape(-1, 4, 8, 4, 8, 3).mean((2, 4))
        return (cells.reshape(-1, *replaying.TOWER) / 64 - 2).to(torch.float16)


def model(scaling: replaying.Scaling) -> Any:
    """Connector and quantizer: k a number for each level count under "frozen", for each channel otherwise."""
    torch.manual_seed(replaying.SEED)
    connector = nn.Sequential(
        nn.LayerNorm(replaying.TOWER[1]), nn.Linear(replaying.TOWER[1], 16), nn.GELU(), nn.Linear(16, WIDTH)
    )
    k: Any = {2: 1.2, 16: 1.8} if scaling == "frozen" else np.linspace(1, 2, CODE_DIM).tolist()
    quantizer = Quantizer(WIDTH, CODE_DIM, 4, scaling, k, merge=2)
    vision = SimpleNamespace(connector=connector)
    return SimpleNamespace(vision=vision, vision_quantizer=quantizer.train(), quantized=True)


def replay(client: Any) -> None:
    """Trains PyTorch's client as ``tests.edge.trainable.replay`` trains the device's."""
    stage = replaying.STAGE
    side, known = ClientSide(client, stage), torch.from_numpy(replaying.features())
    for step in range(stage.steps):
        levels = levels_of(stage, replaying.SEED, step)
        drawn = enumerate(replaying.drawn(step))
        crossed = [side.forward(number, known[chosen], levels) for number, chosen in drawn]
        for number, one in enumerate(crossed):
            side.backward(number, replaying.gradient(step, number, one.shape))
        side.apply(step, 2 * side.squared_norm(replaying.TOKENS_ANSWERED))


def write(folder: Path, scaling: replaying.Scaling) -> None:
    """Writes graphs, what is begun with and what the replay ends in."""
    (folder / trainable.FOLDER).mkdir(parents=True)
    client = model(scaling)
    blank = torch.zeros(2, 32, 32, 3, dtype=torch.uint8)
    save(trace(Means().eval(), blank, "picture", "features"), folder, name=trainable.FEATURES)
    write_step(folder, client.vision.connector, client.vision_quantizer, replaying.TOWER)
    (folder / trainable.START).write_bytes(dumped(client))
    training = described(
        client.vision_quantizer, [replaying.STAGE], [replaying.SEED], replaying.TOWER, replaying.TOWER[0],
        name="replay", fingerprint="0" * 32, log_every=1,
    )  # fmt: skip
    write_description(folder, training)
    replay(client)
    (folder / "replayed.safetensors").write_bytes(dumped(client))


def dumped(client: Any) -> bytes:
    return tensor_file.dump({name: value.numpy() for name, value in client_tensors(client).items()})


if __name__ == "__main__":
    torch.set_num_threads(1)
    shutil.rmtree(replaying.GOLDEN, ignore_errors=True)
    for scaling in replaying.SCALINGS:
        write(replaying.GOLDEN / scaling, scaling)
    for path in sorted(replaying.GOLDEN.rglob("*.*")):
        print(f"{path.relative_to(replaying.GOLDEN)}: {path.stat().st_size} bytes")
