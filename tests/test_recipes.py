from pathlib import Path

import pytest
import timm
import yaml

from finetune.recipe import load_recipe

RECIPES = sorted((Path(__file__).parent.parent / "recipes").glob("*.yaml"))
TABLE = (Path(__file__).parent.parent / "recipes" / "README.md").read_text("utf-8")


def test_there_are_recipes_for_at_least_eight_sets():
    assert len(RECIPES) >= 8


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_a_recipe_is_valid_short_and_names_a_network(path):
    recipe = load_recipe(path, data="images")
    assert timm.is_model(recipe.model)
    assert len(path.read_text("utf-8").splitlines()) <= 20


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_a_recipe_leaves_the_place_of_the_images_to_the_command_line(path):
    assert "data" not in yaml.safe_load(path.read_text("utf-8"))


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_a_recipe_begins_with_its_set_its_result_and_its_command(path):
    header = [line for line in path.read_text("utf-8").splitlines() if line.startswith("#")]
    assert "subset" in header[0]
    assert " ± " in " ".join(header)
    assert f"finetune train --recipe recipes/{path.name} --data " in " ".join(header)


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_the_table_has_the_result_of_the_header(path):
    header = " ".join(line for line in path.read_text("utf-8").splitlines() if line.startswith("#"))
    result = next(word for word in header.split("Test ")[1].split("(")[0].split() if word[0] == "0")
    row = next(line for line in TABLE.splitlines() if f"]({path.name})" in line)
    assert result in row
