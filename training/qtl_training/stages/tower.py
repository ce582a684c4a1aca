"""Training the tower alone: probes name what stands in each cell, from the stem and from every token."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.data import DataLoader, Dataset

from qtl_core.nn.model import SplitModel, VisionEncoder
from qtl_core.nn.quantizer import merge_tokens
from qtl_training.digits import scenes as s
from qtl_training.features import tower_features
from qtl_training.recipe import TowerStage
from qtl_training.stages.optimizing import ScheduledAdamW

_STANDARDISED_ON = 256  # pictures
_CLASSES = (10, len(s.COLOURS), 1)


class _Batches(Dataset[tuple[NDArray[np.uint8], NDArray[np.int64], NDArray[np.int64]]]):
    """Batch number i, drawn from a seed of its own, so that a resumed run sees the same pictures."""

    def __init__(self, stage: TowerStage, seed: int) -> None:
        self._stage, self._seed = stage, seed

    def __len__(self) -> int:
        return self._stage.steps

    def __getitem__(self, step: int) -> tuple[NDArray[np.uint8], NDArray[np.int64], NDArray[np.int64]]:
        batch = s.sample("train", self._stage.batch, self._seed * 1_000_003 + step, full=self._stage.full)
        return s.render(batch, slice(None)), batch.digits.astype(np.int64), batch.colours.astype(np.int64)


class Probes(nn.Module):
    """Linear heads that name digit, colour and occupancy; thrown away after the stage.

    Args:
        width: width of a token.
        side: tokens along the side of the picture.
    """

    def __init__(self, width: int, side: int) -> None:
        super().__init__()
        self._per_cell = side // s.GRID
        self.token = nn.Linear(width, sum(_CLASSES))
        self.cell = nn.Linear(width * self._per_cell**2, sum(_CLASSES))
        self.norm = nn.LayerNorm(width)

    def loss(self, tokens: Tensor, digits: Tensor, colours: Tensor) -> tuple[Tensor, float]:
        """Loss of both heads on tokens [batch, side**2, width], and the digit accuracy of the cell head."""
        tokens = self.norm(tokens)
        by_cell = merge_tokens(tokens, self._per_cell)
        loss, accuracy = _loss(self.cell(by_cell), digits, colours)
        for corner in merge_tokens(self.token(tokens), self._per_cell).chunk(self._per_cell**2, -1):
            loss = loss + _loss(corner, digits, colours)[0] / self._per_cell**2
        return loss, accuracy


def _loss(scores: Tensor, digits: Tensor, colours: Tensor) -> tuple[Tensor, float]:
    digit, colour, occupied = scores.split(_CLASSES, -1)
    there = digits >= 0
    loss = functional.binary_cross_entropy_with_logits(occupied[..., 0], there.float())
    loss = loss + functional.cross_entropy(digit[there], digits[there])
    loss = loss + functional.cross_entropy(colour[there], colours[there])
    return loss, float((digit[there].argmax(-1) == digits[there]).float().mean())


class TowerTraining:
    """The stage as a sequence of steps.

    Args:
        model: its tower is trained in place.
        stage: the recipe's settings.
        seed: of pictures and probes.
    """

    def __init__(self, model: SplitModel, stage: TowerStage, seed: int) -> None:
        self.steps = stage.steps
        self._stage, self._seed = stage, seed
        self._vision = model.vision.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        config = self._vision.tower.config
        side = config.image_size // config.patch_size
        torch.manual_seed(seed)
        self._probes = nn.ModuleDict(
            {"stem": Probes(config.hidden_size, side), "tower": Probes(config.hidden_size, side)}
        )
        tower = list(self._vision.tower.named_parameters())
        trained = [pair for pair in tower if stage.part == "tower" or pair[0].startswith("embeddings.")]
        self._optimizer = ScheduledAdamW(
            stage.optimizer,
            stage.steps,
            [([(f"tower.{name}", p) for name, p in trained], stage.optimizer.lr),
             ([(f"probes.{name}", p) for name, p in self._probes.named_parameters()], stage.optimizer.lr)],
        )  # fmt: skip
        self._batches: Iterator[Any] | None = None

    def run_step(self, step: int) -> dict[str, float]:
        """Trains on batch number ``step``."""
        if self._batches is None:
            batches = _Batches(self._stage, self._seed)
            order = list(range(step, self.steps))
            loader: DataLoader[Any] = DataLoader(
                batches, batch_size=None, sampler=order, num_workers=1, prefetch_factor=4
            )
            self._batches = iter(loader)
        picture, digits, colours = (torch.as_tensor(part) for part in next(self._batches))
        vision = self._vision
        vision.tower.train()
        pixels = (picture.permute(0, 3, 1, 2).float() - vision.pixel_mean) / vision.pixel_std
        embeddings = vision.tower.embeddings
        stem_tokens = embeddings(pixels.contiguous(memory_format=torch.channels_last))
        loss, accuracy = self._probes["stem"].loss(stem_tokens, digits, colours)  # type: ignore[operator]
        if self._stage.part == "tower":
            tokens = vision.tower.encoder(inputs_embeds=stem_tokens).last_hidden_state
            whole, accuracy = self._probes["tower"].loss(tokens, digits, colours)  # type: ignore[operator]
            loss = 0.3 * loss + whole
        self._optimizer.step(loss, step)
        return {"loss": loss.item(), "digit": 100 * accuracy}

    def finish(self) -> None:
        """Standardises the trained tower's output, which the connector will read."""
        if self._stage.part == "tower":
            standardise(self._vision, self._seed)

    def state(self) -> dict[str, Tensor]:
        """Everything beyond the model's own weights that the next step depends on."""
        probes = {f"probes.{name}": value for name, value in self._probes.state_dict().items()}
        return {**probes, **{f"optimizer.{k}": v for k, v in self._optimizer.state().items()}}

    def load(self, state: dict[str, Tensor]) -> None:
        """Takes up a saved state."""
        self._probes.load_state_dict(
            {k.removeprefix("probes."): v for k, v in state.items() if k.startswith("probes.")}
        )
        self._optimizer.load(
            {k.removeprefix("optimizer."): v for k, v in state.items() if k.startswith("optimizer.")}
        )


@torch.no_grad()
def standardise(vision: VisionEncoder, seed: int) -> None:
    """Gives the tower's hidden states zero mean and unit deviation, and changes nothing else.

    A connector that reads features of a large scale soon writes picture tokens so large that place
    vectors and the decoder's layers hardly move them. Every layer of the tower normalises what it
    reads, so scaling all that is added to the residual stream by one number scales the output by it;
    the mean goes into the last bias.
    """
    vision.eval()
    states = tower_features(vision, s.sample("train", _STANDARDISED_ON, seed), progress=False).float()
    mean, scale = states.mean((0, 1)), 1 / states.std(unbiased=False)
    tower: Any = vision.tower
    layers = tower.encoder.layers
    added: list[Any] = [tower.embeddings.patch_embedding, *(layer.self_attn.out_proj for layer in layers)]
    added += [layer.mlp.fc2 for layer in layers]
    for layer in added:
        layer.weight.mul_(scale)
        layer.bias.mul_(scale)
    tower.embeddings.position_embedding.weight.mul_(scale)
    layers[-1].mlp.fc2.bias.sub_(mean * scale)
