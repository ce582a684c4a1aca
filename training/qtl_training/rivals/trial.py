"""One fine-tune of one variant, and what it reaches on a split: the same for every method."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import msgspec
import torch
from torch import Tensor
from tqdm import tqdm

from qtl_core.errors import RecipeError
from qtl_core.nn.checkpoint import Checkpoint, load_checkpoint
from qtl_core.nn.quantizer import Quantizer
from qtl_core.nn.requantizing import requantized
from qtl_training.digits.scenes import Scenes, sample
from qtl_training.recipe import LanguageStage, Recipe, read_recipe
from qtl_training.rivals.methods import FP16, PACE_RECIPE, RIVAL_RECIPE, Setting, Variant
from qtl_training.rivals.pictures import CodedScenes, Format, PictureCodec
from qtl_training.rivals.rival import Rival
from qtl_training.stages.language import LanguageTraining

_STAGE_SEED = 101  # as in qtl_training.local: what seed a run's first stage gets from the run's
_ROWS = 64


@dataclass(frozen=True, kw_only=True)
class Conditions:
    """What is the same for every method.

    Attributes:
        start: the checkpoint every fine-tune starts from.
        recipes: the folder of our recipes.
        steps: optimizer steps of every fine-tune.
        scenes: training scenes.
        fit_pictures: pictures that a rival is initialised from.
        calibration_pictures: training pictures that code tables are fitted to.
    """

    start: Path
    recipes: Path
    steps: int
    scenes: int
    fit_pictures: int = 2048
    calibration_pictures: int = 2048


def common_steps(recipes: Path) -> int:
    """Steps of the recipe that sets the pace: our default quantizer's."""
    return _only_stage(read_recipe(recipes / PACE_RECIPE)).steps


def training_scenes(conditions: Conditions, seed: int) -> Scenes:
    """The scenes that every method of a seed trains on."""
    return sample("train", conditions.scenes, seed * _STAGE_SEED)


def recipe_of(variant: Variant, conditions: Conditions) -> Recipe:
    """The recipe a variant is trained by: its own for ours, the paper's for everything else.

    Steps and scenes are those of the comparison, whatever a recipe says.

    Raises:
        RecipeError: if it has more than one stage.
    """
    recipe = read_recipe(conditions.recipes / str(variant.settings.get("recipe", RIVAL_RECIPE)))
    stage = _only_stage(recipe)
    stage = msgspec.structs.replace(stage, steps=conditions.steps, stop=0, scenes=conditions.scenes)
    if variant.lr:
        optimizer = msgspec.structs.replace(stage.optimizer, lr=variant.lr)
        stage = msgspec.structs.replace(stage, optimizer=optimizer)
    if variant.kind == "ours":
        return msgspec.structs.replace(recipe, stages=(stage,))
    picture = variant.kind == "picture"
    stage = msgspec.structs.replace(
        stage,
        levels=() if picture else tuple(cast(int, knob) for knob in variant.knobs),
        dense=False,
        fit_quantizers=False,
        train=("connector", "decoder", "tower" if picture else "vision_quantizer"),
    )
    return msgspec.structs.replace(recipe, vision=None, stages=(stage,))


def prepare(variant: Variant, conditions: Conditions, seed: int) -> Checkpoint:
    """The start checkpoint with the variant's quantizer or rival in place, untrained."""
    torch.manual_seed(seed * _STAGE_SEED)
    shipped = variant.kind == "shipped"
    quantizer = str(variant.settings.get("quantizer", "")) if shipped else ""
    checkpoint = load_checkpoint(conditions.start, quantizer=quantizer)
    vision = None if shipped else recipe_of(variant, conditions).vision
    if vision is not None:
        checkpoint = requantized(checkpoint, vision, seed)
    if variant.kind == "rival" or variant.knobs == FP16:
        model = checkpoint.model
        rival = build(variant, model.vision_quantizer.width, tokens_of(checkpoint))
        # The model asks no more of its quantizer than a rival offers.
        model.vision_quantizer = cast(Quantizer, rival)
    return checkpoint


def tokens_of(checkpoint: Checkpoint) -> int:
    """Picture tokens at the cut."""
    config = checkpoint.model.vision.tower.config
    return int(config.image_size // config.patch_size) ** 2


def build(variant: Variant, width: int, tokens: int) -> Rival:
    """An untrained rival with a variant's settings."""
    from qtl_training.rivals.fsq import TanhFsq
    from qtl_training.rivals.half import HalfPrecision
    from qtl_training.rivals.int8_zstd import Int8Zstd
    from qtl_training.rivals.normal_float import NormalFloat
    from qtl_training.rivals.one_bit import OneBit
    from qtl_training.rivals.rand_topk import RandTopk
    from qtl_training.rivals.split_fc import AdaptiveFeatureWise
    from qtl_training.rivals.vector_codes import VectorCodes

    classes: dict[str, type[Rival]] = {
        "fp16": HalfPrecision,
        "shipped": HalfPrecision,
        "fsq": TanhFsq,
        "nf": NormalFloat,
        "randtopk": RandTopk,
        "splitfc": AdaptiveFeatureWise,
        "onebit": OneBit,
        "vq": VectorCodes,
        "int8-zstd": Int8Zstd,
    }
    make: Any = classes[variant.method]
    rival: Rival = make(width, tokens, variant.knobs[len(variant.knobs) // 2], **variant.settings)
    return rival.eval()


def train(
    variant: Variant, conditions: Conditions, seed: int, features: Tensor | None, bar: tqdm[Any] | None = None
) -> Checkpoint:
    """Fine-tunes a variant.

    Args:
        variant: what to train.
        conditions: steps, scenes, start.
        seed: the run's; scenes, questions and initialisation follow from it.
        features: the start checkpoint's tower features of ``training_scenes``; None for pictures, whose
            tower learns.
        bar: is moved on by one for every step.

    Returns:
        The trained model, in evaluation mode.
    """
    checkpoint = prepare(variant, conditions, seed)
    if variant.kind == "shipped":
        return checkpoint
    stage, stage_seed = _only_stage(recipe_of(variant, conditions)), seed * _STAGE_SEED
    model = checkpoint.model
    source: Any = features
    if variant.kind == "picture":
        codec = PictureCodec(cast(Format, variant.method))
        settings = cast("tuple[Setting, ...]", variant.knobs)
        scenes = training_scenes(conditions, seed)
        source = CodedScenes(model.vision, scenes, codec, settings, stage_seed)
    elif features is None:
        raise ValueError(f"{variant.label} trains on features, and none were given")
    elif variant.kind == "rival":
        fitted_to = connected(checkpoint, features[: conditions.fit_pictures])
        model.vision_quantizer.fit(fitted_to, seed=stage_seed)
    training = LanguageTraining(checkpoint, stage, stage_seed, progress=False, features=source)
    for step in range(training.steps):
        model.train()
        training.run_step(step)
        if bar is not None:
            bar.update()
    model.eval()
    return checkpoint


@torch.no_grad()
def connected(checkpoint: Checkpoint, features: Tensor) -> Tensor:
    """What is at the cut, float32 [pictures, tokens, width]."""
    connector = checkpoint.model.vision.connector
    return torch.cat([connector(part.float()) for part in features.split(_ROWS)])


def _only_stage(recipe: Recipe) -> LanguageStage:
    if len(recipe.stages) != 1 or not isinstance(recipe.stages[0], LanguageStage):
        raise RecipeError(f"recipe {recipe.name!r}: the comparison takes recipes of one language stage")
    return recipe.stages[0]
