"""Refuse settings of a recipe that do not suit the labels: one label an image, any number, an order, or costs."""

from finetune.errors import RecipeError
from finetune.recipe import METRIC_OF_COSTS, METRIC_OF_SETS, Recipe


def refuse_other_labels(recipe: Recipe, has_sets: bool) -> None:
    """Refuse settings that are for labels of the other kind.

    Args:
        recipe: the recipe.
        has_sets: whether images have any number of labels.

    Raises:
        RecipeError: a setting does not suit the labels; the sentence says what does.
    """
    if has_sets and recipe.labels.decide_answers:
        raise RecipeError(
            "labels.order and labels.costs are for one label per image, but these have any number; leave them out"
        )
    if recipe.metric == METRIC_OF_COSTS and not recipe.labels.decide_answers:
        raise RecipeError(
            f"metric: {METRIC_OF_COSTS} needs costs; give labels.order or labels.costs, or leave the metric out"
        )
    if recipe.labels.costs is not None and recipe.training.imbalance not in (None, "none"):
        raise RecipeError(
            f"training.imbalance: {recipe.training.imbalance} changes the probabilities, which labels.costs weighs; "
            f"leave it out, and write what a confusion costs into labels.costs"
        )
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
