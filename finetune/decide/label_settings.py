"""Refuse settings of a recipe that do not suit the labels: one label an image, or any number of them."""

from finetune.errors import RecipeError
from finetune.recipe import METRIC_OF_SETS, Recipe


def refuse_other_labels(recipe: Recipe, has_sets: bool) -> None:
    """Refuse settings that are for labels of the other kind.

    Args:
        recipe: the recipe.
        has_sets: whether images have any number of labels.

    Raises:
        RecipeError: a setting does not suit the labels; the sentence says what does.
    """
    if not has_sets:
        if recipe.metric == METRIC_OF_SETS:
            raise RecipeError(
                f"metric: {METRIC_OF_SETS} is for images with any number of labels, but these have one each; leave it "
                f"out, or name what stands between the labels: columns.delimiter"
            )
        return
    if recipe.metric not in (None, METRIC_OF_SETS):
        raise RecipeError(
            f"metric: {recipe.metric} is for one label per image, but these have any number; leave it out, or set it "
            f"to {METRIC_OF_SETS}"
        )
    if recipe.training.imbalance == "logit_adjustment":
        raise RecipeError(
            "training.imbalance: logit_adjustment is for one label per image, but these have any number; set it to "
            "class_weights or none, or leave it out"
        )
    if recipe.training.co_tuning:
        raise RecipeError(
            "training.co_tuning is for one label per image, but these have any number; set it to 0, or leave it out"
        )
