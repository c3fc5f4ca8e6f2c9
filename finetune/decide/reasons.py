"""Explain a choice in sentences with numbers."""

from collections.abc import Iterator, Sequence

from finetune.decide.belief import MEASURED
from finetune.decide.candidates import RUNGS, Candidate
from finetune.decide.contest import Contest, _is_affordable, most_seconds
from finetune.decide.evidence import Evidence
from finetune.decide.race import Race
from finetune.recipe import Recipe

FEW_IMAGES = 20
"""Images per class below which a class is small."""


NEAR = 0.5
"""Domain similarity from which on images are near the pretraining images."""


def _size_and_similarity(evidence: Evidence) -> str:
    few = "below" if evidence.images_per_class < FEW_IMAGES else "at least"
    near = "near" if evidence.domain_similarity >= NEAR else "far"
    scale = "" if evidence.similarity_calibrated else ", uncalibrated for this network"
    return (
        f"{evidence.images_per_class:.0f} images per class, {few} {FEW_IMAGES}; "
        f"similarity {evidence.domain_similarity:.2f}, {near}{scale}"
    )


def _why(candidates: Sequence[Candidate], name: str, tolerance: float) -> str:
    entered = [each for each in candidates if each.strategy != "scratch" and _is_affordable(each)]
    chosen = next(candidate for candidate in entered if candidate.name == name)
    if not tolerance:
        return f"{chosen.label} is expected to be the most accurate, with a chance of {100 * chosen.chance:.0f} %"
    best = max(entered, key=lambda candidate: candidate.expected_top1)
    behind = 100 * (best.expected_top1 - chosen.expected_top1)
    points = "a point" if tolerance == 0.01 else f"{100 * tolerance:g} points"
    if best == chosen:
        return f"{chosen.label} is expected to be the most accurate, by more than {points} over all that is cheaper"
    return (
        f"{chosen.label} is the cheapest that is expected within {points} of the best: {behind:.1f} "
        f"below {best.label}, in {100 * chosen.expected_seconds / best.expected_seconds:.0f} % of the time"
    )


def _about_budget(candidates: Sequence[Candidate], recipe: Recipe) -> tuple[str, ...]:
    left_out = [each.label for each in candidates if each.strategy != "scratch" and not _is_affordable(each)]
    if recipe.strategy != "auto" or recipe.time_budget is None or not left_out:
        return ()
    return (
        f"the time budget of {recipe.time_budget:.0f} s leaves out {', '.join(left_out)}, which would have less than "
        f"half of their steps",
    )


def _about_race(names: Sequence[str], candidates: Sequence[Candidate]) -> tuple[str, ...]:
    if not names:
        return ()
    raced = [candidate for candidate in candidates if candidate.name in names and candidate.name != "linear_probe"]
    labels = ", ".join(candidate.label for candidate in raced)
    seconds = most_seconds(names, candidates)
    return (f"that is not sure: {labels} race, which with the winner's training takes at most {seconds:.0f} s",)


def _about_members(names: Sequence[str], candidates: Sequence[Candidate]) -> tuple[str, ...]:
    if not names:
        return ()
    labels = " and ".join(candidate.label for name in names for candidate in candidates if candidate.name == name)
    return (
        f"picking is a gamble, so {labels} are trained and averaged: over other image sets that was about as good as "
        f"the better one of each",
    )


def _about_ensemble(ensemble: str, recipe: Recipe) -> tuple[str, ...]:
    if recipe.ensemble and not ensemble:
        return (f"the linear probe has no seed and no steps, so there is nothing for {recipe.ensemble} to average",)
    kind, _, count = ensemble.partition(":")
    told = {
        "seeds": f"{count} trainings with other seeds are averaged",
        "snapshots": f"{count} snapshots of one training are averaged, each after a cycle of its own",
        "backbones": f"{', '.join(recipe.models)} are all trained and averaged",
    }
    if kind == "folds":
        return ("the trainings of the cross-validation are averaged with the last one, of all images",)
    return (f"{told[kind]}, unless one model is better on the held-out images",) if kind else ()


def _story(candidates: Sequence[Candidate], contest: Contest, race: Race) -> Iterator[str]:
    """Yield a sentence for each rung."""
    labels = {candidate.name: candidate.label for candidate in candidates}
    for share, before, look, after in zip(RUNGS, race.left, race.looks, race.left[1:], strict=False):
        trained = contest.named([place for place in before if place != MEASURED])
        means = zip(trained, 100 * look.mean(axis=1), strict=True)
        seen = ", ".join(f"{labels[name]} {mean:.1f} %" for name, mean in means)
        stay = ", ".join(labels[name] for name in contest.named(after))
        yield (
            f"race after {100 * share:.0f} % of the steps, mean probability of the right class of {look.shape[1]} "
            f"held-out images: {seen}; {stay} {'goes' if len(after) == 1 else 'go'} on"
        )


def _expectation(chosen: Candidate, probe: Candidate) -> str:
    expected = f"expected {100 * chosen.expected_top1:.1f} ± {100 * chosen.expected_top1_error:.1f} % top-1"
    if chosen.name == "linear_probe":
        return f"{expected}, as its cross-validation measured"
    gain = 100 * (chosen.expected_top1 - probe.expected_top1)
    race = " and the race" if chosen.basis == "measured" else ""
    return (
        f"{expected}: the linear probe's {100 * probe.expected_top1:.1f} % (cross-validated) {gain:+.1f} points, "
        f"a gain learned from other image sets{race}"
    )
