"""A client half that can be trained, small enough for tests: committed graphs, and a run to replay."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Final, Literal

import msgspec
import numpy as np
import numpy.typing as npt

from edge_runtime.training.graphs import Arrays, Graphs
from edge_runtime.training.side import DeviceStage
from qtl_core import bundle, tensor_file
from qtl_core.bundle import Half, open_half
from qtl_core.crossing import MicroBatch
from qtl_core.split_stage import ConversationData, Optimizer, SplitStage, levels_of
from qtl_core.trainable import FILE, FOLDER, START, read_training
from tests.edge import tiny

GOLDEN = tiny.GOLDEN / "trainable"
SCALINGS: Final = ("frozen", "image")
Scaling = Literal["frozen", "image"]

STAGE = SplitStage(
    steps=100,
    micro_batches=2,
    levels=(4, 0, 5),
    weights=(0.6, 0.2, 0.2),
    grad_bits=8,
    train=("connector", "vision_quantizer"),
    quantizer_lr=2e-3,
    k_lr=5e-3,
    optimizer=Optimizer(lr=1e-3, clip=0.5, weight_decay=0.1),
    data=ConversationData(rows=3, max_pictures=2, max_tokens=64),
)
SEED = 7
PICTURES = 12
TOWER = (tiny.TOKENS, 3)
"""Tokens and width of the tower's features: means of 8 x 8 pixels."""
TOKENS_ANSWERED = 20


def features(n: int = PICTURES) -> npt.NDArray[np.float16]:
    """What the tower makes of scenes 0 to n - 1."""
    return np.stack([tiny.means(tiny.scene(seed)) / 64 - 2 for seed in range(n)]).astype(np.float16)


def drawn(step: int) -> list[list[int]]:
    """Pictures of the step's micro-batches."""
    chosen = np.random.default_rng([SEED, step]).permutation(PICTURES)
    return [chosen[:4].tolist(), chosen[4:8].tolist()]


def gradient(step: int, micro: int, shape: Sequence[int]) -> npt.NDArray[np.float32]:
    """What the server says of a micro-batch, were there one."""
    random = np.random.default_rng([SEED, step, micro])
    return (random.standard_normal(shape) * 2).astype(np.float32)


def replayed(scaling: Scaling) -> Arrays:
    """The tensors that PyTorch's client ends with after all steps."""
    path = GOLDEN / scaling / "replayed.safetensors"
    return tensor_file.load(path.read_bytes(), str(path))


def started(scaling: Scaling) -> Arrays:
    """The tensors that it begins with."""
    path = GOLDEN / scaling / START
    return tensor_file.load(path.read_bytes(), str(path))


def replay(half: Half, tensors: Arrays, steps: int = STAGE.steps) -> None:
    """Trains ``tensors`` on the device's graphs, on the features and gradients that PyTorch had."""
    training = read_training(half)
    known = features()

    class Known:
        def of(self, pictures: Sequence[int]) -> npt.NDArray[np.float16]:
            return known[list(pictures)]

        def micro_batches(self, step: int) -> list[MicroBatch]:
            return [MicroBatch(tuple(one), ()) for one in drawn(step)]

    side = DeviceStage(training, 0, tensors, Graphs(half, threads=1), Known(), Known())
    for step in range(steps):
        levels = levels_of(STAGE, SEED, step)
        micros = side.micro_batches(step)
        crossed = [side.forward(number, micro.pictures, levels) for number, micro in enumerate(micros)]
        for number, one in enumerate(crossed):
            side.backward(number, gradient(step, number, one.shape))
        side.apply(step, 2 * side.squared_norm(TOKENS_ANSWERED))


def distance(first: Arrays, second: Arrays) -> float:
    """Euclidean distance of all tensors but the statistics, which follow no gradient."""
    apart = [first[name] - second[name] for name in first if not name.endswith((".mean", ".std"))]
    return float(np.sqrt(sum(np.square(one, dtype=np.float64).sum() for one in apart)))


def write_half(folder: Path, scaling: Scaling = "frozen", stages: Sequence[SplitStage] = (STAGE,)) -> Half:
    """Writes a client half into ``folder`` that can be trained with these stages."""
    committed = GOLDEN / scaling / FOLDER
    files = {f"{FOLDER}/{path.name}": path.read_bytes() for path in committed.iterdir()}
    training = json.loads(files[FILE])
    training |= {"stages": msgspec.to_builtins(list(stages)), "seeds": [SEED] * len(stages)}
    # As the real one: another recipe has another.
    training["fingerprint"] = hashlib.sha256(json.dumps(training["stages"]).encode()).hexdigest()[:32]
    files[FILE] = json.dumps(training).encode()
    tiny.write_client(folder, files=files)
    return open_half(folder, "client")


def write_data(folder: Path, n: int = PICTURES) -> Path:
    """Writes conversations about n pictures, some about two and one about none, beside the pictures."""
    folder.mkdir(parents=True, exist_ok=True)
    samples = []
    for seed in range(n):
        (folder / f"{seed}.png").write_bytes(tiny.file_bytes(tiny.scene(seed)))
        shown = [f"{seed}.png", f"{(seed + 1) % n}.png"][: 1 + seed % 2]
        said = [
            {"from": "human", "value": "<image>" * len(shown) + "\nwhat is it?"},
            {"from": "gpt", "value": f"it is {seed}"},
        ]
        samples.append({"id": str(seed), "image": shown, "conversations": said})
    text = [{"from": "human", "value": "and you?"}, {"from": "gpt", "value": "a test"}]
    samples.append({"id": "text", "conversations": text})
    file = folder / "data.json"
    file.write_text(json.dumps(samples), encoding="utf-8")
    return file


def picture() -> bundle.Picture:
    """How a picture is prepared."""
    return tiny.PICTURE
