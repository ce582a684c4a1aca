"""Writes the training step of a client partition into a client half."""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final

import msgspec
import onnx_ir as ir
import torch
from torch import Tensor, nn
from torch.export import Dim

from qtl_core import tensor_file, trainable
from qtl_core.entropy_file import tables_name
from qtl_core.errors import CheckpointError
from qtl_core.nn.checkpoint import Checkpoint
from qtl_core.nn.model import SplitModel, VisionEncoder
from qtl_core.nn.quantizer import Quantizer
from qtl_core.nn.requantizing import requantized
from qtl_core.split_stage import SplitStage
from qtl_core.trainable import CONNECTOR, MEAN, QUANTIZER, STD, K, Training
from qtl_export.graph import example, save, trace, trace_all
from qtl_export.progress import Progress
from qtl_export.trainable.layers import Layer, layers_of
from qtl_export.trainable.recipe import SplitRecipe
from qtl_export.trainable.step import AdamW, Backward, Forward, UnquantizedBackward, UnquantizedForward

BETAS: Final = (0.9, 0.98)
"""What ``qtl_training.stages.optimizing`` trains with."""
EPS: Final = 1e-8
_BATCH: Final = Dim("batch")
_OF_QUANTIZER: Final = ("in_proj.weight", "in_proj.bias", "k", "mean", "std")


def trained_from(checkpoint: Checkpoint, recipe: SplitRecipe) -> Checkpoint:
    """What a run of the recipe starts from, as `qtl-train serve` makes it.

    Raises:
        CheckpointError: a connector or a family without a training step, no quantizer, or pictures in tiles.
    """
    _ = checkpoint.llava
    layers_of(checkpoint.model.vision.connector)
    if not checkpoint.model.quantized:
        raise CheckpointError(
            f"checkpoint {checkpoint.path} has no vision quantizer, and split training needs one: fit it "
            "with qtl-train quantizer"
        )
    if checkpoint.picture.tiled:
        raise CheckpointError(
            f"checkpoint {checkpoint.path} cuts pictures into tiles, which split training does not do"
        )
    return checkpoint if recipe.vision is None else requantized(checkpoint, recipe.vision, recipe.seed)


def write_trainable(
    folder: Path, checkpoint: Checkpoint, recipe: SplitRecipe, start: Path, progress: Progress
) -> Training:
    """Writes ``train/`` into a client half.

    Args:
        folder: the client half.
        checkpoint: its tower, connector and vision quantizer are loaded.
        recipe: what will be trained.
        start: the checkpoint's folder, which the fingerprint is of.
        progress: where to show how far it is.

    Raises:
        CheckpointError: a connector that no graph can be written of, or PyTorch cannot export it.
    """
    model, quantizer = checkpoint.model, checkpoint.model.vision_quantizer
    (folder / trainable.FOLDER).mkdir()
    with progress.stage("exporting the tower for training"):
        tower = _write_tower(folder, model.vision, example(checkpoint.picture))
    with progress.stage("exporting the training step"):
        write_step(folder, model.vision.connector, quantizer, tower)
    tensors = client_tensors(model)
    data = tensor_file.dump({name: value.numpy() for name, value in tensors.items()})
    (folder / trainable.START).write_bytes(data)
    for count in {count for stage in recipe.stages for count in stage.levels} - {0}:
        tables = start / tables_name(count)
        if tables.is_file():
            shutil.copyfile(tables, folder / trainable.FOLDER / tables.name)
    tokens = tower[0] // _shuffled(layers_of(model.vision.connector))
    training = described(
        quantizer, recipe.stages, recipe.seeds, tower, tokens,
        name=recipe.name, fingerprint=recipe.fingerprint(start).hex(), log_every=recipe.log_every,
    )  # fmt: skip
    write_description(folder, training)
    return training


def described(
    quantizer: Quantizer,
    stages: Sequence[SplitStage],
    seeds: Sequence[int],
    tower: tuple[int, int],
    tokens: int,
    *,
    name: str,
    fingerprint: str,
    log_every: int,
) -> Training:
    """What ``training.json`` says of a client partition; ``tokens`` are those behind the connector."""
    return Training(
        name=name,
        fingerprint=fingerprint,
        stages=tuple(stages),
        seeds=tuple(seeds),
        log_every=log_every,
        codes=(tokens // quantizer.merge**2, quantizer.code_dim),
        features=(tokens, quantizer.width),
        tower=tower,
        k_levels=tuple(quantizer.k_levels.tolist()),
        scaling=quantizer.scaling,
        betas=BETAS,
        eps=EPS,
    )


def write_description(folder: Path, training: Training) -> None:
    """Writes ``training.json`` into a client half."""
    data = msgspec.json.format(msgspec.json.encode(training), indent=2) + b"\n"
    (folder / trainable.FILE).write_bytes(data)


def client_tensors(model: SplitModel) -> dict[str, Tensor]:
    """What a client trains or follows, under the names that the training server knows them by."""
    connector = model.vision.connector.state_dict(prefix=CONNECTOR)
    quantizer = model.vision_quantizer.state_dict()
    ours = {f"{QUANTIZER}{name}": quantizer[name] for name in _OF_QUANTIZER}
    return {name: value.detach().contiguous() for name, value in {**connector, **ours}.items()}


def write_step(folder: Path, connector: nn.Module, quantizer: Quantizer, tower: tuple[int, int]) -> None:
    """Writes forward, backward and AdamW.

    Args:
        folder: the client half.
        connector: of any family.
        quantizer: behind it.
        tower: tokens and width of a picture's tower features.
    """
    layers = layers_of(connector)
    of_connector = {f"{CONNECTOR}{name}": value for name, value in connector.state_dict().items()}
    in_proj = {f"{QUANTIZER}{name}": quantizer.state_dict()[name] for name in _OF_QUANTIZER[:2]}
    tensors = {**of_connector, **in_proj, K: quantizer.k}
    moved: list[str] = []
    if quantizer.scaling == "frozen":
        tensors |= {MEAN: quantizer.mean, STD: quantizer.std}
        moved = [f"moved.{name}" for name in (MEAN, STD)]
    features = torch.zeros(2, *tower, dtype=torch.float16)
    tokens = tower[0] // _shuffled(layers)
    rows = max(1, quantizer.k_levels.numel())
    level = (torch.tensor(1.5), torch.tensor(0.5), torch.ones(rows))
    codes = torch.zeros(2, tokens // quantizer.merge**2, quantizer.code_dim)
    at_cut = torch.zeros(2, tokens, quantizer.width)
    quantized = ["half", "offset", "mix"]
    forward = Forward(layers, quantizer, list(tensors))
    _write(
        folder / trainable.FORWARD, forward, features, tensors, quantized, level, ["codes", "size", *moved]
    )
    backward = Backward(layers, quantizer, list(tensors))
    learns = [f"{loss}.{name}" for loss in ("answers", "distortion") for name in backward.learns]
    _write(
        folder / trainable.BACKWARD, backward, features, tensors,
        [*quantized, "gradient"], (*level, codes), learns,
    )  # fmt: skip
    # Without a tensor of its own there is nothing to train unquantized, and features cross as they are.
    plain = UnquantizedForward(layers, list(of_connector))
    _write(folder / trainable.FORWARD_16, plain, features, of_connector, [], (), ["features_at_cut"])
    if of_connector:
        back = UnquantizedBackward(layers, list(of_connector))
        learns = [f"answers.{name}" for name in of_connector]
        _write(folder / trainable.BACKWARD_16, back, features, of_connector, ["gradient"], (at_cut,), learns)
    _write_adamw(folder)


def _write(
    path: Path,
    module: nn.Module,
    features: Tensor,
    tensors: Mapping[str, Tensor],
    further_names: Sequence[str],
    further: tuple[Tensor, ...],
    outputs: Sequence[str],
) -> None:
    """Exports a module of features, tensors and what else it takes; axes of one per picture are free."""
    given = [value.detach().clone() for value in tensors.values()]
    free = ({0: _BATCH}, [None] * len(given), *({0: _BATCH} if one.ndim == 3 else None for one in further))
    names = ["features", *tensors, *further_names]
    _save(path, trace_all(module, (features, given, *further), names, outputs, free))


def _write_adamw(folder: Path) -> None:
    count = Dim("count")
    flat = [torch.full((4,), float(number)) for number in range(1, 5)]
    numbers = [torch.tensor(0.5 + number) for number in range(5)]
    names = ["tensor", "gradient", "first", "second", "clip", "keep", "rate", "root", "eps"]
    outputs = ["moved.tensor", "moved.first", "moved.second"]
    free = (*({0: count} for _ in flat), *(None for _ in numbers))
    module = AdamW(BETAS)
    _save(folder / trainable.ADAMW, trace_all(module, (*flat, *numbers), names, outputs, free))


class _Tower(nn.Module):
    """Pictures to the half-precision features that training keeps, as ``qtl_training.features`` does."""

    def __init__(self, vision: VisionEncoder) -> None:
        super().__init__()
        self.vision = vision

    def forward(self, picture: Tensor) -> Tensor:
        return self.vision.tower_features(picture).to(torch.float16)


def _write_tower(folder: Path, vision: VisionEncoder, pictures: Tensor) -> tuple[int, int]:
    """Writes the tower's graph, and returns tokens and width of what it makes of a picture."""
    with torch.inference_mode():
        _, tokens, width = vision.tower_features(pictures[:1]).shape
    model = trace(_Tower(vision).eval(), pictures, "picture", "features")
    _save(folder / trainable.FEATURES, model)
    return tokens, width


def _save(path: Path, model: ir.Model) -> None:
    save(model, path.parent, name=path.name)
    for value in model.graph.initializers.values():
        value.const_value = None  # somebody in PyTorch's exporter keeps the graph


def _shuffled(layers: Sequence[Layer]) -> int:
    """How many of the tower's tokens the connector makes one of."""
    merged = 1
    for layer in layers:
        merged *= getattr(layer, "side", 1) ** 2
    return merged
