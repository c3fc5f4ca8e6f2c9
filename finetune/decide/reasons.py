"""Explain a decision or the choice of a network in sentences with numbers."""

from collections.abc import Mapping, Sequence

from finetune.decide.candidates import SPECS, Candidate
from finetune.decide.contest import RULES
from finetune.decide.decision import PROBE_SUFFICES, Decision
from finetune.decide.evidence import Evidence
from finetune.progress import duration
from finetune.recipe import Preference, Recipe

FEW_IMAGES = 20
"""Number of images per class below which an image set is called small."""

NEAR = 0.5
"""Domain similarity from which images are called near the pretraining images."""


def explain(decision: Decision, evidence: Evidence, recipe: Recipe) -> tuple[str, ...]:
    """Return the reasons of a decision, one sentence each: the images first, the expectation last."""
    candidates = decision.candidates
    return (
        _size_and_similarity(evidence),
        _ground(decision, recipe, evidence),
        *_about_budget(candidates, recipe),
        *_about_members(decision.members, candidates),
        *_about_ensemble(decision.ensemble, recipe),
        _expectation(candidates, decision.name, evidence),
    )


def explain_backbone(probe_accuracies: Mapping[str, float]) -> str:
    """Return the reason why one of several networks was chosen.

    Args:
        probe_accuracies: accuracy of a linear probe on each network's features, 0 .. 1, the chosen network first.
    """
    (chosen, accuracy), *others = probe_accuracies.items()
    rest = ", ".join(f"{name} {100 * value:.1f} %" for name, value in others)
    return f"{chosen} is chosen: its linear probe has {100 * accuracy:.1f} %, compared with {rest}"


def _size_and_similarity(evidence: Evidence) -> str:
    is_small = evidence.images_per_class < FEW_IMAGES
    size = f"fewer than {FEW_IMAGES}: small" if is_small else f"{FEW_IMAGES} or more: not small"
    near = "near" if evidence.domain_similarity >= NEAR else "far"
    scale = "" if evidence.similarity_calibrated else "; uncalibrated for this network"
    return (
        f"{evidence.images_per_class:.0f} images per class ({size}); "
        f"domain similarity {evidence.domain_similarity:.2f} ({near}{scale})"
    )


def _ground(decision: Decision, recipe: Recipe, evidence: Evidence) -> str:
    if decision.ground == "asked":
        return f"{recipe.strategy} was asked for"
    if decision.ground == "probe_suffices":
        errors = (
            f"the linear probe's errors are below {100 * PROBE_SUFFICES:g} %: there is hardly anything left to gain"
        )
        # Small classes hardly count in the errors.
        balanced = max(evidence.probe.balanced_accuracy, *evidence.probe.answers.values())
        if evidence.metric == "balanced_accuracy" and 1.0 - balanced > PROBE_SUFFICES:
            return f"{errors} except in small classes (balanced accuracy {100 * balanced:.1f} %)"
        return errors
    return _rule(decision.candidates, decision.name, recipe.prefer)


def _rule(candidates: Sequence[Candidate], name: str, prefer: Preference) -> str:
    """Return a sentence with the rule of the choice, and what the chosen candidate gives up for what."""
    entered = [each for each in candidates if SPECS[each.name].is_considered and each.has_enough_steps]
    chosen = next(candidate for candidate in entered if candidate.name == name)
    best = max(entered, key=lambda candidate: candidate.expected_top1)
    if best != chosen:
        points = 100 * (best.expected_top1 - chosen.expected_top1)
        return (
            f"{RULES[prefer]}: {chosen.label} gives up {points:.1f} points of {best.label} and takes "
            f"{duration(chosen.expected_seconds)} instead of {duration(best.expected_seconds)}"
        )
    second = max((each for each in entered if each != chosen), key=lambda each: each.expected_top1, default=None)
    if second is None:
        return f"{RULES[prefer]}: {chosen.label} is the only candidate"
    points = 100 * (chosen.expected_top1 - second.expected_top1)
    return (
        f"{RULES[prefer]}: {chosen.label} is expected {points:.1f} points above the next, {second.label}, and takes "
        f"{duration(chosen.expected_seconds)} instead of {duration(second.expected_seconds)}"
    )


def _about_budget(candidates: Sequence[Candidate], recipe: Recipe) -> tuple[str, ...]:
    left_out = [each.label for each in candidates if each.strategy != "scratch" and not each.has_enough_steps]
    if recipe.strategy != "auto" or recipe.time_budget is None or not left_out:
        return ()
    return (
        f"the time budget leaves {recipe.time_budget:.0f} s for training, too little for enough steps of "
        f"{', '.join(left_out)}",
    )


def _about_members(names: Sequence[str], candidates: Sequence[Candidate]) -> tuple[str, ...]:
    if not names:
        return ()
    labels = " and ".join(candidate.label for name in names for candidate in candidates if candidate.name == name)
    return (
        f"either may be the better one, so {labels} are trained and averaged: on other image sets, the mean of two was "
        f"about as accurate as the better one",
    )


def _about_ensemble(ensemble: str, recipe: Recipe) -> tuple[str, ...]:
    if recipe.ensemble and not ensemble:
        return (f"the linear probe has no seed and no steps, so there is nothing for {recipe.ensemble} to average",)
    kind, _, count = ensemble.partition(":")
    averaged = {
        "seeds": f"{count} trainings with different seeds are averaged",
        "snapshots": f"{count} snapshots of one training are averaged, each after a cycle of its own",
        "backbones": "all networks are trained and averaged",
    }
    if kind == "folds":
        return ("the trainings of the cross-validation are averaged with the last training, which uses all images",)
    return (f"{averaged[kind]}, unless one model is better on the held-out images",) if kind else ()


def _expectation(candidates: Sequence[Candidate], name: str, evidence: Evidence) -> str:
    chosen, probe = (next(each for each in candidates if each.name == own) for own in (name, "linear_probe"))
    low, high = (100 * end for end in chosen.expected_interval)
    metric = "mean average precision" if evidence.has_sets else "top-1"
    expected = f"expected {100 * chosen.expected_top1:.1f} % {metric} on new images (90 %: {low:.1f} to {high:.1f})"
    if chosen.name == "linear_probe":
        return expected
    before = 100 * probe.expected_top1
    gain = 100 * chosen.expected_top1 - before
    known = " of one label per image, so it is uncalibrated" if evidence.has_sets else ""
    return (
        f"{expected}: the linear probe's {before:.1f} % {gain:+.1f} points, a gain learned from other image sets{known}"
    )
