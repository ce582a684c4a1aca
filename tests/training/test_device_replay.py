"""The device's training step on the shipped checkpoint, held against PyTorch's client step for step."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import msgspec
import numpy as np
import pytest
from numpy.typing import NDArray

from edge_runtime.training.graphs import Graphs
from edge_runtime.training.side import DeviceStage
from qtl_core import shipped, tensor_file, trainable
from qtl_core.bundle import hash_files, open_half, write_manifest
from qtl_core.crossing import MicroBatch
from qtl_core.nn.checkpoint import QuantizerSettings, load_checkpoint
from qtl_core.nn.requantizing import requantized
from qtl_core.split_stage import ConversationData, Optimizer, SplitStage, levels_of
from qtl_core.trainable import read_training
from qtl_export.trainable.writing import client_tensors, described, write_description, write_step
from qtl_training.digits.scenes import sample
from qtl_training.features import tower_features
from qtl_training.split.client_side import ClientSide
from tests.edge import tiny
from tests.edge import trainable as replaying

STAGE = SplitStage(
    steps=100,
    micro_batches=3,
    levels=(4, 0, 16),
    weights=(0.7, 0.1, 0.2),
    train=("connector", "vision_quantizer"),
    quantizer_lr=5e-4,
    k_lr=2e-3,
    optimizer=Optimizer(lr=2e-4, clip=0.3),
    data=ConversationData(rows=4),
)
SEED, SCENES, PICTURES = 3, 24, 4


class Known:
    """Features that were computed before."""

    def __init__(self, features: NDArray[np.float16]) -> None:
        self._features = features

    def of(self, pictures: Sequence[int]) -> NDArray[np.float16]:
        return self._features[list(pictures)]

    def micro_batches(self, step: int) -> list[MicroBatch]:
        drawn = np.random.default_rng([SEED, step]).permutation(SCENES)
        chosen = drawn[: PICTURES * STAGE.micro_batches].reshape(-1, PICTURES)
        return [MicroBatch(tuple(one.tolist()), ()) for one in chosen]


@pytest.mark.parametrize("scaling", ["frozen", pytest.param("image", marks=pytest.mark.slow)])
def test_a_hundred_steps(tmp_path: Path, scaling: replaying.Scaling) -> None:
    checkpoint = load_checkpoint(shipped.digits())
    if scaling == "image":
        vision = QuantizerSettings(code_dim=32, scaling="image", merge=2, k=2.0, k_channels=True)
        checkpoint = requantized(checkpoint, vision, SEED)
    model = checkpoint.model
    features = tower_features(model.vision, sample("train", SCENES, SEED), progress=False)
    tokens, width = features.shape[1:]
    model.train()
    folder = tmp_path / "client"
    manifest = tiny.write_client(folder)
    (folder / trainable.FOLDER).mkdir()
    write_step(folder, model.vision.connector, model.vision_quantizer, (tokens, width))
    write_description(
        folder,
        described(
            model.vision_quantizer, [STAGE], [SEED], (tokens, width), tokens,
            name="replay", fingerprint="0" * 32, log_every=1,
        ),
    )  # fmt: skip
    write_manifest(folder, msgspec.structs.replace(manifest, files=hash_files(folder)))
    half = open_half(folder, "client")

    def tensors() -> dict[str, NDArray[np.float32]]:
        return {name: value.numpy().copy() for name, value in client_tensors(model).items()}

    before, ours = tensors(), tensors()
    known = Known(features.numpy())
    device = DeviceStage(read_training(half), 0, ours, Graphs(half, threads=1), known, known)
    theirs = ClientSide(model, STAGE)
    for step in range(STAGE.steps):
        levels = levels_of(STAGE, SEED, step)
        shapes = []
        for number, micro in enumerate(device.micro_batches(step)):
            crossed = device.forward(number, micro.pictures, levels)
            expected = theirs.forward(number, features[list(micro.pictures)], levels)
            shapes.append(crossed.shape)
            differ = np.abs(crossed.astype(np.float64) - expected)
            assert differ.max() <= 1 if levels else np.allclose(crossed, expected, rtol=1e-2, atol=1e-2)
        for number, shape in enumerate(shapes):
            gradient = replaying.gradient(step, number, shape)
            device.backward(number, gradient)
            theirs.backward(number, gradient)
        own, other = device.squared_norm(50), theirs.squared_norm(50)
        assert own == pytest.approx(other, rel=1e-2)
        device.apply(step, 2 * own)
        theirs.apply(step, 2 * other)
    after = tensors()
    moved = min(replaying.distance(before, ours), replaying.distance(before, after))
    apart = replaying.distance(ours, after)
    assert moved > 0.05
    assert apart <= 0.02 * moved, f"{apart / moved:.2e} of what was moved"
    for name in (trainable.MEAN, trainable.STD):
        np.testing.assert_allclose(ours[name], after[name], rtol=1e-3, atol=1e-4)
    assert set(tensor_file.load(tensor_file.dump(ours), "it")) == set(after)
