"""Size a training: its trained stages, its number of steps, its batch size, and its time in seconds."""

import math

from finetune.decide.evidence import Evidence, MachineSpeed, StageProfile, TrainingSpeed
from finetune.decide.preprocessing import Preprocessing
from finetune.errors import RecipeError
from finetune.recipe import Recipe, Strategy
from finetune.value import FrozenModel

BATCH_SIZE = 32
"""Default batch size, in images."""

LARGE_BATCH_SIZE = 128
"""Default batch size for large image sets, in images."""

LARGE_SET = 10_000
"""Number of training images from which the default batch is the larger one, because batches of 32 images leave an
accelerator partly idle."""

MINIMUM_STEPS = 100
"""Smallest default number of steps. Fewer steps do not get far enough, however large their batches and rates are
(experiments/log.md, 2026-11-25); brief candidates take half of them and are expected to lose accuracy."""

MOST_VIEWS = 6
"""Largest number of augmented views of each image that are cached. Fewer views repeat more often; more views cost more
forward passes (experiments/log.md, 2026-11-25)."""

SMALL_SET = 600
"""Number of training images below which models are cross-validated, instead of evaluated on one held-out part."""

MANY_IMAGES = 5_000
"""Number of training images from which the held-out images are enough to compare the steps of a training, and crops may
be smaller."""

HELD_OUT = 0.2
"""Fraction of the training images that is held out, if there are enough of them and the data has no validation
split."""

SMALL_SHARE = 0.5
"""Default fraction of the steps on smaller images, if there are enough images."""

TRAINING_FOLDS = 3
"""Number of folds of a cross-validated fine-tuning; each fold costs a training."""

SCRATCH_FACTOR = 5
"""Ratio of the default number of steps from random weights to that from pretrained weights; more steps would still
help."""

PARTIAL_SHARE = 0.72
"""Largest fraction of a forward pass that the trained stages of `partial` take by default."""

REFIT_SET = 1000
"""Number of training images below which, by default, the final model is also trained on the held-out images."""

MOST_HELD_OUT = 0.3
"""Largest share of the training images that the final model may do without. Of classes of two or three images, a third
or a half is held out, because each class has at least one image on each side."""

REFIT_SHARE = 0.25
"""Ratio of the number of steps of a refit that continues from the evaluated weights to that of the training
(experiments/log.md, 2026-11-25)."""


PROBE_SAMPLE = 5000
"""Largest number of training images that are measured, unless there are more than half as many classes; with that many,
the standard error of the linear probe's accuracy is below half a point."""

PROBE_SECONDS = 0.5
"""Approximate time of fitting a linear probe to features, in seconds."""


class Workload(FrozenModel):
    """Size of a training: its stages, steps and batches."""

    trainable_stages: int
    """Number of last stages that are trained under `partial`."""
    steps: int
    """Number of optimizer steps of one training."""
    batch_size: int
    """Number of images in an optimizer step, over all processes."""
    trainings: int
    """Number of trainings that are evaluated on held-out images: one, or one per fold."""
    refit_steps: int
    """Number of steps of the last training, on all images; 0: there is none."""
    cached_views: int
    """Number of augmented views of each image with cached activations at the frozen boundary; 0: none are cached."""
    small_steps: int
    """Number of steps, from the first, on smaller images."""


def size_workload(
    recipe: Recipe, evidence: Evidence, strategy: Strategy, stages: int | None = None, length: float = 1.0
) -> Workload:
    """Return the workload of a strategy on the measured images, with the recipe's fixed numbers and time budget.

    Args:
        recipe: may fix the steps, the batch size, the stages and more.
        evidence: the measured images and machine.
        strategy: how much of the network is trained.
        stages: number of last stages that `partial` trains if the recipe does not fix it; None: the usual number.
        length: number of steps relative to the default, if the recipe does not fix it.

    Raises:
        RecipeError: the recipe asks for progressive resizing, but the network cannot be trained on smaller images.
    """
    # 1) Steps: the default length, or the recipe's.
    batch_size = recipe.batch_size or default_batch_size(evidence.num_images)
    steps = _usual_steps(recipe, evidence, strategy, length)
    # 2) Trained stages of `partial`: at least one stage stays frozen.
    stages = recipe.training.trainable_stages or stages or default_trainable_stages(evidence.stages)
    trainable = min(stages, len(evidence.stages) - 1)

    def load_of(steps: int, folds: int) -> Workload:
        # One training and perhaps a refit, or one per fold. After folds the refit has the whole length, because none of
        # them was trained on all images.
        is_needed = evidence.num_images < REFIT_SET or held_out_share(evidence) > MOST_HELD_OUT
        refit = is_needed if recipe.refit is None else recipe.refit
        refit_share = 1.0 if folds else REFIT_SHARE if refit else 0.0
        values = boundary_values(evidence.stages, trainable) if strategy == "partial" else None
        views = cached_views(evidence.num_images, steps, batch_size, values, evidence.cache_bytes)
        return Workload(
            trainable_stages=trainable,
            steps=steps,
            batch_size=batch_size,
            trainings=folds or 1,
            refit_steps=math.ceil(refit_share * steps),
            cached_views=views,
            small_steps=0 if views == 1 else small_steps(recipe, evidence, strategy, steps),
        )

    # 3) Trainings: few images are cross-validated.
    is_crossed = not evidence.has_validation and evidence.num_images < SMALL_SET
    load = load_of(steps, TRAINING_FOLDS if is_crossed else 0)
    if recipe.time_budget is None or recipe.steps is not None or recipe.epochs is not None:
        return load
    # 4) Time budget: one held-out part instead of folds, whose trainings cost about three times as much; then fewer
    # steps, unless the recipe fixes their number.
    seconds = expected_seconds(strategy, load, evidence)
    if is_crossed and seconds > recipe.time_budget and recipe.ensemble != "folds":
        load = load_of(steps, 0)
        seconds = expected_seconds(strategy, load, evidence)
    if seconds <= recipe.time_budget:
        return load
    folds = load.trainings if load.trainings > 1 else 0
    fixed = expected_seconds(strategy, load_of(0, folds), evidence)
    # Time is fixed + steps * time per step: the budget beyond the fixed part is divided by the time per step.
    share = max(0.0, recipe.time_budget - fixed) / max(seconds - fixed, 1e-9)
    return load_of(max(1, int(steps * share)), folds)


def _usual_steps(recipe: Recipe, evidence: Evidence, strategy: Strategy, length: float) -> int:
    """Return the number of steps of a training without a time budget."""
    batch_size = recipe.batch_size or default_batch_size(evidence.num_images)
    if recipe.steps is not None:
        return recipe.steps
    if recipe.epochs is not None:
        return math.ceil(recipe.epochs * evidence.num_images / batch_size)
    usual = default_steps(evidence.num_images) * (SCRATCH_FACTOR if strategy == "scratch" else 1)
    return round(length * steps_at(batch_size, usual, default_batch_size(evidence.num_images)))


def default_trainable_stages(stages: tuple[StageProfile, ...]) -> int:
    """Return the default number of last stages that `partial` trains: the largest one that takes at most
    `PARTIAL_SHARE` of a forward pass.

    The last stages hold most of the parameters. The early stages work on large maps: they have few parameters, but cost
    the most time and memory.
    """
    for count in range(len(stages) - 1, 0, -1):
        if tail_share(stages, count) <= PARTIAL_SHARE and boundary_values(stages, count) is not None:
            return count
    return 1


def half_stages(stages: tuple[StageProfile, ...]) -> int:
    """Return the number of last stages that the shallowest training has: half of the default number."""
    return max(1, default_trainable_stages(stages) // 2)


def default_batch_size(num_images: int) -> int:
    """Return the default batch size, in images."""
    return LARGE_BATCH_SIZE if num_images >= LARGE_SET else BATCH_SIZE


def default_steps(num_images: int) -> int:
    """Return the default number of optimizer steps of a training from pretrained weights.

    It is ten times the square root of the number of images: 350 at 1,200 images, 1,000 at 10,000. So a training makes
    more passes over a small set than over a large one. Measured in experiments/log.md, 2026-11-24, -25 and -29.
    """
    return max(MINIMUM_STEPS, round(10.0 * math.sqrt(num_images)))


def steps_at(batch_size: int, steps: int, usual: int) -> int:
    """Return the number of steps of `batch_size` images that process as many images as `steps` steps of `usual` images.

    >>> steps_at(64, 400, 32), steps_at(1024, 400, 32), steps_at(8, 400, 32)
    (200, 100, 1600)
    """
    return max(round(steps * usual / batch_size), MINIMUM_STEPS)


def cached_views(num_images: int, steps: int, batch_size: int, values: int | None, num_bytes: int) -> int:
    """Return the number of augmented views of each image to cache; 0: cache none.

    Args:
        num_images: number of training images.
        steps: number of optimizer steps.
        batch_size: number of images in a step.
        values: number of values in the activation of one view, 2 bytes each; None: the network cannot be cut there.
        num_bytes: largest size of the cached activations, in bytes.
    """
    if values is None:
        return 0
    # A pass over the images uses one view of each image, so more views than passes are wasted. The plain view is cached
    # in addition, for evaluations. With several passes, a single view would mean that nothing is augmented.
    passes = math.ceil(steps * batch_size / max(num_images, 1))
    affordable = num_bytes // (2 * values * num_images) - 1
    views = min(MOST_VIEWS, passes, affordable)
    return views if views >= min(2, passes) else 0


def small_steps(recipe: Recipe, evidence: Evidence, strategy: Strategy, steps: int) -> int:
    """Return the number of steps, from the first, on smaller images (progressive resizing).

    With half of the steps on smaller images, `full` lost no measurable accuracy at 180 to 900 images
    (docs/explanation/training.md). It saves the most time, because it trains the early stages; the last stages work on
    small maps anyway.

    Raises:
        RecipeError: the recipe asks for such steps, but the network takes images of one size only, or the images are
            already of the smallest size.
    """
    share = recipe.training.progressive_resizing
    is_possible = evidence.takes_any_size and evidence.preprocessing.smaller() != evidence.preprocessing
    if share and not is_possible:
        raise RecipeError(
            f"training.progressive_resizing: {evidence.model} cannot be trained on images of less than "
            f"{evidence.preprocessing.image_size} px here; leave it out"
        )
    if share is None:
        pays = strategy == "full" and evidence.num_images >= SMALL_SET
        share = SMALL_SHARE if is_possible and pays else 0.0
    return min(round(share * steps), max(steps - 1, 0))


def small_views(views: int, small: int, steps: int) -> int:
    """Return the number of cached views that are of the smaller size, if `small` of `steps` steps are; each size has at
    least one view."""
    return min(max(round(views * small / steps), 1), views - 1) if small and views else 0


def small_cost(preprocessing: Preprocessing) -> float:
    """Return the cost of a smaller image relative to a full-size one: the ratio of their areas."""
    return float((preprocessing.smaller().image_size / preprocessing.image_size) ** 2)


def num_evaluated(evidence: Evidence, is_crossed: bool) -> int:
    """Return the approximate number of images that a training is evaluated on: all if they are cross-validated, else
    the held-out ones. The size of a validation split of the data is not known here and taken for the usual one."""
    if is_crossed:
        return evidence.num_held - sum(count == 1 for count in evidence.class_counts.values())
    return max(1, round((held_out_share(evidence) or HELD_OUT) * evidence.num_held))


def held_out_share(evidence: Evidence) -> float:
    """Return the share of the training images that is held out, 0 .. 1; 0 if the data has a validation split."""
    if evidence.has_validation:
        return 0.0
    counts = evidence.class_counts.values()
    # As `stratified_holdout` does it: at least one image of each class is held out, and at least one stays.
    held_out = sum(min(max(1, round(HELD_OUT * count)), count - 1) for count in counts)
    return held_out / sum(counts)


def boundary_values(stages: tuple[StageProfile, ...], trainable_stages: int) -> int | None:
    """Return the number of values in one image's activation below the last `trainable_stages` stages; None if the
    network cannot be cut there."""
    frozen = len(stages) - trainable_stages
    return stages[frozen - 1].output_values if 1 <= frozen < len(stages) else None


def tail_share(stages: tuple[StageProfile, ...], trainable_stages: int) -> float:
    """Return the fraction of a forward pass's multiplications that the last `trainable_stages` stages take, 0 .. 1."""
    return sum(stage.forward_share for stage in stages[len(stages) - trainable_stages :])


def cost_per_image(strategy: Strategy, tail: float, cached: bool) -> float:
    """Return the cost of training on one image once, in forward passes of one image.

    A backward pass costs about two forward passes: one for the weights' gradients, one for the activations'.

    Args:
        strategy: how much of the network is trained.
        tail: fraction of a forward pass that the trained stages of `partial` take, 0 .. 1.
        cached: whether the activations of the frozen stages are cached.
    """
    if strategy == "linear_probe":
        return 0.0
    if strategy == "norm_tuning":
        return 2.0  # a forward pass and the activations' gradients, but none of the convolutions' weights
    if strategy == "partial":
        return 3.0 * tail + (0.0 if cached else 1.0 - tail)
    return 3.0


def seconds_per_image(speed: MachineSpeed) -> float:
    """Return the time of reading an image and sending it forward, in seconds."""
    return 1 / speed.forward_images_per_second + 1 / speed.reading_images_per_second


def probe_seconds(evidence: Evidence) -> float:
    """Return the expected time of a linear probe: of fitting it, and of the features of all images unless the
    measurement has cached them, in seconds."""
    is_measured = evidence.num_held <= measured_images(evidence.num_classes) and evidence.cache_bytes > 0
    return PROBE_SECONDS + (0.0 if is_measured else evidence.num_held * seconds_per_image(evidence.speed))


def measured_images(num_classes: int) -> int:
    """Return the largest number of training images of which features are measured."""
    return max(PROBE_SAMPLE, 2 * num_classes)


def expected_seconds(strategy: Strategy, workload: Workload, evidence: Evidence) -> float:
    """Return the time of all trainings of a workload on the measured machine, in seconds.

    The machine's processes share the work of the trainings; one process alone computes the features for the linear
    probe.
    """
    speed = evidence.speed
    # 1) Features of the linear probe: every image is read and sent forward once.
    features = evidence.num_held * seconds_per_image(speed)
    if strategy == "linear_probe":
        return probe_seconds(evidence)
    # 2) Frozen stages of `partial`: with a cache, each view of each image goes through them once. Without a cache,
    # every image of every step does, which adds to the time of a step.
    measured = speed.fastest(strategy, workload.trainable_stages)
    computing, reading, prefix = 1 / measured.images_per_second, 1 / speed.reading_images_per_second, 0.0
    if strategy == "partial" and workload.cached_views:
        prefix, reading = _seconds_of_cache(workload, evidence, measured), 0.0
    elif strategy == "partial" and measured.prefix_images_per_second:
        computing += 1 / measured.prefix_images_per_second
    # 3) Steps of all trainings; those on smaller images cost less, by the ratio of the areas. A refit with as many
    # steps as a training starts from the beginning; a shorter refit continues, on full-size images.
    steps = workload.trainings * workload.steps + workload.refit_steps
    starts = workload.trainings + (workload.refit_steps == workload.steps)
    saved = 1.0 - small_cost(evidence.preprocessing)
    whole = steps - saved * starts * min(workload.small_steps, workload.steps)
    trained = prefix + workload.batch_size * (whole * computing + steps * reading)
    return (0.0 if strategy == "scratch" else features) + trained / speed.num_processes


def _seconds_of_cache(workload: Workload, evidence: Evidence, measured: TrainingSpeed) -> float:
    """Return the time of reading all views and sending them through the frozen stages, in seconds."""
    speed, views = evidence.speed, workload.cached_views
    rate = measured.prefix_images_per_second or speed.forward_images_per_second
    small = small_views(views, workload.small_steps, workload.steps)
    saved = 1.0 - small_cost(evidence.preprocessing)
    # The held-out part needs no views, unless a refit or another fold trains on it, or validation has its own split.
    is_held_out = workload.trainings == 1 and not workload.refit_steps and not evidence.has_validation
    trained = evidence.num_images * (1.0 - HELD_OUT if is_held_out else 1.0)
    # The plain view of the held-out images, and of as many training images, for the evaluations.
    evaluated = min(evidence.num_images, 2 * num_evaluated(evidence, workload.trainings > 1))
    forward = (trained * (views - saved * small) + evaluated) / rate
    return forward + (trained * views + evaluated) / speed.reading_images_per_second
