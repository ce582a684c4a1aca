"""Recipes: what is wrong is named."""

from __future__ import annotations

from pathlib import Path

import pytest

from qtl_core.errors import RecipeError
from qtl_training.recipe import override, read_recipe

RECIPES = Path(__file__).parents[2] / "training" / "recipes"
GOOD = """
name = "x"
start = "shipped"
[[stages]]
kind = "language"
steps = 1
scenes = 2
optimizer = { lr = 1e-3 }
"""


@pytest.mark.parametrize("path", sorted(RECIPES.glob("*.toml")), ids=lambda path: path.stem)
def test_every_recipe_of_ours_reads(path: Path) -> None:
    assert read_recipe(path).stages


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (("steps = 1", "steps = 0"), "steps is 0"),
        (("steps = 1", "stepps = 1"), "stepps"),
        (('kind = "language"', 'kind = "vision"'), "vision"),
        (('start = "shipped"', ""), "give either `start`"),
        (("scenes = 2", 'scenes = 2\ntrain = ["tower"]'), "cannot train tower"),
        (("scenes = 2", "scenes = 2\nlevels = [1]"), "levels 1 is not 0"),
        (("scenes = 2", "scenes = 2\nlevels = [2, 4]\nweights = [1.0]"), "1 weights for 2 levels"),
        (("scenes = 2", "scenes = 2\nrate_weight = -1.0"), "rate_weight is -1.0"),
        (("scenes = 2", 'scenes = 2\nbeside = ["tiny"]'), "fitted to the connector"),
        (("scenes = 2", 'scenes = "two"'), "Expected `int`"),
        (("[[stages]]", "[[stages"), r"at line \d+"),
    ],
)
def test_a_wrong_setting_is_named(tmp_path: Path, change: tuple[str, str], message: str) -> None:
    file = tmp_path / "recipe.toml"
    file.write_text(GOOD.replace(*change))
    with pytest.raises(RecipeError, match=message):
        read_recipe(file)


def test_a_fit_needs_the_quantizer_to_learn(tmp_path: Path) -> None:
    file = tmp_path / "recipe.toml"
    split = GOOD.replace('kind = "language"', 'kind = "split"\nmicro_batches = 1\npictures = 1')
    file.write_text(split.replace("steps = 1", 'steps = 1\nfit_quantizer = true\ntrain = ["connector"]'))
    with pytest.raises(RecipeError, match=r"fit_quantizer begins .* must be in `train`"):
        read_recipe(file)


def test_no_steps_where_fitting_is_all(tmp_path: Path) -> None:
    file = tmp_path / "recipe.toml"
    file.write_text(GOOD.replace("steps = 1", "steps = 0\nfit_quantizers = true"))
    assert read_recipe(file).stages[0].steps == 0


def test_a_missing_recipe_is_named(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="cannot be read"):
        read_recipe(tmp_path / "none.toml")


def test_the_command_line_wins(tmp_path: Path) -> None:
    file = tmp_path / "recipe.toml"
    file.write_text(GOOD)
    changed = override(read_recipe(file), start="elsewhere", seed=7)
    assert (changed.start, changed.seed) == ("elsewhere", 7)
    with pytest.raises(RecipeError, match="--start does not go with it"):
        override(read_recipe(RECIPES / "digits.toml"), start="elsewhere")
