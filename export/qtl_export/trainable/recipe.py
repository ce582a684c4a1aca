"""What of a training recipe the exporter needs; qtl-train reads and checks the rest."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec

from qtl_core import shipped
from qtl_core.errors import RecipeError
from qtl_core.nn.checkpoint import QuantizerSettings
from qtl_core.run_agreement import run_fingerprint, stage_seed
from qtl_core.split_stage import SplitStage, agreed, check
from qtl_core.trainable import NO_FIT


class SplitRecipe(msgspec.Struct, frozen=True, kw_only=True):
    """A recipe whose stages all run across the cut.

    Attributes:
        name, seed, start, model, vision, stages, log_every: as in ``qtl_training.recipe.Recipe``.
    """

    name: str
    seed: int = 1
    start: str = ""
    model: dict[str, Any] | None = None
    vision: QuantizerSettings | None = None
    stages: tuple[SplitStage, ...] = ()
    log_every: int = 50

    @property
    def checkpoint(self) -> Path:
        """The checkpoint that it starts from."""
        return shipped.digits() if self.start == "shipped" else Path(self.start)

    @property
    def levels(self) -> int:
        """The level count that a client half of the finished model has where nobody names another."""
        return self.stages[-1].levels[0]

    @property
    def seeds(self) -> tuple[int, ...]:
        """Of each stage."""
        return tuple(stage_seed(self.seed, number) for number in range(len(self.stages)))

    def fingerprint(self, checkpoint: Path) -> bytes:
        """What `qtl-train serve` of this recipe computes when it starts from that checkpoint's folder."""
        return run_fingerprint(self.seed, self.stages, self.vision, self.model, checkpoint)


def read_split_recipe(file: Path) -> SplitRecipe:
    """Reads a recipe; where a client has its data is not the exporter's affair, and left out.

    Raises:
        RecipeError: no file, no TOML, a stage that is not kind = "split" or cannot be trained with, or a
            recipe that builds a model.
    """
    try:
        recipe = msgspec.toml.decode(file.read_bytes(), type=SplitRecipe)
    except OSError as error:
        raise RecipeError(f"recipe {file} cannot be read: {error.strerror or error}") from error
    except msgspec.DecodeError as error:
        raise RecipeError(
            f'recipe {file}: {error}; --trainable takes a recipe whose stages are all kind = "split"'
        ) from error
    if recipe.model is not None or not recipe.start:
        raise RecipeError(
            f"recipe {file} starts from no checkpoint, and --trainable exports one: name it with `start`"
        )
    if not recipe.stages:
        raise RecipeError(f"recipe {file}: no [[stages]]")
    for number, stage in enumerate(recipe.stages, 1):
        if stage.fit_quantizer:
            raise RecipeError(f"recipe {file}, stage {number}: {NO_FIT}")
        if not {"connector", "vision_quantizer"} & set(stage.train):
            raise RecipeError(
                f"recipe {file}, stage {number} trains nothing on the client, and graphs of a client without "
                "PyTorch always move the quantizer's statistics: train that stage with qtl-train client"
            )
        if stage.private:
            raise RecipeError(
                f"recipe {file}, stage {number} keeps labels private, which a client without PyTorch cannot "
                "yet: share labels, or train there with qtl-train client"
            )
        if stage.data is None:
            raise RecipeError(
                f"recipe {file}, stage {number} trains on digit scenes, which a device cannot draw: give it "
                "conversations with [stages.data]"
            )
        check(stage, f"recipe {file}, stage {number}")
    return msgspec.structs.replace(recipe, stages=tuple(map(agreed, recipe.stages)))
