"""Explain a plan in sentences with numbers."""

import numpy as np

from finetune.decide.candidates import MOST_SCALED, SGD_RATE, rate_factor
from finetune.decide.class_weights import MOST_RATIO, are_bounded
from finetune.decide.compilation import COMPILED_GAIN, COMPILING_SECONDS
from finetune.decide.evidence import Evidence, ForwardSettings, GroupFinding
from finetune.decide.families import RATES
from finetune.decide.plan import MOST_WEIGHT, Plan
from finetune.decide.workload import (
    MANY_IMAGES,
    SMALL_SET,
    TRAINING_FOLDS,
    Workload,
    default_batch_size,
    held_out_share,
    num_evaluated,
    small_cost,
)
from finetune.recipe import Recipe

CORRECTIONS = {
    "none": "all images weigh the same in the loss",
    "class_weights": "all classes weigh the same in the loss (class weights)",
    "logit_adjustment": "predictions are made as if all classes were equally frequent (logit adjustment)",
}
"""Corrections for classes of unequal size, in words."""


def explain_plan(plan: Plan, load: Workload, evidence: Evidence, recipe: Recipe) -> tuple[str, ...]:
    """Return the reasons for the numbers of a plan, one sentence each.

    Args:
        plan: plan without reasons.
        load: workload that the plan carries out.
        evidence: measurements that the plan is based on.
        recipe: recipe that may fix some of the numbers.
    """
    return (
        evidence.image_size_reason,
        *_about_reading(plan),
        *_about_flips(plan, evidence, recipe),
        _about_forward(evidence),
        *_about_training(plan, load, evidence),
        *_about_compiling(plan, recipe),
        *_about_small_images(plan, evidence),
        *_about_cache(plan),
        *_about_metric(plan, evidence),
        *_about_imbalance(plan, evidence, recipe),
        *_about_co_tuning(plan.co_tuning),
        *_about_rates(plan, evidence, recipe),
        *_about_family(plan, evidence, recipe),
        *_about_stopping(plan, evidence, recipe),
    )


def explain_groups(finding: GroupFinding) -> str:
    """Return the accuracies with and without unseen groups in one sentence, which says how to change what is done."""
    both = (
        f"{100 * finding.random_accuracy:.0f} % on images like these, {100 * finding.grouped_accuracy:.0f} % on unseen "
        f"groups ({finding.description}, {finding.num_groups} groups)"
    )
    if finding.used:
        return f"{both}; set groups: none to ignore them"
    return f"{both}; this is not certain: set groups: '{finding.rule}' if these images belong together"


def _about_reading(plan: Plan) -> tuple[str, ...]:
    """Return how the values of the images become 8-bit channels, if the images do not leave it at that."""
    reading = plan.preprocessing.reading
    found = [reading.describe()]
    if not reading.is_rgb and plan.weights != "random":
        found.append(
            f"the first layer takes {reading.num_channels} channels: its weights of red, green and blue are repeated "
            f"and scaled (timm), unless they are a file's of as many channels"
        )
    return tuple(sentence for sentence in found if sentence)


def _about_flips(plan: Plan, evidence: Evidence, recipe: Recipe) -> tuple[str, ...]:
    if evidence.chirality is None:
        return ()
    pairs = f"a linear classifier tells mirrored copies from originals in {100 * evidence.chirality:.0f} % of pairs"
    state = "on" if plan.augmentation.horizontal_flip else "off"
    if recipe.augmentation.horizontal_flip is not None:
        return (f"{pairs}; flips are {state}, as the recipe asks",)
    return (f"{pairs}, so flips are {state}",)


def _about_forward(evidence: Evidence) -> str:
    speed = evidence.speed
    return (
        f"{_described(speed.forward)}: {speed.forward_images_per_second:.0f} images/s on {speed.device}, the fastest "
        f"of the settings that were timed; its arithmetic changes {100 * speed.forward_error:.1f} % of the features' "
        f"variance"
    )


def _described(settings: ForwardSettings) -> str:
    """Return the settings of a forward pass in words."""
    parallel = f", {settings.parallel_parts} in parallel" if settings.parallel_parts > 1 else ""
    layout = settings.layout.replace("_", " ")
    return f"forward in {settings.precision}, {layout}, batches of {settings.batch_size}{parallel}"


def _about_training(plan: Plan, load: Workload, evidence: Evidence) -> tuple[str, ...]:
    if plan.strategy == "linear_probe":
        return ()
    fastest = evidence.speed.fastest(plan.strategy, load.trainable_stages)
    asked = "" if plan.precision == fastest.precision else f", {plan.precision} was asked for"
    refit = f" and {load.refit_steps} on all images" if load.refit_steps else ""
    found = (
        f"{fastest.precision} training at {fastest.images_per_second:.0f} images/s{asked}: "
        f"{load.trainings} x {load.steps} steps{refit}",
    )
    if plan.validation == "held_out" and evidence.num_images < SMALL_SET:
        return (
            *found,
            f"{100 * held_out_share(evidence):.0f} % of the images are held out: the time budget is too short for "
            f"{TRAINING_FOLDS} folds",
        )
    return found


def _about_compiling(plan: Plan, recipe: Recipe) -> tuple[str, ...]:
    if not plan.compiled:
        return ()
    if recipe.training.compiled:
        return ("the network is compiled for the training steps, as the recipe asks",)
    return (
        f"the network is compiled for the training steps: that takes about {COMPILING_SECONDS:.0f} s and makes steps "
        f"about {COMPILED_GAIN:g} x as fast, which the expected time leaves out; --set training.compiled=false "
        f"switches it off",
    )


def _about_small_images(plan: Plan, evidence: Evidence) -> tuple[str, ...]:
    if not plan.small_steps:
        return ()
    side, less = evidence.preprocessing.smaller().image_size, 1 - small_cost(evidence.preprocessing)
    return (
        f"the first {plan.small_steps} steps see images of {side} px (progressive resizing): {100 * less:.0f} % less "
        f"work each",
    )


def _about_cache(plan: Plan) -> tuple[str, ...]:
    if not plan.cached_views:
        return ()
    return (f"{plan.cached_views} augmented views of each image go through the frozen stages once and are cached",)


def _about_balance(plan: Plan, evidence: Evidence) -> str:
    """Return how images with a label are weighted in the loss, and why."""
    found = " and ".join(f"{100 * value:.1f} % with {name}" for name, value in evidence.probe.answers.items())
    rule = f"images with a label weigh as much as those without, up to {MOST_WEIGHT:g} x"
    state = rule if plan.imbalance == "class_weights" else "all images weigh the same"
    return f"{state} (linear probe: {found})".replace("class_weights", "weights").replace("none", "no weights")


def _about_metric(plan: Plan, evidence: Evidence) -> tuple[str, ...]:
    if evidence.has_sets:
        return (
            f"images have any number of labels: each label has its own probability (sigmoid, binary cross-entropy), "
            f"and models are compared by mean average precision; {_about_balance(plan, evidence)}",
        )
    if plan.answers is not None:
        costs = "the squared distance between grades" if plan.answers.are_distances else "labels.costs"
        return (
            f"the answer for an image is the class with the least expected cost ({costs}); models are compared by "
            f"{plan.metric}",
        )
    if evidence.metric != "balanced_accuracy":
        return ()
    return (
        f"the largest class has {evidence.imbalance:,.1f} x the images of the smallest: models are compared by "
        f"balanced accuracy",
    )


def _about_imbalance(plan: Plan, evidence: Evidence, recipe: Recipe) -> tuple[str, ...]:
    """Return how classes of unequal size are corrected for, and why."""
    answers = evidence.probe.answers
    if evidence.has_sets or (plan.imbalance == "none" and evidence.metric != "balanced_accuracy"):
        return ()
    found = ", ".join(f"{100 * value:.1f} % with {name.replace('_', ' ')}" for name, value in answers.items())
    why = f"balanced accuracy of the linear probe: {found}" if len(answers) > 1 else "nothing else was compared"
    if recipe.training.imbalance is not None:
        why = "as the recipe asks"
    return (f"{CORRECTIONS[plan.imbalance]}{_about_bound(plan, evidence)} ({why})",)


def _about_bound(plan: Plan, evidence: Evidence) -> str:
    """Return how class weights are bounded, if they are."""
    counts = np.array([*evidence.class_counts.values()])
    if plan.imbalance != "class_weights" or not are_bounded(counts):
        return ""
    return f", except the smallest: an image weighs at most {MOST_RATIO:.0f} x one of the largest class"


def _about_co_tuning(weight: float) -> tuple[str, ...]:
    if not weight:
        return ()
    return (
        f"co-tuning (weight {weight:g}): a second loss on the pretrained classifier keeps the features close to their "
        f"pretrained values",
    )


def _about_rates(plan: Plan, evidence: Evidence, recipe: Recipe) -> tuple[str, ...]:
    """Return why the learning rates differ from those of AdamW with the usual batch size."""
    usual = default_batch_size(evidence.num_images)
    if not plan.steps or (plan.batch_size == usual and plan.optimizer == "adamw"):
        return ()
    images = f"{plan.batch_size} images a step with {'SGD' if plan.optimizer == 'sgd' else 'AdamW'}"
    if recipe.training.learning_rate is not None:
        return (f"{images}: the learning rate is the one in the recipe",)
    # The formula of `rate_factor` in words: sqrt(batch / usual) for AdamW, SGD_RATE * batch / usual for SGD, up to
    # MOST_SCALED.
    factor = rate_factor(plan.optimizer, plan.batch_size, usual)
    rule = f"{SGD_RATE:.0f} for SGD, and linear in" if plan.optimizer == "sgd" else "the square root of"
    bound = f", up to {MOST_SCALED} x" if plan.batch_size > MOST_SCALED * usual else ""
    return (f"{images}: rates are {factor:.3g} x those of AdamW with {usual} ({rule} the batch{bound})",)


def _about_family(plan: Plan, evidence: Evidence, recipe: Recipe) -> tuple[str, ...]:
    """Return the source of the rates of networks other than those of the grid."""
    if plan.strategy not in {"partial", "full"} or recipe.training.learning_rate is not None or not plan.steps:
        return ()
    found = []
    if evidence.family != "cnn":
        known = RATES[evidence.family]
        kind = evidence.family.replace("_", " ")
        found.append(f"rates for {kind}: {known.factor:g} x those of convolutional networks ({known.source})")
    if evidence.highest_rate is not None:
        found.append(
            f"in a range test, rates of up to {evidence.highest_rate:.1e} were safe for all layers, which bounds the "
            f"rates of the table"
        )
    return tuple(found)


def _about_stopping(plan: Plan, evidence: Evidence, recipe: Recipe) -> tuple[str, ...]:
    if not plan.steps:
        return ()
    if plan.patience:
        return (f"a training stops after {plan.patience} evaluations without a lower held-out log-loss",)
    if recipe.training.patience == 0:
        return ("all steps are taken, as the recipe asks",)
    if evidence.num_images < MANY_IMAGES:
        held_out = num_evaluated(evidence, plan.validation == "cross_validation")
        return (
            f"all {plan.steps} steps are taken: with {held_out} held-out images, early stopping would follow noise",
        )
    return (f"all {plan.steps} steps are taken: the loss falls most at the end, where the rate decays",)
