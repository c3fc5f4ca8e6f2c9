"""Check what a training learned: whether its rate decayed too early, it stopped too early, it memorised images, or it
learned too little.

A gap is the difference between training images and held-out images, both evaluated without augmentation and with the
averaged weights.
"""

import math
from collections.abc import Sequence
from itertools import pairwise
from statistics import fmean, pstdev

from finetune.decide.curve import Curve
from finetune.decide.plan import Plan
from finetune.decide.verdict import Verdict
from finetune.recipe import SMALL_MODELS, Strategy

UNLEARNED = 0.1
"""Train loss, on the scale of `Curve`, above which there is something left to learn."""

DECAYED = 0.1
"""Fraction of its peak at which a learning rate counts as decayed: a tenth, the usual drop of a step schedule (He et
al. 2016)."""

EARLY = 1 / 3
"""Fraction of the steps left after a decay from which the decay counts as early. A cosine reaches a tenth of its peak
at 0.8 of the steps."""

SLOWED = 0.25
"""Ratio of the speed of learning after a decay to that before it, below which the curve has a plateau (our choice)."""

LATE = 0.8
"""Fraction of the steps up to which an evaluation is early enough to be compared with the last one."""

STILL_FALLS = 0.1
"""Smallest relative decrease of the held-out log-loss, from that evaluation to the last one, for which more steps are
worth their time."""

STANDARD_ERRORS = 2.0
"""Number of standard errors from which a change counts. This is a careful bound: two evaluations use the same images,
so the error of their difference is smaller than that of either."""

LEARNED = 0.99
"""Top-1 accuracy on training images from which they count as learned."""

UNDERFITTED = 0.85
"""Top-1 accuracy on training images below which a network without a gap underfits."""

NO_GAP = 0.02
"""Largest lead in top-1 accuracy of training images over held-out images that does not count as a gap; chance may allow
for more."""

TOO_WIDE = 0.10
"""Half-width of the 95 % interval of the held-out top-1 accuracy from which the held-out images are too few to compare
options, which often differ by a few points (docs/explanation/decisions.md)."""

TRAINS_LESS: dict[Strategy, Strategy] = {"scratch": "full", "full": "partial", "partial": "linear_probe"}
"""The next strategy that trains less of the network, for each strategy that has one."""


def early_decay(curve: Curve) -> Verdict | None:
    """Return a verdict if the train loss fell until the learning rate decayed, and hardly fell after that."""
    peak = curve.rates.index(max(curve.rates))
    decay = len(curve)
    while decay > peak and curve.rates[decay - 1] <= DECAYED * max(curve.rates) * 1.001:
        decay -= 1
    before, after = curve.losses[peak:decay], curve.losses[decay + (len(curve) - decay) // 4 :]  # it drops at first
    if len(curve) - decay < EARLY * len(curve) or min(len(before), len(after)) < 4:
        return None
    if fmean(after) < UNLEARNED or (curve.evaluations and float(curve.evaluations[-1]["seen_top1"]) >= LEARNED):
        return None
    speed, error = _speed(before)
    later, _ = _speed(after)
    if speed < STANDARD_ERRORS * error or later > SLOWED * speed:
        return None
    span = curve.constant - curve.least
    return Verdict(
        kind="early_decay",
        sentence=f"the train loss fell by {100 * speed * span:.2g} per 100 steps until the learning rate reached a "
        f"tenth of its peak at step {decay + 1} of {len(curve)}, and by {100 * later * span:.2g} per 100 steps since "
        f"then; the loss is {curve.unscaled(fmean(after)):.3g} and could be {curve.least:.3g}: the rate "
        f"decayed too early",
        numbers={
            "decay_step": float(decay + 1),
            "steps": float(len(curve)),
            "fall_per_step_before": speed * span,
            "fall_per_step_after": later * span,
            "loss_after": curve.unscaled(fmean(after)),
            "least_loss": curve.least,
        },
        changes=("training.schedule=cosine",),
    )


def _speed(losses: Sequence[float]) -> tuple[float, float]:
    """Return the mean decrease of the losses per step, from the first half to the second, and its standard error."""
    # The centres of the halves are n / 2 steps apart; the variance of a mean of n / 2 losses is their variance over
    # n / 2.
    half = len(losses) // 2
    first, second = losses[:half], losses[-half:]
    error = math.sqrt((pstdev(first) ** 2 + pstdev(second) ** 2) / half)
    return (fmean(first) - fmean(second)) / half, error / half


def still_improving(curve: Curve) -> Verdict | None:
    """Return a verdict if the held-out log-loss was still falling at the end."""
    earlier = [row for row in curve.evaluations if float(row["step"]) <= LATE * len(curve)]
    if not earlier:
        return None
    then, end = earlier[-1], curve.evaluations[-1]
    loss, last = float(then["validation_loss"]), float(end["validation_loss"])
    error = max(float(row["validation_loss_error"]) for row in (then, end))
    if loss - last < max(STILL_FALLS * loss, STANDARD_ERRORS * error) or float(end["seen_top1"]) >= LEARNED:
        return None
    return Verdict(
        kind="still_improving",
        sentence=f"the held-out log-loss still fell from {loss:.3g} at step {then['step']} to {last:.3g} at the end, "
        f"more than {STANDARD_ERRORS:.0f} standard errors of {error:.2g}: train longer",
        numbers={
            "loss_before": loss,
            "step_before": float(then["step"]),
            "loss_at_end": last,
            "standard_error": error,
            "steps": float(len(curve)),
        },
        changes=(f"steps={2 * curve.plan.steps}",),
    )


def growing_gap(curve: Curve) -> Verdict | None:
    """Return a verdict if the held-out log-loss rose while the log-loss on training images fell."""
    if len(curve.evaluations) < 2:
        return None
    best = min(curve.evaluations, key=lambda row: float(row["validation_loss"]))
    end = curve.evaluations[-1]
    rise = float(end["validation_loss"]) - float(best["validation_loss"])
    error = float(end["validation_loss_error"])
    if rise <= STANDARD_ERRORS * error or float(end["seen_loss"]) >= float(best["seen_loss"]):
        return None
    lost = float(best["validation_top1"]) - float(end["validation_top1"])
    holds = (
        ""
        if lost > 0
        else "; accuracy holds, so only the confidence is too high, which the temperature partly corrects"
    )
    plan = curve.plan
    has_colours = plan.preprocessing.reading.is_rgb
    stronger = () if plan.augmentation.policy != "none" or not has_colours else ("augmentation.policy=trivialaugment",)
    less = (f"strategy={TRAINS_LESS[plan.strategy]}",) if plan.strategy in TRAINS_LESS else ()
    keeps_best = plan.keep == "best" or plan.validation == "cross_validation"
    return Verdict(
        kind="growing_gap",
        sentence=f"since step {best['step']} the held-out log-loss rose from {float(best['validation_loss']):.3g} to "
        f"{float(end['validation_loss']):.3g}, while that of training images fell from "
        f"{float(best['seen_loss']):.3g} to {float(end['seen_loss']):.3g}: the training images are memorised{holds}",
        numbers={
            "best_step": float(best["step"]),
            "best_validation_loss": float(best["validation_loss"]),
            "validation_loss_at_end": float(end["validation_loss"]),
            "standard_error": error,
            "seen_loss_at_best": float(best["seen_loss"]),
            "seen_loss_at_end": float(end["seen_loss"]),
            "top1_lost": lost,
        },
        changes=(*stronger, *less, *(() if keeps_best else ("training.keep=best",))),
    )


def no_gap(curve: Curve) -> Verdict | None:
    """Return a verdict if a network is hardly better on training images than on held-out ones, and good on neither."""
    if not curve.evaluations:
        return None
    end = curve.evaluations[-1]
    seen, held = float(end["seen_top1"]), float(end["validation_top1"])
    # Standard error of the difference of two shares of n images each: sqrt(2 p (1 - p) / n).
    chance = math.sqrt(2 * seen * (1 - seen) / float(end["validation_images"]))
    if seen >= UNDERFITTED or seen - held > max(NO_GAP, chance):
        return None
    # Of images with sets of labels, the share is that of images whose most probable label is one of theirs.
    are_right = "have one of their labels as the most probable one" if curve.evidence.has_sets else "are right"
    return Verdict(
        kind="no_gap",
        sentence=f"{100 * seen:.1f} % of the training images {are_right}, and {100 * held:.1f} % of the held-out "
        f"images: there is no gap, but both could be better; train more of the network, or a bigger network",
        numbers={"seen_top1": seen, "validation_top1": held, "standard_error": chance},
        changes=_more_capacity(curve.plan),
    )


def _more_capacity(plan: Plan) -> tuple[str, ...]:
    bigger = SMALL_MODELS[SMALL_MODELS.index(plan.model) + 1 :] if plan.model in SMALL_MODELS else ()
    size = 32 * math.ceil(1.25 * plan.preprocessing.image_size / 32)
    larger = (*(f"model={name}" for name in bigger[:1]), f"image_size={size}")
    if plan.strategy in {"full", "scratch"}:
        return (*larger, f"steps={2 * plan.steps}")
    if plan.strategy == "partial" and plan.trainable_stages < len(plan.stages) - 1:
        return "strategy=full", f"training.trainable_stages={plan.trainable_stages + 1}", *larger
    return "strategy=full", *larger


def noisy_validation(curve: Curve) -> Verdict | None:
    """Return a verdict if there are too few held-out images to compare options."""
    if not curve.evaluations:
        return None
    is_crossed = curve.plan.validation == "cross_validation"
    top1 = [float(row["validation_top1"]) for row in curve.evaluations]
    images = curve.evidence.num_held if is_crossed else int(curve.evaluations[-1]["validation_images"])
    # Interval of a share p of n images with two hits and two misses added: p +- 1.96 sqrt(p (1 - p) / (n + 4)) with
    # p = (hits + 2) / (n + 4) (Agresti & Coull 1998).
    share = (top1[-1] * images + 2) / (images + 4)
    width = 1.96 * math.sqrt(share * (1 - share) / (images + 4))
    if width < TOO_WIDE:
        return None
    swing = max((abs(after - before) for before, after in pairwise(top1)), default=0.0)
    accuracy = "the share with a right most probable label" if curve.evidence.has_sets else "top-1 accuracy"
    advice = "all of them are cross-validated already, so only more images help" if is_crossed else "cross-validate"
    return Verdict(
        kind="noisy_validation",
        sentence=f"with {images} held-out images, {accuracy} is uncertain by {100 * width:.0f} points either way "
        f"(it moved by up to {100 * swing:.0f} between evaluations): {advice}",
        numbers={"validation_images": float(images), "half_width": width, "largest_move": swing, "top1": top1[-1]},
        changes=("data=MORE_IMAGES",) if is_crossed else ("plan.validation=cross_validation",),
    )
