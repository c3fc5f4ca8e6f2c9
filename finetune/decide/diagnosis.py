"""What the history of a training says of its settings: verdicts, with the numbers that they rest on and what to change.

Train losses are compared on a scale that label smoothing and class weights do not move: 0 is the least loss that there
is, 1 that of the best constant answer, which knows nothing but how frequent the classes are. Gaps are those between
held-out images and images that were trained on, judged alike: plain, and with the averaged weights.
"""

import math
from collections.abc import Mapping, Sequence
from itertools import pairwise
from statistics import fmean, median, pstdev
from typing import Literal, get_args

from finetune.decide.evidence import Evidence
from finetune.decide.plan import Plan
from finetune.history import Row
from finetune.recipe import SMALL_MODELS, Mixing, Strategy
from finetune.value import FrozenModel

Kind = Literal[
    "diverged",
    "flat_start",
    "update_ratio",
    "early_decay",
    "still_improving",
    "growing_gap",
    "no_gap",
    "noisy_validation",
]
KINDS: tuple[Kind, ...] = get_args(Kind)

FEWEST_STEPS = 20
"""A shorter curve says nothing: its tenths, which are compared, would be single batches."""

KNOWS_NOTHING = 0.9
"""Train loss, on the scale, from which a network knows next to nothing (our choice)."""

KNEW = 0.6
"""Train loss, on the scale, of a network that had begun to tell the classes apart (our choice)."""

BLOWN_UP = 2.0
"""Mean train loss of a tenth of the steps, on the scale, over that of the first step or of a constant answer, from
which the rate is too high. The highest tenth of a training that ended well had 0.8 (docs/diagnosis.md)."""

UNLEARNED = 0.1
"""Train loss, on the scale, above which there is something left to learn."""

START = 1 / 3
"""Share of the steps after which a training has left the constant answer, if it goes well (our choice)."""

FLAT = 0.75
"""Train loss, on the scale, over that of the first tenth, above which it has not fallen: random weights that begin
above a constant answer have to come down first."""

BANDS: dict[str, tuple[float, float]] = {"head": (1e-6, 2e-2), "backbone": (1e-5, 3e-3), "random": (1e-4, 3e-2)}
"""Norm of a step's change over the norm of the weights, for the head, for pretrained stages, and for random ones. Rules
of thumb have 1e-3 for a head and 1e-5 to 1e-4 for a backbone near its domain; trainings with this library's own rates
that end well have 4e-5 (stem) to 1.4e-3 in a backbone and 2e-4 to 5e-3 in a head (docs/diagnosis.md), so that a band
ends well above that. A head that starts as a linear probe may have large weights and need not move."""

DECAYED = 0.1
"""Share of its peak at which a learning rate is over: a tenth, the usual drop of a step (He et al. 2016)."""

EARLY = 1 / 3
"""Share of the steps left from which a decay is early. A cosine comes down to a tenth of its peak at 0.8 of the way."""

SLOWED = 0.25
"""Speed of learning after a decay, over that before it, below which the curve has a plateau (our choice)."""

LATE = 0.8
"""The last evaluation is compared with the last one before this share of the steps."""

STILL_FALLS = 0.1
"""Share of the held-out log-loss that must have gone since then for more steps to be worth their time."""

SURE = 2.0
"""Standard errors of the held-out log-loss that a change must have. Two evaluations judge the same images, so that the
error of their difference is smaller than that of either: a careful bound."""

MIXED: dict[Mixing, float] = {"none": 0.0, "mixup": 0.23, "cutmix": 0.5}
"""Mean entropy of the labels of two mixed images of unlike classes, in nats: of a share from Beta(0.2, 0.2), and from
Beta(1, 1)."""

LEARNED = 0.99
"""Top-1 accuracy on training images from which there is nothing left to learn from them."""

UNDERFITTED = 0.85
"""Top-1 accuracy on training images below which a network that has no gap can not tell them apart."""

NO_GAP = 0.02
"""Top-1 accuracy that training images may be ahead by where there is no gap, if chance does not allow for more."""

NOISE = 0.10
"""Half-width of the 95 % interval of the held-out top-1 accuracy from which a validation set is too small to choose by:
what is worth choosing between differs by a few points (docs/selector.md)."""

EARLIER: dict[Strategy, Strategy] = {"scratch": "full", "full": "partial", "partial": "linear_probe"}
"""The strategy that trains less."""


class Verdict(FrozenModel):
    """Something that stands out in a training's history."""

    kind: Kind
    sentence: str
    """What was seen, and what it means."""
    numbers: dict[str, float]
    """What it rests on."""
    changes: tuple[str, ...]
    """What to change, as `key=value` of the recipe (`--set`), the most promising first; keys that begin with `plan.`
    are those of plan.json."""


def diagnose(history: Sequence[Row], plan: Plan, evidence: Evidence) -> tuple[Verdict, ...]:
    """Return what stands out in the history of a plan's trainings, the causes before the symptoms; nothing, where all
    is well or the plan took no steps.

    Args:
        history: the rows of `TrainedModel.history` or of a run's history.jsonl. Of several trainings the first one is
            read as a curve: the one that is judged, or the first fold.
        plan: what was carried out; of an ensemble each member has its own.
        evidence: of the same images.
    """
    if not history:
        return ()
    ended = [row for row in history if "diverged_in" in row]
    if ended:
        return (_not_finite(ended[-1], history, plan),)
    curve = _Curve(history, plan, evidence)
    if len(curve.rows) < FEWEST_STEPS:
        return _present(_noisy_validation(curve))
    diverged = _blown_up(curve)
    broken = _present(diverged, None if diverged else _flat_start(curve), _update_ratio(curve))
    if broken:
        return broken
    learning = _present(_early_decay(curve), _still_improving(curve), _growing_gap(curve))
    return (*learning, *_present(None if learning else _no_gap(curve), _noisy_validation(curve)))


def looked_at(history: Sequence[Row]) -> str:
    """Return what there was to look at, for people."""
    if not history:
        return "nothing was trained step by step, so there is no curve"
    names = list(dict.fromkeys(str(row["phase"]) for row in history))
    judged = [row for row in history if "validation_loss" in row]
    stages = list(dict.fromkeys(key.partition(":")[2] for row in history for key in row if ":" in key))
    parts = [f"{len(history)} steps of {', '.join(names)}"]
    if judged:
        images = f" on {judged[-1]['validation_images']} held-out images" if "validation_images" in judged[-1] else ""
        parts.append(f"{len(judged)} evaluations{images}")
    if stages:
        parts.append(f"update-to-weight ratios of {', '.join(stages)}")
    return "; ".join(parts)


class _Curve:
    """The training that is judged, as numbers."""

    def __init__(self, history: Sequence[Row], plan: Plan, evidence: Evidence) -> None:
        self.plan = plan
        self.evidence = evidence
        self.rows = [row for row in history if row["phase"] == history[0]["phase"]]
        self.judged = [row for row in self.rows if "seen_loss" in row]
        """Evaluations, the last one last."""
        self.rates = [float(row["learning_rate"]) for row in self.rows]
        self.constant, self.least = _constant_loss(plan, evidence), _least_loss(plan, evidence)
        span = max(self.constant - self.least, 1e-9)
        self.losses = [(float(row["train_loss"]) - self.least) / span for row in self.rows]
        """On the scale."""
        self.ratios = _peak_ratios(self.rows)

    def __len__(self) -> int:
        return len(self.rows)

    def part(self, start: float, end: float) -> list[float]:
        """Return the losses, on the scale, between two shares of the steps."""
        first = min(int(start * len(self)), len(self) - 1)
        return self.losses[first : max(int(end * len(self)), first + 1)]


def _peak_ratios(rows: Sequence[Row]) -> dict[str, float]:
    """Return the median update-to-weight ratio of each stage while the rate was at least half of its peak."""
    peak = max(float(row["learning_rate"]) for row in rows)
    found: dict[str, list[float]] = {}
    for row in rows:
        for key, value in row.items() if float(row["learning_rate"]) >= 0.5 * peak else ():
            if key.startswith("update_ratio:") and float(value) > 0:  # 0: the step was left out
                found.setdefault(key.partition(":")[2], []).append(float(value))
    return {stage: median(values) for stage, values in found.items()}


def _band(stage: str, plan: Plan) -> tuple[float, float]:
    """Return between what a stage's ratio should be."""
    if plan.weights == "random":
        return BANDS["random"]
    return BANDS["head" if stage == "head" else "backbone"]


def _entropy(evidence: Evidence) -> float:
    """Return the log-loss of the best constant answer."""
    total = sum(evidence.class_counts.values())
    return -sum(count / total * math.log(count / total) for count in evidence.class_counts.values() if count)


def _constant_loss(plan: Plan, evidence: Evidence) -> float:
    """Return the train loss of the best constant answer: the entropy of the smoothed, weighted labels."""
    counts = list(evidence.class_counts.values())
    frequencies = [count / sum(counts) for count in counts]
    if plan.imbalance == "class_weights":
        frequencies = [1 / len(counts)] * len(counts)
    smoothed = [(1 - plan.label_smoothing) * share + plan.label_smoothing / len(counts) for share in frequencies]
    return -sum(share * math.log(share) for share in smoothed if share > 0)


def _least_loss(plan: Plan, evidence: Evidence) -> float:
    """Return the train loss of a network that gives every image its smoothed and mixed label."""
    others = plan.label_smoothing / evidence.num_classes
    right = 1 - plan.label_smoothing + others
    least = -right * math.log(right) - ((evidence.num_classes - 1) * others * math.log(others) if others else 0.0)
    alike = sum((count / sum(evidence.class_counts.values())) ** 2 for count in evidence.class_counts.values())
    return least + MIXED[plan.augmentation.mixing] * (1.0 - alike)


def _not_finite(ended: Row, history: Sequence[Row], plan: Plan) -> Verdict:
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
        f"{ended['diverged_in']}{last}; the rate is too high, or the arithmetic too coarse",
        numbers=numbers,
        changes=_slower(plan, _peak_ratios(before) if before else {}),
    )


def _blown_up(curve: _Curve) -> Verdict | None:
    """Return a verdict on a train loss that rose to what knows nothing, or far above it for a while."""
    width = max(1, len(curve) // 10)
    means = [fmean(curve.losses[start : start + width]) for start in range(len(curve) - width + 1)]
    best, end = min(curve.losses[0], *means), means[-1]
    is_lost = best <= KNEW and end >= KNOWS_NOTHING
    far_above = BLOWN_UP * max(curve.losses[0], 1.0)
    if not is_lost and max(means) < far_above:
        return None
    worst = max(means)
    begin = 0 if best == curve.losses[0] or not is_lost else means.index(best)
    step = next(
        place for place in range(begin, len(means)) if means[place] >= (KNOWS_NOTHING if is_lost else far_above)
    )
    stage = max(curve.ratios, key=lambda name: curve.ratios[name], default="")
    moved = f"; {stage} moved most, by {curve.ratios[stage]:.1e} of its weights a step" if stage else ""
    return Verdict(
        kind="diverged",
        sentence=f"from about step {step + 1} on the train loss rose from {_unscaled(curve, best):.3g} to as much as "
        f"{_unscaled(curve, worst):.3g}, where a constant answer has {curve.constant:.3g}, and ended at "
        f"{_unscaled(curve, end):.3g}{moved}; the rate is too high",
        numbers={
            "step": float(step + 1),
            "least_loss": _unscaled(curve, best),
            "largest_loss": _unscaled(curve, worst),
            "loss_at_end": _unscaled(curve, end),
            "loss_of_constant_answer": curve.constant,
            "learning_rate": curve.plan.head_learning_rate,
            **({f"update_ratio:{stage}": curve.ratios[stage]} if stage else {}),
        },
        changes=_slower(curve.plan, curve.ratios),
    )


def _flat_start(curve: _Curve) -> Verdict | None:
    """Return a verdict on a training that is no better than a constant answer after a third of its steps, nor much
    better than it was."""
    first, level = fmean(curve.part(0, 0.1)), fmean(curve.part(START / 2, START))
    if level < max(KNOWS_NOTHING, FLAT * first):
        return None
    # Smoothed labels punish a head that is sure, and right: where training images were judged, they decide.
    if curve.judged and float(curve.judged[0]["seen_loss"]) < KNOWS_NOTHING * _entropy(curve.evidence):
        return None
    plan = curve.plan
    cause, changes = _cause_of_flat_start(curve)
    return Verdict(
        kind="flat_start",
        sentence=f"in the first third of the steps the train loss went from {_unscaled(curve, first):.3g} to "
        f"{_unscaled(curve, level):.3g}, where a constant answer has {curve.constant:.3g}: {cause}",
        numbers={
            "loss_at_first": _unscaled(curve, first),
            "loss_after_a_third": _unscaled(curve, level),
            "loss_of_constant_answer": curve.constant,
            "learning_rate": plan.head_learning_rate,
            "warmup_steps": float(plan.warmup_steps),
            **{f"update_ratio:{stage}": ratio for stage, ratio in curve.ratios.items()},
        },
        changes=changes,
    )


def _cause_of_flat_start(curve: _Curve) -> tuple[str, tuple[str, ...]]:
    plan = curve.plan
    if plan.warmup_steps >= START / 2 * plan.steps:
        return f"the warm-up takes {plan.warmup_steps} of {plan.steps} steps", ("training.warmup_fraction=0.1",)
    bands = {stage: _band(stage, plan) for stage in curve.ratios}
    if bands and all(curve.ratios[stage] < low for stage, (low, _) in bands.items()):
        return "no stage moves enough, the rate is too low", (_rate(10 * plan.head_learning_rate),)
    if any(curve.ratios[stage] > high for stage, (_, high) in bands.items()):
        return "the weights move too far a step, the rate is too high", _slower(plan, curve.ratios)
    if plan.weights == "random":
        return "random weights take longer than this to begin", ("strategy=auto", f"steps={4 * plan.steps}")
    return "the start is bad, or the rate is", (_rate(plan.head_learning_rate / 4), _rate(4 * plan.head_learning_rate))


def _update_ratio(curve: _Curve) -> Verdict | None:
    """Return a verdict on stages that move too far a step, or else on such that hardly move."""
    plan, ratios = curve.plan, curve.ratios
    high = {stage: ratio for stage, ratio in ratios.items() if ratio > _band(stage, plan)[1]}
    low = {stage: ratio for stage, ratio in ratios.items() if ratio < _band(stage, plan)[0]}
    if not high and not low:
        return None
    found = high or low
    stage = max(found, key=lambda name: found[name] / _band(name, plan)[bool(high)])  # the fastest for its band
    ends = _band(stage, plan)
    if high:
        changes = _slower(plan, ratios)[:1]
    elif len(low) == len(ratios):
        changes = (_rate(plan.head_learning_rate * 10 * ends[0] / low[stage]),)
    else:
        changes = ("training.lowest_rate_fraction=0.5",)
    listed = ", ".join(f"{name} {ratio:.1e}" for name, ratio in found.items())
    return Verdict(
        kind="update_ratio",
        sentence=f"at its peak rate a step changes the weights by {listed} of their norm; between {ends[0]:.0e} and "
        f"{ends[1]:.0e} is usual for {stage}: " + ("they move too far" if high else "they hardly move"),
        numbers={
            **{f"update_ratio:{name}": ratio for name, ratio in found.items()},
            "lowest": ends[0],
            "highest": ends[1],
            "learning_rate": plan.head_learning_rate,
        },
        changes=changes,
    )


def _early_decay(curve: _Curve) -> Verdict | None:
    """Return a verdict on a loss that fell until the rate did, and hardly since."""
    peak = curve.rates.index(max(curve.rates))
    decay = len(curve)
    while decay > peak and curve.rates[decay - 1] <= DECAYED * max(curve.rates) * 1.001:
        decay -= 1
    before, after = curve.losses[peak:decay], curve.losses[decay + (len(curve) - decay) // 4 :]  # it drops at first
    if len(curve) - decay < EARLY * len(curve) or min(len(before), len(after)) < 4:
        return None
    if fmean(after) < UNLEARNED or (curve.judged and float(curve.judged[-1]["seen_top1"]) >= LEARNED):
        return None
    speed, error = _speed(before)
    later, _ = _speed(after)
    if speed < SURE * error or later > SLOWED * speed:
        return None
    return Verdict(
        kind="early_decay",
        sentence=f"the train loss fell by {100 * speed * (curve.constant - curve.least):.2g} in 100 steps until the "
        f"learning rate came down to a tenth at step {decay + 1} of {len(curve)}, and by "
        f"{100 * later * (curve.constant - curve.least):.2g} since, with {_unscaled(curve, fmean(after)):.3g} still to "
        f"go down to {curve.least:.3g}: decayed too early",
        numbers={
            "decay_step": float(decay + 1),
            "steps": float(len(curve)),
            "fall_per_step_before": speed * (curve.constant - curve.least),
            "fall_per_step_after": later * (curve.constant - curve.least),
            "loss_after": _unscaled(curve, fmean(after)),
            "least_loss": curve.least,
        },
        changes=("training.schedule=cosine",),
    )


def _speed(losses: Sequence[float]) -> tuple[float, float]:
    """Return by how much losses fall a step, from one half to the other, and the standard error of that."""
    half = len(losses) // 2
    first, second = losses[:half], losses[-half:]
    error = math.sqrt((pstdev(first) ** 2 + pstdev(second) ** 2) / half)
    return (fmean(first) - fmean(second)) / half, error / half


def _still_improving(curve: _Curve) -> Verdict | None:
    """Return a verdict on a held-out loss that falls to the end."""
    earlier = [row for row in curve.judged if float(row["step"]) <= LATE * len(curve)]
    if not earlier:
        return None
    then, end = earlier[-1], curve.judged[-1]
    loss, last = float(then["validation_loss"]), float(end["validation_loss"])
    error = max(float(row["validation_loss_error"]) for row in (then, end))
    if loss - last < max(STILL_FALLS * loss, SURE * error) or float(end["seen_top1"]) >= LEARNED:
        return None
    return Verdict(
        kind="still_improving",
        sentence=f"the held-out log-loss still fell from {loss:.3g} at step {then['step']} to {last:.3g} at the end, "
        f"more than {SURE:.0f} standard errors of {error:.2g}: train longer",
        numbers={
            "loss_before": loss,
            "step_before": float(then["step"]),
            "loss_at_end": last,
            "standard_error": error,
            "steps": float(len(curve)),
        },
        changes=(f"steps={2 * curve.plan.steps}",),
    )


def _growing_gap(curve: _Curve) -> Verdict | None:
    """Return a verdict on a held-out loss that rises while that on training images falls."""
    if len(curve.judged) < 2:
        return None
    best = min(curve.judged, key=lambda row: float(row["validation_loss"]))
    end = curve.judged[-1]
    rise = float(end["validation_loss"]) - float(best["validation_loss"])
    error = float(end["validation_loss_error"])
    if rise <= SURE * error or float(end["seen_loss"]) >= float(best["seen_loss"]):
        return None
    lost = float(best["validation_top1"]) - float(end["validation_top1"])
    kept = "" if lost > 0 else "; accuracy holds, so it is sureness that is wrong, which the temperature mends in part"
    plan = curve.plan
    stronger = () if plan.augmentation.policy != "none" else ("augmentation.policy=trivialaugment",)
    earlier = (f"strategy={EARLIER[plan.strategy]}",) if plan.strategy in EARLIER else ()
    best_kept = () if plan.keep == "best" or plan.validation == "cross_validation" else ("training.keep=best",)
    return Verdict(
        kind="growing_gap",
        sentence=f"since step {best['step']} the held-out log-loss rose from {float(best['validation_loss']):.3g} to "
        f"{float(end['validation_loss']):.3g}, while that of images that were trained on fell from "
        f"{float(best['seen_loss']):.3g} to {float(end['seen_loss']):.3g}: they are learned by heart{kept}",
        numbers={
            "best_step": float(best["step"]),
            "best_validation_loss": float(best["validation_loss"]),
            "validation_loss_at_end": float(end["validation_loss"]),
            "standard_error": error,
            "seen_loss_at_best": float(best["seen_loss"]),
            "seen_loss_at_end": float(end["seen_loss"]),
            "top1_lost": lost,
        },
        changes=(*stronger, *earlier, *best_kept),
    )


def _no_gap(curve: _Curve) -> Verdict | None:
    """Return a verdict on a network that tells images it was trained on apart no better than others, and not well."""
    if not curve.judged:
        return None
    end = curve.judged[-1]
    seen, held = float(end["seen_top1"]), float(end["validation_top1"])
    chance = math.sqrt(2 * seen * (1 - seen) / float(end["validation_images"]))
    if seen >= UNDERFITTED or seen - held > max(NO_GAP, chance):
        return None
    return Verdict(
        kind="no_gap",
        sentence=f"of images that were trained on {100 * seen:.1f} % are right, of held-out ones {100 * held:.1f} %: "
        f"there is no gap, and both could be better; train more of the network, or a bigger one",
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


def _noisy_validation(curve: _Curve) -> Verdict | None:
    """Return a verdict on a validation set that is too small to choose by."""
    if not curve.judged:
        return None
    is_crossed = curve.plan.validation == "cross_validation"
    top1 = [float(row["validation_top1"]) for row in curve.judged]
    images = curve.evidence.num_held if is_crossed else int(curve.judged[-1]["validation_images"])
    share = (top1[-1] * images + 2) / (images + 4)  # Agresti & Coull 1998
    width = 1.96 * math.sqrt(share * (1 - share) / (images + 4))
    if width < NOISE:
        return None
    swing = max((abs(after - before) for before, after in pairwise(top1)), default=0.0)
    what = "all of them are cross-validated already, so only more images help" if is_crossed else "cross-validate"
    return Verdict(
        kind="noisy_validation",
        sentence=f"{images} images judge, so that top-1 accuracy is known to {100 * width:.0f} points either way (it "
        f"moved by up to {100 * swing:.0f} between evaluations): {what}",
        numbers={"validation_images": float(images), "half_width": width, "largest_move": swing, "top1": top1[-1]},
        changes=("data=MORE_IMAGES",) if is_crossed else ("plan.validation=cross_validation",),
    )


def _slower(plan: Plan, ratios: Mapping[str, float]) -> tuple[str, ...]:
    """Return a quarter of the rate, or less where the fastest stage needs it, and float32 where it is not that."""
    excess = max((ratio / _band(stage, plan)[1] for stage, ratio in ratios.items()), default=1.0)
    coarse = () if plan.precision == "float32" else ("training.precision=float32",)
    return _rate(plan.head_learning_rate / 4 / max(excess, 1.0)), *coarse


def _rate(rate: float) -> str:
    return f"training.learning_rate={min(rate, 10.0):.0e}"


def _unscaled(curve: _Curve, loss: float) -> float:
    return curve.least + loss * (curve.constant - curve.least)


def _present(*verdicts: Verdict | None) -> tuple[Verdict, ...]:
    return tuple(verdict for verdict in verdicts if verdict is not None)
