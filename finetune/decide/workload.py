"""How much work a strategy is: which stages it trains, for how many steps, at what cost."""

import math

from finetune.decide.evidence import Evidence, StageProfile
from finetune.decide.preprocessing import Preprocessing
from finetune.errors import RecipeError
from finetune.recipe import Recipe, Strategy
from finetune.value import FrozenModel

BATCH_SIZE = 32
LARGE_BATCH_SIZE = 128
LARGE_SET = 10_000
"""From so many images on, the batch is larger: gradients of 32 images waste an accelerator."""

MINIMUM_STEPS = 100
"""Fewer do not get far enough, however large their batches and rates are (experiments/log.md, 2026-11-25)."""

MOST_VIEWS = 6
"""Augmented views of each image that are kept: fewer repeat, more cost forward passes (experiments/log.md, 2026-11-25)."""

SMALL_SET = 600
"""Below so many training images everything is cross-validated instead of holding some out."""

HELD_OUT = 0.2
"""Share of the training images that judge, where there are enough of them and no validation split."""

SMALL_SHARE = 0.5
"""Share of the steps that see smaller images, where there are enough images."""

TRAINING_FOLDS = 3
"""Folds of a cross-validated fine-tuning: each costs a training."""

SCRATCH_FACTOR = 5
"""Random weights need so many times the steps of pretrained ones, and more would still help."""

PARTIAL_SHARE = 0.72
"""Most of a forward pass that `partial` trains."""

REFIT_SET = 1000
"""Below so many training images all of them are trained on before the model ships."""

REFIT_SHARE = 0.25
"""Steps of a refit that goes on from the weights that were judged, over those of the training (experiments/log.md,
2026-11-25)."""


class Workload(FrozenModel):
    """The size of a training."""

    trainable_stages: int
    """How many of the last stages are trained, where the strategy is `partial`."""
    steps: int
    batch_size: int
    trainings: int
    """Folds, or one training that is judged."""
    refit_steps: int
    """Steps of the last training, on all images; 0: there is none."""
    cached_views: int
    """Augmented views whose activations at the frozen boundary are kept; 0: nothing is kept."""
    small_steps: int
    """First steps, which see smaller images."""


def size_workload(recipe: Recipe, evidence: Evidence, strategy: Strategy, stages: int | None = None) -> Workload:
    """Return how much work `strategy` is on the measured images, with what the recipe fixes, within its time budget.

    Args:
        recipe: what is fixed, such as the steps.
        evidence: the measured images and machine.
        strategy: how much is trained.
        stages: how many of the last stages `partial` trains, where the recipe does not say; None: as many as usual.

    Raises:
        RecipeError: the recipe asks for smaller images than the network takes.
    """
    batch_size = recipe.batch_size or default_batch_size(evidence.num_images)
    refit = evidence.num_images < REFIT_SET if recipe.refit is None else recipe.refit
    trainings, refit_share = 1, REFIT_SHARE if refit else 0.0
    if not evidence.has_validation and evidence.num_images < SMALL_SET:
        trainings, refit_share = TRAINING_FOLDS, 1.0  # no fold saw all images, so none of them ships
    steps = default_steps(evidence.num_images, evidence.domain_similarity) * (
        SCRATCH_FACTOR if strategy == "scratch" else 1
    )
    steps = steps_at(batch_size, steps, default_batch_size(evidence.num_images))
    if recipe.steps is not None:
        steps = recipe.steps
    elif recipe.epochs is not None:
        steps = math.ceil(recipe.epochs * evidence.num_images / batch_size)
    stages = recipe.training.trainable_stages or stages or default_trainable_stages(evidence.stages)
    trainable = min(stages, len(evidence.stages) - 1)

    def with_steps(steps: int) -> Workload:
        values = boundary_values(evidence.stages, trainable) if strategy == "partial" else None
        views = cached_views(evidence.num_images, steps, batch_size, values, evidence.cache_bytes)
        return Workload(
            trainable_stages=trainable,
            steps=steps,
            batch_size=batch_size,
            trainings=trainings,
            refit_steps=math.ceil(refit_share * steps),
            cached_views=views,
            small_steps=0 if views == 1 else small_steps(recipe, evidence, strategy, steps),
        )

    load = with_steps(steps)
    if recipe.time_budget is None or recipe.steps is not None or recipe.epochs is not None:
        return load
    seconds = expected_seconds(strategy, load, evidence)
    fixed = expected_seconds(strategy, with_steps(0), evidence)
    if seconds <= recipe.time_budget:
        return load
    share = max(0.0, recipe.time_budget - fixed) / max(seconds - fixed, 1e-9)
    return with_steps(max(1, int(steps * share)))


def default_trainable_stages(stages: tuple[StageProfile, ...]) -> int:
    """Return how many of the last stages `partial` trains: those that hold most parameters and least of the work.

    The early stages work on large maps: they hold few parameters but cost most, in time and in memory.
    """
    for count in range(len(stages) - 1, 0, -1):
        if tail_share(stages, count) <= PARTIAL_SHARE and boundary_values(stages, count) is not None:
            return count
    return 1


def short_stages(stages: tuple[StageProfile, ...]) -> int:
    """Return how many of the last stages the cheaper way of `partial` trains: half of the usual ones."""
    return max(1, default_trainable_stages(stages) // 2)


def default_batch_size(num_images: int) -> int:
    """Return the images a step."""
    return LARGE_BATCH_SIZE if num_images >= LARGE_SET else BATCH_SIZE


def default_steps(num_images: int, similarity: float) -> int:
    """Return the optimizer steps that fine-tuning takes by default.

    Ten times the root of the images in a far domain, five times in a near one, which has less to learn: 350 or 175 at
    1,200 images, 1,000 or 500 at 10,000; in passes over the images that is many where there are few of them and few
    where there are many. Measured in experiments/log.md, 2026-11-24 and -25.
    """
    return max(MINIMUM_STEPS, round((10.0 - 5.0 * similarity) * math.sqrt(num_images)))


def steps_at(batch_size: int, steps: int, usual: int) -> int:
    """Return the steps that look at as many images with `batch_size` of them a step as `steps` do with `usual`.

    >>> steps_at(64, 400, 32), steps_at(1024, 400, 32), steps_at(8, 400, 32)
    (200, 100, 1600)
    """
    return max(round(steps * usual / batch_size), MINIMUM_STEPS)


def cached_views(num_images: int, steps: int, batch_size: int, values: int | None, num_bytes: int) -> int:
    """Return how many views of each image to keep in `num_bytes` at a boundary of `values` numbers, 2 bytes each."""
    if values is None:
        return 0
    passes = math.ceil(steps * batch_size / max(num_images, 1))
    affordable = num_bytes // (2 * values * num_images) - 1  # one more is kept for judging: the plain view
    views = min(MOST_VIEWS, passes, affordable)
    return views if views >= min(2, passes) else 0


def small_steps(recipe: Recipe, evidence: Evidence, strategy: Strategy, steps: int) -> int:
    """Return how many of the steps, from the first, see smaller images.

    Half of them cost `full` nothing that could be told with 180 to 900 images (docs/training.md), and save most where
    there is most to do; the last stages, whose maps are small anyway, hardly gain. Who wants accuracy alone gets none.

    Raises:
        RecipeError: they were asked for, but the network takes images of one size alone, or none that are smaller.
    """
    share = recipe.training.progressive_resizing
    is_possible = evidence.takes_any_size and evidence.preprocessing.smaller() != evidence.preprocessing
    if share and not is_possible:
        raise RecipeError(
            f"training.progressive_resizing: {evidence.model} can not be trained on images of less than "
            f"{evidence.preprocessing.image_size} px here; leave it out"
        )
    if share is None:
        pays = strategy == "full" and evidence.num_images >= SMALL_SET and recipe.prefer != "accuracy"
        share = SMALL_SHARE if is_possible and pays else 0.0
    return min(round(share * steps), max(steps - 1, 0))


def small_views(views: int, small: int, steps: int) -> int:
    """Return how many of the cached views are small, where `small` of the steps are: both kinds have at least one."""
    return min(max(round(views * small / steps), 1), views - 1) if small and views else 0


def small_cost(preprocessing: Preprocessing) -> float:
    """Return the work of a smaller image over that of a full-size one."""
    return float((preprocessing.smaller().image_size / preprocessing.image_size) ** 2)


def num_evaluated(evidence: Evidence) -> int:
    """Return about how many images judge a training: all where they are cross-validated, else some held-out ones."""
    if evidence.num_images < SMALL_SET and not evidence.has_validation:
        return evidence.num_held
    return max(1, round(HELD_OUT * evidence.num_held))


def boundary_values(stages: tuple[StageProfile, ...], trainable_stages: int) -> int | None:
    """Return the size of the activation below the last `trainable_stages` stages, or None if the network has no cut
    there."""
    frozen = len(stages) - trainable_stages
    return stages[frozen - 1].output_values if 1 <= frozen < len(stages) else None


def tail_share(stages: tuple[StageProfile, ...], trainable_stages: int) -> float:
    """Return the share of a forward pass that the last stages take."""
    return sum(stage.forward_share for stage in stages[len(stages) - trainable_stages :])


def cost_per_image(strategy: Strategy, tail: float, cached: bool) -> float:
    """Return the forward equivalents of training on one image once.

    A backward pass costs about twice a forward pass: once for the weights' gradients, once for the activations'.
    """
    if strategy == "linear_probe":
        return 0.0
    if strategy == "norm_tuning":
        return 2.0  # no gradients of the convolutions' weights
    if strategy == "partial":
        return 3.0 * tail + (0.0 if cached else 1.0 - tail)
    return 3.0


def expected_seconds(strategy: Strategy, workload: Workload, evidence: Evidence) -> float:
    """Return the seconds that all trainings of a workload take on the measured machine; all of its processes share the
    trainings, and one alone makes the features."""
    speed = evidence.speed
    together = speed.num_processes
    features = evidence.num_held * (1 / speed.forward_images_per_second + 1 / speed.reading_images_per_second)
    if strategy == "linear_probe":
        return features + 0.5
    measured = speed.fastest(strategy, workload.trainable_stages)
    saved = 1.0 - small_cost(evidence.preprocessing)
    computing, reading = 1 / measured.images_per_second, 0.0
    prefix = 0.0
    if strategy == "partial" and workload.cached_views:
        rate = measured.prefix_images_per_second or speed.forward_images_per_second
        views = workload.cached_views
        small = small_views(views, workload.small_steps, workload.steps)
        is_kept_back = workload.trainings == 1 and not workload.refit_steps and not evidence.has_validation
        trained = evidence.num_images * (1.0 - HELD_OUT if is_kept_back else 1.0)
        judged = min(evidence.num_images, 2 * num_evaluated(evidence))  # and as many that are trained on
        prefix = (trained * (views - saved * small) + judged) / rate
        prefix += (trained * views + judged) / speed.reading_images_per_second
    else:
        reading = 1 / speed.reading_images_per_second
        if strategy == "partial" and measured.prefix_images_per_second:
            computing += 1 / measured.prefix_images_per_second
    if strategy == "scratch":
        features = 0.0
    steps = workload.trainings * workload.steps + workload.refit_steps
    # A refit of as many steps starts anew, as the trainings did; a shorter one goes on and sees full-size images.
    starts = workload.trainings + (workload.refit_steps == workload.steps)
    whole = steps - saved * starts * min(workload.small_steps, workload.steps)
    return features + (prefix + workload.batch_size * (whole * computing + steps * reading)) / together
