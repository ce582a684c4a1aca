"""The stages of a recipe that run across the cut."""

from __future__ import annotations

from qtl_core.errors import RecipeError
from qtl_core.split_stage import SplitStage
from qtl_training.recipe import Recipe


def stages_of(recipe: Recipe) -> tuple[SplitStage, ...]:
    """All of them.

    Raises:
        RecipeError: if one needs both sides in one process.
    """
    found = []
    for number, stage in enumerate(recipe.stages, 1):
        if not isinstance(stage, SplitStage):
            raise RecipeError(
                f'recipe {recipe.name!r}, stage {number} is no kind = "split": it needs both sides of the '
                "cut in one process; run it with qtl-train local first, and start from its checkpoint"
            )
        found.append(stage)
    return tuple(found)
