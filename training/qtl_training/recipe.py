"""Recipes: one TOML file says which model is built and how it is trained."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import msgspec

from qtl_core.errors import RecipeError
from qtl_core.nn.checkpoint import QuantizerSettings
from qtl_core.split_stage import Optimizer, SplitStage, agreed, check
from qtl_training.digits.questions import TYPES


class ModelRecipe(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Shapes of a model that is built anew, in transformers' terms."""

    image_size: int
    patch_size: int
    stem_widths: tuple[int, ...]
    stem_blocks: tuple[int, ...]
    tower_width: int
    tower_layers: int
    tower_heads: int
    tower_mlp: int
    width: int
    layers: int
    heads: int
    mlp: int
    rope_theta: float = 10000.0
    vocabulary: int = 512
    vision: QuantizerSettings
    language: QuantizerSettings
    picture_attention: Literal["causal", "bidirectional"] = "bidirectional"
    picture_places: bool = True
    image_aspect_ratio: Literal["square", "pad"] = "pad"


class TowerStage(
    msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, tag_field="kind", tag="tower"
):
    """The tower alone: what stands in each cell, read from the stem and from every token.

    Attributes:
        part: "stem" trains the stem under its own heads, "tower" the whole tower.
        steps: optimizer steps.
        batch: scenes a step.
        full: share of scenes with nine digits.
    """

    part: str
    steps: int
    batch: int = 32
    full: float = 0.7
    optimizer: Optimizer


class LanguageStage(
    msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, tag_field="kind", tag="language"
):
    """Connector, decoder and quantizers on features of the frozen tower, from questions and answers.

    Attributes:
        steps: optimizer steps; 0 with ``fit_quantizers`` does no more than that.
        stop: ends the stage after so many steps, before the rate has come down; 0: all of them.
        scenes: how many pictures have their tower features cached.
        scenes_a_step: scenes in one step.
        questions: questions about each of them.
        focus: question types that are hard to learn late, in order: until they pass ``focus_until``
            (percent of recent questions), the first that has not gets ``focus_share`` of them all.
        loose: share of questions that begin with a capital letter, or lack the question mark, as people
            type them.
        levels: level counts to sample from, one a step; 0 is the unquantized model. Empty: 0 only.
        weights: how often each is sampled; empty: equally often.
        dense: where 256 levels are sampled, any count up to 256 is drawn instead, log-uniformly.
        text_codes: share of steps whose question embeddings pass the language quantizer.
        picture_scale: deviation that the connector's output is scaled to before the first step; 0
            leaves it. Place vectors start at 1: much larger picture tokens drown them.
        align: weight of the alignment loss: each picture token and place vector should name digit,
            colour, row and column in the space of the words' embeddings.
        fit_quantizers: initialise the quantizers that learn from features first.
        rotation: how ``fit_quantizers`` rotates the principal directions of picture features: "random"
            spreads what they say evenly over the codes; "independent" finds directions of their own for
            features that come and go independently, whose codes rarely change and cost few bits.
        rate_weight: weight of the estimated bits of a coded token in the loss: the knob from bytes to
            accuracy; 0 spends what the level count allows.
        beside: further quantizers of the checkpoint that ``beside_share`` of the steps go through in place
            of its own, one at a time, so that the decoder learns to read what they restore. They stay as
            they are, and so must what they were fitted to: not with "connector" in ``train``.
        beside_share: share of steps.
        train: which parts learn: "connector", "decoder", "vision_quantizer", "language_quantizer".
        optimizer: for connector and decoder.
        quantizer_lr: highest learning rate of the quantizers.
        in_proj_lr: highest learning rate of the quantizers' ``in_proj``; none given: ``quantizer_lr``. 0
            keeps a fitted one, whose few large weights Adam's even steps would soon wear down.
        k_lr: highest learning rate of k.
    """

    steps: int
    stop: int = 0
    scenes: int
    scenes_a_step: int = 32
    questions: int = 10
    focus: tuple[str, ...] = ()
    focus_share: float = 0.3
    focus_until: float = 95.0
    loose: float = 0.0
    levels: tuple[int, ...] = ()
    weights: tuple[float, ...] = ()
    dense: bool = True
    text_codes: float = 0.0
    picture_scale: float = 0.0
    align: float = 0.0
    fit_quantizers: bool = False
    rotation: Literal["random", "independent"] = "random"
    rate_weight: float = 0.0
    beside: tuple[str, ...] = ()
    beside_share: float = 0.3
    train: tuple[str, ...] = ("connector", "decoder")
    optimizer: Optimizer
    quantizer_lr: float = 1e-3
    in_proj_lr: float | None = None
    k_lr: float = 1e-2


Stage = TowerStage | LanguageStage | SplitStage


class Recipe(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One training run.

    Attributes:
        name: names the run and the model.
        seed: of everything random.
        start: a checkpoint folder to start from, "shipped" for the shipped one, "" to build ``model``.
        model: shapes of the model to build.
        vision: another vision quantizer for the checkpoint to start from, in place of its own; where
            ``code_dim`` and ``merge`` are the same it begins with the weights of that one.
        stages: run in order.
        head_seed: of the head that a client begins with where labels are private and the head is its own;
            none given: the model's, which the server has too. A secret: leave it out of the server's copy.
        checkpoint_every: seconds between checkpoints of a run.
        log_every: steps between lines of the log.
        evaluate_every: steps of a split stage between evaluations on held-out data, one at each stage's end
            too; 0 never evaluates.
        evaluate_pictures: held-out pictures.
        tensorboard: whether to write TensorBoard's event files beside the log.
    """

    name: str
    seed: int = 1
    start: str = ""
    model: ModelRecipe | None = None
    vision: QuantizerSettings | None = None
    stages: tuple[Stage, ...] = ()
    head_seed: int | None = None
    checkpoint_every: float = 60.0
    log_every: int = 50
    evaluate_every: int = 0
    evaluate_pictures: int = 128
    tensorboard: bool = False


_SPLIT_PARTS = {"connector", "decoder", "vision_quantizer"}
_PARTS = {"connector", "decoder", "vision_quantizer", "language_quantizer"}


def read_recipe(path: str | Path) -> Recipe:
    """Reads and checks a recipe.

    Raises:
        RecipeError: if the file is missing, is no TOML, has unknown or wrong settings, or asks for
            what cannot be done.
    """
    file = Path(path)
    try:
        recipe = msgspec.toml.decode(file.read_bytes(), type=Recipe)
    except OSError as error:
        raise RecipeError(f"recipe {file} cannot be read: {error.strerror or error}") from error
    except msgspec.DecodeError as error:
        raise RecipeError(f"recipe {file}: {error}") from error
    _check(recipe, file)
    return recipe


def _check(recipe: Recipe, file: Path) -> None:
    if bool(recipe.start) == (recipe.model is not None):
        raise RecipeError(
            f"recipe {file}: give either `start` (a checkpoint) or a [model] to build, not both"
        )
    if recipe.model is not None and recipe.vision is not None:
        raise RecipeError(f"recipe {file}: a [model] names its quantizers itself; remove [vision]")
    if not recipe.stages:
        raise RecipeError(f"recipe {file}: no [[stages]]")
    if recipe.evaluate_every < 0 or recipe.evaluate_pictures < 1:
        raise RecipeError(
            f"recipe {file}: evaluate_every is {recipe.evaluate_every} and evaluate_pictures "
            f"{recipe.evaluate_pictures}; they must be at least 0 and 1"
        )
    private = any(isinstance(stage, SplitStage) and stage.private for stage in recipe.stages)
    if recipe.evaluate_every and private:
        raise RecipeError(
            f"recipe {file}: evaluate_every sends answers of held-out questions to the server, and labels "
            "are private; remove one of the two"
        )
    for number, stage in enumerate(recipe.stages, 1):
        where = f"recipe {file}, stage {number}"
        fits_only = isinstance(stage, LanguageStage) and stage.fit_quantizers and stage.steps == 0
        if stage.steps < 1 and not fits_only:
            raise RecipeError(f"{where}: steps is {stage.steps}, it must be at least 1")
        if isinstance(stage, TowerStage):
            if stage.part not in ("stem", "tower"):
                raise RecipeError(f'{where}: part {stage.part!r} is neither "stem" nor "tower"')
            continue
        if isinstance(stage, SplitStage):
            check(stage, where)
            _check_split(stage, recipe.stages[: number - 1], where)
        else:
            _check_language(stage, where)
        parts = _PARTS if isinstance(stage, LanguageStage) else _SPLIT_PARTS
        unknown = set(stage.train) - parts
        if unknown:
            raise RecipeError(
                f"{where}: cannot train {', '.join(sorted(unknown))}; there are {', '.join(sorted(parts))}"
            )
        if stage.weights and len(stage.weights) != len(stage.levels):
            raise RecipeError(f"{where}: {len(stage.weights)} weights for {len(stage.levels)} levels")
        for levels in stage.levels:
            if levels != 0 and not 2 <= levels <= 256:
                raise RecipeError(f"{where}: levels {levels} is not 0 (unquantized) or between 2 and 256")


def _check_split(stage: SplitStage, before: Sequence[Stage], where: str) -> None:
    _check_types(stage.types, where)
    if stage.types and "exists_digit" not in stage.types:
        raise RecipeError(f'{where}: types must hold "exists_digit", which can be asked about every scene')
    if stage.head != "client" and any(isinstance(one, SplitStage) and one.head == "client" for one in before):
        raise RecipeError(f"{where}: an earlier stage has its head on the client; it stays there to the end")


def _check_types(types: Sequence[str], where: str) -> None:
    for kind in types:
        if kind not in TYPES:
            raise RecipeError(f"{where}: {kind!r} is no question type; there are {', '.join(TYPES)}")


def _check_language(stage: LanguageStage, where: str) -> None:
    if stage.rate_weight < 0:
        raise RecipeError(f"{where}: rate_weight is {stage.rate_weight}, it cannot be negative")
    if stage.beside and "connector" in stage.train:
        raise RecipeError(f"{where}: what is `beside` was fitted to the connector, so it cannot learn")
    _check_types(stage.focus, where)


def agreed_stages(recipe: Recipe) -> tuple[Stage, ...]:
    """The stages without what is a client's own affair: where its data lies, and how it is kept."""
    return tuple(agreed(stage) if isinstance(stage, SplitStage) else stage for stage in recipe.stages)


def override(
    recipe: Recipe,
    *,
    start: str | None = None,
    seed: int | None = None,
    data: Path | None = None,
    pictures: Path | None = None,
    on_bad_sample: str | None = None,
) -> Recipe:
    """The recipe with what the command line says instead.

    Raises:
        RecipeError: if a model is to be built and a checkpoint to start from is named as well, or data is
            named for stages on digit scenes.
    """
    if start is not None:
        if recipe.model is not None:
            raise RecipeError(f"recipe {recipe.name!r} builds a model; --start does not go with it")
        recipe = msgspec.structs.replace(recipe, start=start)
    given = {"file": data, "pictures": pictures, "on_bad_sample": on_bad_sample}
    changed = {name: str(value) for name, value in given.items() if value is not None}
    if changed:
        recipe = msgspec.structs.replace(
            recipe, stages=tuple(_with_data(stage, changed, recipe.name) for stage in recipe.stages)
        )
    return recipe if seed is None else msgspec.structs.replace(recipe, seed=seed)


def _with_data(stage: Stage, changed: dict[str, str], name: str) -> Stage:
    if not isinstance(stage, SplitStage) or stage.data is None:
        raise RecipeError(
            f"recipe {name!r} has a stage on digit scenes; --data, --pictures and --on-bad-sample go with "
            "stages that have [stages.data], whose limits the server needs too"
        )
    return msgspec.structs.replace(stage, data=msgspec.structs.replace(stage.data, **changed))
