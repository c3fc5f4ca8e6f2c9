"""Check the steps of a training: whether it diverged, did not begin to learn, or changed its weights too much or too
little."""

from collections.abc import Mapping, Sequence
from statistics import fmean

from finetune.decide.curve import Curve, band, entropy, peak_ratios
from finetune.decide.plan import Plan
from finetune.decide.verdict import Verdict
from finetune.history import Row

NEARLY_CONSTANT = 0.9
"""Train loss, on the scale of `Curve`, from which a network is hardly better than a constant answer (our choice)."""

HAD_LEARNED = 0.6
"""Train loss, on the scale of `Curve`, up to which a network has begun to distinguish the classes (our choice)."""

BLOWN_UP = 2.0
"""Ratio of the mean train loss of a tenth of the steps, on the scale of `Curve`, to the loss of the first step or of a
constant answer, whichever is larger, from which the rate is too high. The highest tenth of a training that ended well
had 0.8 (docs/guides/when-a-run-went-wrong.md)."""

START = 1 / 3
"""Fraction of the steps after which a good training is better than a constant answer (our choice)."""

FLAT = 0.75
"""Ratio of the train loss, on the scale of `Curve`, to that of the first tenth of the steps, above which the loss
counts as flat. The ratio matters for random weights, whose loss begins above that of a constant answer and has to fall
to it first."""


def diverged(ended: Row, history: Sequence[Row], plan: Plan) -> Verdict:
    """Return the verdict on a training that produced infinite or undefined numbers.

    Args:
        ended: row of the history that names the part of the network with these numbers.
        history: all rows of the history.
        plan: plan of the training.
    """
    before = [row for row in history if row["phase"] == ended["phase"] and "train_loss" in row]
    numbers = {"step": float(ended["step"]), "learning_rate": plan.head_learning_rate}
    last = ""
    if before:
        numbers |= {"last_train_loss": float(before[-1]["train_loss"])}
        numbers |= {"last_gradient_norm": float(before[-1].get("gradient_norm", 0.0))}
        last = f"; the step before had a loss of {numbers['last_train_loss']:.3g} and a gradient of norm "
        last += f"{numbers['last_gradient_norm']:.3g}"
    return Verdict(
        kind="diverged",
        sentence=f"the training '{ended['phase']}' was no longer finite at step {ended['step']}, first in "
        f"{ended['diverged_in']}{last}; the learning rate is too high, or the number format too coarse",
        numbers=numbers,
        changes=_slower(plan, peak_ratios(before) if before else {}),
    )


def blown_up(curve: Curve) -> Verdict | None:
    """Return a verdict if the train loss rose to that of a constant answer, or was far above it for a while."""
    width = max(1, len(curve) // 10)
    means = [fmean(curve.losses[start : start + width]) for start in range(len(curve) - width + 1)]
    best, worst, end = min(curve.losses[0], *means), max(means), means[-1]
    is_lost = best <= HAD_LEARNED and end >= NEARLY_CONSTANT
    far_above = BLOWN_UP * max(curve.losses[0], 1.0)
    if not is_lost and worst < far_above:
        return None
    begin = 0 if best == curve.losses[0] or not is_lost else means.index(best)
    limit = NEARLY_CONSTANT if is_lost else far_above
    step = next(place for place in range(begin, len(means)) if means[place] >= limit)
    stage = max(curve.ratios, key=lambda name: curve.ratios[name], default="")
    moved = f"; {stage} moved most, by {curve.ratios[stage]:.1e} of its weights in a step" if stage else ""
    return Verdict(
        kind="diverged",
        sentence=f"from about step {step + 1} on the train loss rose from {curve.unscaled(best):.3g} to as much as "
        f"{curve.unscaled(worst):.3g}, where a constant answer has {curve.constant:.3g}, and ended at "
        f"{curve.unscaled(end):.3g}{moved}; the learning rate is too high",
        numbers={
            "step": float(step + 1),
            "least_loss": curve.unscaled(best),
            "largest_loss": curve.unscaled(worst),
            "loss_at_end": curve.unscaled(end),
            "loss_of_constant_answer": curve.constant,
            "learning_rate": curve.plan.head_learning_rate,
            **({f"update_ratio:{stage}": curve.ratios[stage]} if stage else {}),
        },
        changes=_slower(curve.plan, curve.ratios),
    )


def flat_start(curve: Curve) -> Verdict | None:
    """Return a verdict if, after a third of its steps, a training is no better than a constant answer and hardly better
    than at its start."""
    first, level = fmean(curve.part(0, 0.1)), fmean(curve.part(START / 2, START))
    if level < max(NEARLY_CONSTANT, FLAT * first):
        return None
    # With smoothed labels, a head that is confident and right has a high train loss. Its log-loss on training images,
    # if there is one, shows that it has learned.
    if curve.evaluations and float(curve.evaluations[0]["seen_loss"]) < NEARLY_CONSTANT * entropy(curve.evidence):
        return None
    plan = curve.plan
    cause, changes = _cause_of_flat_start(curve)
    return Verdict(
        kind="flat_start",
        sentence=f"in the first third of the steps the train loss changed from {curve.unscaled(first):.3g} to "
        f"{curve.unscaled(level):.3g}, where a constant answer has {curve.constant:.3g}: {cause}",
        numbers={
            "loss_at_first": curve.unscaled(first),
            "loss_after_a_third": curve.unscaled(level),
            "loss_of_constant_answer": curve.constant,
            "learning_rate": plan.head_learning_rate,
            "warmup_steps": float(plan.warmup_steps),
            **{f"update_ratio:{stage}": ratio for stage, ratio in curve.ratios.items()},
        },
        changes=changes,
    )


def _cause_of_flat_start(curve: Curve) -> tuple[str, tuple[str, ...]]:
    plan = curve.plan
    if plan.warmup_steps >= START / 2 * plan.steps:
        return f"the warm-up takes {plan.warmup_steps} of {plan.steps} steps", ("training.warmup_fraction=0.1",)
    bands = {stage: band(stage, plan) for stage in curve.ratios}
    if bands and all(curve.ratios[stage] < low for stage, (low, _) in bands.items()):
        return "no stage moves enough: the learning rate is too low", (_rate(10 * plan.head_learning_rate),)
    if any(curve.ratios[stage] > high for stage, (_, high) in bands.items()):
        return "the weights move too far in a step: the learning rate is too high", _slower(plan, curve.ratios)
    if plan.weights == "random":
        return "random weights take longer than this to begin to learn", ("strategy=auto", f"steps={4 * plan.steps}")
    return "the initial weights or the learning rate are unsuitable", (
        _rate(plan.head_learning_rate / 4),
        _rate(4 * plan.head_learning_rate),
    )


def update_ratio(curve: Curve) -> Verdict | None:
    """Return a verdict on the stages that move too far in a step or, if there are none, on those that hardly move."""
    plan, ratios = curve.plan, curve.ratios
    high = {stage: ratio for stage, ratio in ratios.items() if ratio > band(stage, plan)[1]}
    low = {stage: ratio for stage, ratio in ratios.items() if ratio < band(stage, plan)[0]}
    if not high and not low:
        return None
    found = high or low
    stage = max(found, key=lambda name: found[name] / band(name, plan)[bool(high)])  # the fastest for its band
    ends = band(stage, plan)
    if high:
        changes = _slower(plan, ratios)[:1]
    elif len(low) == len(ratios):
        changes = (_rate(plan.head_learning_rate * 10 * ends[0] / low[stage]),)
    else:
        changes = ("training.lowest_rate_fraction=0.5",)
    listed = ", ".join(f"{name} {ratio:.1e}" for name, ratio in found.items())
    return Verdict(
        kind="update_ratio",
        sentence=f"at the peak learning rate, a step changes the weights by {listed} of their norm; usual for "
        f"{stage} is {ends[0]:.0e} to {ends[1]:.0e}: " + ("they move too far" if high else "they hardly move"),
        numbers={
            **{f"update_ratio:{name}": ratio for name, ratio in found.items()},
            "lowest": ends[0],
            "highest": ends[1],
            "learning_rate": plan.head_learning_rate,
        },
        changes=changes,
    )


def _slower(plan: Plan, ratios: Mapping[str, float]) -> tuple[str, ...]:
    """Return the changes that slow a training down: a quarter of the rate, or less if the fastest stage needs it, and
    float32 if the number format is coarser."""
    excess = max((ratio / band(stage, plan)[1] for stage, ratio in ratios.items()), default=1.0)
    coarse = () if plan.precision == "float32" else ("training.precision=float32",)
    return _rate(plan.head_learning_rate / 4 / max(excess, 1.0)), *coarse


def _rate(rate: float) -> str:
    return f"training.learning_rate={min(rate, 10.0):.0e}"
