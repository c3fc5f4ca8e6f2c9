"""Make the plan: resolve each number that the recipe leaves open."""

import math

from finetune.decide.answers import make_rule
from finetune.decide.candidates import Candidate
from finetune.decide.choice import Choice
from finetune.decide.compilation import compiling_pays
from finetune.decide.evidence import Evidence, TrainingSpeed
from finetune.decide.plan import Plan
from finetune.decide.plan_reasons import explain_plan
from finetune.decide.workload import MANY_IMAGES, SMALL_SET, TRAINING_FOLDS, Workload, expected_seconds
from finetune.errors import RecipeError
from finetune.reading import Reading
from finetune.recipe import METRIC_OF_COSTS, BatchNormStatistics, Optimizer, Recipe, Strategy, TrainingRecipe

VERY_MANY_IMAGES = 20_000
"""Number of training images from which a published policy of stronger augmentation is used."""

WEIGHT_DECAY: dict[Optimizer, float] = {"adamw": 0.02, "sgd": 1e-4}
"""Default weight decay of each optimizer."""

WARMUP_FRACTION = 0.1
"""Default fraction of the steps in which the learning rate rises to its peak."""

AVERAGE_HORIZON = 0.05
"""Default horizon of the moving average of the weights, as a fraction of the steps."""

LABEL_SMOOTHING = 0.05
"""Default probability that the target distributes over all classes."""

PROBE_FOLDS = 5
"""Number of folds of a cross-validated linear probe, which costs little."""

CO_TUNING = 2.3
"""Default weight of the pretrained classifier's loss, relative to the new head's: that of You et al. 2020."""

CHIRAL = 0.7
"""Chirality from which a mirrored image counts as different, so that images are not flipped (visual chirality, Lin et
al. 2020)."""


def make_plan(recipe: Recipe, evidence: Evidence, choice: Choice) -> Plan:
    """Return the plan that carries out a choice; numbers that the recipe fixes are kept.

    The function has this many lines because it lists every number of a plan once, in the order of `Plan`.

    Raises:
        RecipeError: the fixed numbers do not fit together.
    """
    # 1) Size: the workload of the candidate. A linear probe takes no steps, unless the recipe sets their number.
    asked = recipe.training
    chosen = choice.chosen
    load = chosen.workload(recipe, evidence)
    names = [stage.name for stage in evidence.stages]
    speed = _speed(evidence, choice.strategy, load)
    precision = asked.precision or speed.precision
    steps = 0 if choice.strategy == "linear_probe" and recipe.steps is None and recipe.epochs is None else load.steps
    # 2) Schedule: the warm-up always leaves a step for the peak rate.
    warmup = min(round(steps * _or(asked.warmup_fraction, WARMUP_FRACTION)), max(steps - 1, 0))
    # An exponential average with decay d looks back over 1 / (1 - d) steps: a horizon of h steps needs d = 1 - 1 / h.
    horizon = _or(asked.average_horizon, AVERAGE_HORIZON) * steps
    # 3) Weights to keep: the last ones if there are few held-out images, because the best evaluation would be a matter
    # of noise.
    patience = _patience(evidence, asked)
    keep = asked.keep or ("best" if patience or evidence.num_images >= MANY_IMAGES else "last")
    statistics = asked.batch_norm_statistics or _statistics(choice.strategy)
    optimizer = asked.optimizer or "adamw"
    rule = make_rule(recipe.labels, [*evidence.class_counts])
    content = {
        "data": recipe.data,
        "columns": recipe.columns.model_dump(),
        "groups": evidence.groups.rule if evidence.groups is not None and evidence.groups.used else "none",
        "limit": recipe.limit or 0,
        "allow_rare": recipe.allow_rare,
        "model": evidence.model,
        "weights": "random" if choice.strategy == "scratch" else (recipe.weights or "pretrained"),
        "preprocessing": evidence.preprocessing.model_dump(),
        "strategy": choice.strategy,
        "stages": _stage_rates(names, chosen),
        "head_learning_rate": chosen.learning_rate,
        "probe_inverse_regularization": evidence.probe.inverse_regularization,
        "steps": steps,
        "warmup_steps": warmup,
        "small_steps": load.small_steps if steps else 0,
        "schedule": asked.schedule or "cosine",
        "batch_size": load.batch_size,
        "accumulation": asked.accumulation or _accumulation(evidence, load, statistics),
        "optimizer": optimizer,
        "weight_decay": _or(asked.weight_decay, WEIGHT_DECAY[optimizer]),
        # Smoothing would add half a label of every rare class to each image of sets, and far grades to each grade.
        "label_smoothing": _or(
            asked.label_smoothing, 0.0 if evidence.has_sets or recipe.labels.order else LABEL_SMOOTHING
        ),
        "co_tuning": _co_tuning(evidence, choice.strategy, asked),
        "clip_norm": asked.clip_norm or 1.0,
        "average_decay": max(0.0, 1.0 - 1.0 / max(1.0, horizon)),
        "batch_norm_statistics": statistics,
        "imbalance": asked.imbalance or _answer_to_imbalance(evidence),
        "augmentation": _augmentation(recipe, evidence),
        "test_time_flips": _flips_at_test_time(recipe, evidence),
        "cached_views": load.cached_views,
        "precision": precision,
        "compiled": _compiled(evidence, load, choice.strategy, asked) and steps > 0,
        "parallel_parts": speed.parallel_parts,
        "num_threads": max(1, evidence.speed.num_threads // speed.parallel_parts),
        "forward": evidence.speed.forward.model_dump(),
        "keep": keep,
        "evaluations": asked.evaluations or (10 if keep == "best" else 4),
        "patience": patience,
        "minimum_gain": asked.minimum_gain or 0.0,
        "time_budget": recipe.time_budget or 0.0,
        "validation": _validation(evidence, load, steps),
        "folds": _folds(evidence, PROBE_FOLDS if choice.strategy == "linear_probe" and steps == 0 else TRAINING_FOLDS),
        "refit": load.refit_steps > 0,
        "refit_steps": load.refit_steps if steps else 0,
        "metric": evidence.metric,
        "answers": None if rule is None else rule.model_dump(),
        "seed": recipe.seed,
        "training_seed": recipe.seed,
        "cycle": 0,
    }
    plan = Plan.parse(content, origin="plan")
    return plan.changed(reasons=explain_plan(plan, load, evidence, recipe))


def _or(asked: float | None, default: float) -> float:
    return default if asked is None else asked


def _speed(evidence: Evidence, strategy: Strategy, load: Workload) -> TrainingSpeed:
    """Return the fastest settings of the training steps; a linear probe with steps trains the head alone, in
    float32."""
    # Training a head alone is not timed; `norm_tuning` is the nearest strategy that is.
    if strategy == "linear_probe":
        return evidence.speed.fastest("norm_tuning", 0).changed(precision="float32", parallel_parts=1)
    return evidence.speed.fastest(strategy, load.trainable_stages)


def _statistics(strategy: Strategy) -> BatchNormStatistics:
    """Return the default batch-norm statistics."""
    # Pretrained weights come with statistics, which stay; random weights have none.
    return "updated" if strategy == "scratch" else "frozen"


def _accumulation(evidence: Evidence, load: Workload, statistics: str) -> int:
    """Return the number of micro-batches of a batch, each of which fits into memory; updated batch-norm statistics need
    whole batches."""
    # Each micro-batch would update the running statistics with fewer images than a batch has.
    return 1 if statistics == "updated" else math.ceil(load.batch_size / evidence.speed.micro_batch)


def _co_tuning(evidence: Evidence, strategy: Strategy, asked: TrainingRecipe) -> float:
    """Return the weight of the pretrained classifier's loss.

    It is 0 for random weights, which have no pretrained classifier, for a linear probe, which does not change the
    features, and for sets of labels. With many images co-tuning gained nothing (docs/explanation/training.md).
    """
    if strategy in {"linear_probe", "scratch"} or evidence.has_sets:
        return 0.0
    pays = evidence.source_classes > 0 and evidence.num_images < SMALL_SET
    return _or(asked.co_tuning, CO_TUNING if pays else 0.0)


def _compiled(evidence: Evidence, load: Workload, strategy: Strategy, asked: TrainingRecipe) -> bool:
    """Return whether the network is compiled for the training steps."""
    if asked.compiled is not None:
        return asked.compiled
    return compiling_pays(expected_seconds(strategy, load, evidence), evidence.speed)


def _validation(evidence: Evidence, load: Workload, steps: int) -> str:
    """Return the kind of images to evaluate on, as in `Plan.validation`."""
    if evidence.has_validation:
        return "given"
    # A linear probe without steps is cross-validated at nearly no cost.
    is_crossed = load.trainings > 1 or (steps == 0 and evidence.num_images < SMALL_SET)
    return "cross_validation" if is_crossed else "held_out"


def _stage_rates(names: list[str], chosen: Candidate) -> list[dict[str, object]]:
    """Return each stage's name and peak rate, which rises geometrically from the lowest trained stage to the last."""
    # rate(h) = rate * fraction^(h / (n - 1)) for n trained stages and h stages between this one and the head, so the
    # lowest trained stage, h = n - 1, has rate * fraction.
    trained = {"linear_probe": 0, "partial": chosen.trainable_stages}.get(chosen.strategy, len(names))
    rates: list[dict[str, object]] = []
    for number, name in enumerate(names):
        height = len(names) - 1 - number  # stages between this one and the head
        held_back = chosen.lowest_rate_fraction ** (height / max(trained - 1, 1))
        rates.append({"name": name, "learning_rate": chosen.learning_rate * held_back if height < trained else 0.0})
    return rates


def _answer_to_imbalance(evidence: Evidence) -> str:
    """Return the correction for classes of unequal size: none for top-1 accuracy and the mean cost, logit adjustment
    for balanced accuracy, and for sets of labels weights, if the linear probe was better with them."""
    if evidence.metric in {"top1", METRIC_OF_COSTS}:
        return "none"
    if evidence.has_sets:
        return max(evidence.probe.answers, key=lambda name: evidence.probe.answers[name])
    # A shift of the logits by the log frequencies has the least balanced error in the limit (Menon et al. 2021). It is
    # not chosen by the probe's held-out images: where classes have one to three, they prefer class weights by chance,
    # which lose up to 10 points on test images (docs/guides/rare-classes.md).
    return "logit_adjustment"


def _patience(evidence: Evidence, asked: TrainingRecipe) -> int:
    """Return the number of evaluations to wait for a gain; 0: never stop early.

    With few held-out images, noise would stop a training. If the rate decays to 0, the loss falls most at the end.
    """
    # `constant` and `inverse_sqrt` are the schedules that do not decay to about 0.
    if asked.patience is not None:
        return asked.patience
    return 3 if evidence.num_images >= MANY_IMAGES and asked.schedule in {"constant", "inverse_sqrt"} else 0


def _augmentation(recipe: Recipe, evidence: Evidence) -> dict[str, object]:
    asked = recipe.augmentation
    flip = asked.horizontal_flip if asked.horizontal_flip is not None else flips_are_safe(evidence)
    # Stronger augmentation with more images: smaller crops from MANY_IMAGES, a policy from VERY_MANY_IMAGES
    # (docs/explanation/training.md).
    large = evidence.num_images >= MANY_IMAGES
    reading = evidence.preprocessing.reading
    refuse_colour_policy(recipe, reading)
    return {
        "horizontal_flip": flip,
        "vertical_flip": bool(asked.vertical_flip),
        "smallest_crop": asked.smallest_crop or (0.35 if large else 0.5),
        "color_jitter": _or(asked.color_jitter, 0.1),
        "policy": asked.policy
        or ("trivialaugment" if reading.is_rgb and evidence.num_images >= VERY_MANY_IMAGES else "none"),
        "mixing": asked.mixing or "none",
    }


def refuse_colour_policy(recipe: Recipe, reading: Reading) -> None:
    """Refuse a published augmentation policy for images without colours.

    Raises:
        RecipeError: the recipe asks for a policy, and images have other channels than red, green and blue.
    """
    policy = recipe.augmentation.policy
    if policy not in {None, "none"} and not reading.is_rgb:
        raise RecipeError(
            f"augmentation.policy={policy} changes colours, which images of {reading.num_channels} channels do not "
            f"have; leave it out, or set augmentation.color_jitter or augmentation.mixing instead"
        )


def _flips_at_test_time(recipe: Recipe, evidence: Evidence) -> bool:
    """Return whether a prediction is the mean over an image and its mirrored copy: by default if accuracy is preferred,
    because it gains accuracy without training, and doubles the time of a prediction."""
    asked = recipe.augmentation.test_time_flips
    return recipe.prefer == "accuracy" and flips_are_safe(evidence) if asked is None else asked


def flips_are_safe(evidence: Evidence) -> bool:
    """Return whether mirrored images look like originals.

    Mirrored photographs do (a chirality of 0.50 to 0.55). Mirrored digits, signing hands and packshots do not (0.73 to
    0.87): they may show something else, or something that does not exist.
    """
    return evidence.chirality is not None and evidence.chirality < CHIRAL


def _folds(evidence: Evidence, most: int) -> int:
    """Return the number of folds of a cross-validation: each holds out an image of every class, as far as it can."""
    # The image of a class with a single one is in no fold.
    return max(2, min(most, *(count for count in evidence.class_counts.values() if count > 1)))
