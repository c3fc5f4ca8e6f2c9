"""How much of the network to train: the cheapest candidate that is expected to be accurate enough."""

from collections.abc import Sequence

import numpy as np

from finetune.decide.belief import MEASURED, Belief
from finetune.decide.candidates import Candidate, list_candidates
from finetune.decide.contest import (
    PRICE,
    TOLERANCE,
    Contest,
    _is_affordable,
    chances,
    finalists,
    make_contest,
    most_seconds,
    partner,
    pick,
)
from finetune.decide.evidence import Evidence
from finetune.decide.forecast import Forecast, forecast
from finetune.decide.race import Race, is_worth_racing
from finetune.decide.reasons import (
    _about_budget,
    _about_ensemble,
    _about_members,
    _about_race,
    _expectation,
    _size_and_similarity,
    _story,
    _why,
)
from finetune.decide.workload import num_judged
from finetune.errors import RecipeError
from finetune.recipe import Preference, Recipe, Strategy
from finetune.value import FrozenModel

PROBE_SUFFICES = 0.005
"""Share of errors (with one standard error added) below which a linear probe is as good as it gets."""

FALLBACK = "full_near"
"""Trained where what was chosen did harm: its rates are the lowest."""

ENSEMBLE = "snapshots:3"
"""What `auto` averages (docs/ensembles.md)."""


class Backbone(FrozenModel):
    """A network that could be trained, and what its best candidate promises."""

    model: str
    probe_accuracy: float
    """Of a linear probe on its features, cross-validated."""
    candidate: str
    """Label of the candidate that would be trained."""
    expected_top1: float
    expected_seconds: float


class Choice(FrozenModel):
    """What to train, why, and what else there was."""

    strategy: Strategy
    reasons: tuple[str, ...]
    candidates: tuple[Candidate, ...]
    """All that could be trained, the chosen one first, the others from the fastest on."""
    racing: tuple[str, ...] = ()
    """Names of those between whom short trainings decide, or did, the one that led before first; none: no race."""
    members: tuple[str, ...] = ()
    """Names of those whose probabilities are averaged, the chosen one first; none: it predicts alone."""
    ensemble: str = ""
    """What else is averaged: `seeds:N`, `snapshots:N`, `folds` or `backbones`; empty: nothing."""
    backbones: tuple[Backbone, ...] = ()
    """The networks that were compared, the chosen one first; none: there was one."""
    fallback: str = ""
    """Name of the candidate that is trained where training did harm; empty: the linear probe ships then."""
    forecast: Forecast
    """What more images would buy, with the chosen candidate."""

    @property
    def chosen(self) -> Candidate:
        """The candidate to train."""
        return self.candidates[0]

    def led_by(self, name: str) -> "Choice":
        """Return the choice of another candidate."""
        candidates = _in_order(self.candidates, name)
        return self.changed(strategy=candidates[0].strategy, candidates=candidates)


def choose_strategy(evidence: Evidence, recipe: Recipe | None = None) -> Choice:
    """Return the strategy for the measured images; the recipe may fix it, prefer speed or limit the time.

    Raises:
        RecipeError: the time budget does not even allow a linear probe.
    """
    recipe = recipe or Recipe(data="")
    candidates = list_candidates(evidence, recipe)
    contest = make_contest(candidates, evidence, recipe)
    candidates = _with_belief(candidates, contest, contest.belief)
    named = {candidate.name: candidate for candidate in candidates}
    racing: tuple[str, ...] = ()
    members: tuple[str, ...] = ()
    if recipe.strategy != "auto":
        asked = [candidate for candidate in candidates if candidate.strategy == recipe.strategy]
        name = max(asked, key=lambda candidate: candidate.expected_top1).name
        why = f"{recipe.strategy} was asked for"
    elif 1.0 - evidence.probe_accuracy + evidence.probe_accuracy_error < PROBE_SUFFICES:
        name = "linear_probe"
        why = f"the linear probe's errors are below {100 * PROBE_SUFFICES:g} %: there is nothing to gain"
    else:
        _refuse_too_short_a_budget(candidates, recipe)
        affordable = [contest.names.index(name) for name in contest.names if _is_affordable(named[name])]
        left = finalists(contest.belief, contest.costs, contest.tolerance, affordable)
        name = contest.names[left[0]]
        why = _why(candidates, name, contest.tolerance)
        members = _members(candidates, contest, left[0], recipe)
        racing = () if members or recipe.ensemble else _racing(contest, left, candidates, evidence, recipe)
    ensemble = _ensemble(name, recipe)
    reasons = (
        _size_and_similarity(evidence),
        why,
        *_about_budget(candidates, recipe),
        *_about_race(racing, candidates),
        *_about_members(members, candidates),
        *_about_ensemble(ensemble, recipe),
    )
    fallback = _fallback(candidates, name, recipe) if recipe.strategy == "auto" else ""
    choice = _choice(candidates, name, reasons, evidence)
    return choice.changed(racing=racing, members=members, ensemble=ensemble, fallback=fallback)


def choose_backbone(measured: Sequence[tuple[Evidence, Choice]], prefer: Preference) -> tuple[Evidence, Choice]:
    """Return the evidence and the choice of the network to train: the one whose choice is the cheapest that is expected
    within the tolerance of the most accurate one.

    Args:
        measured: each network's evidence, of the same images, and the choice that follows from it.
        prefer: sets the tolerance.
    """
    if len(measured) == 1:
        return measured[0]
    backbones = [
        Backbone(
            model=evidence.model,
            probe_accuracy=evidence.probe_accuracy,
            candidate=choice.chosen.label,
            expected_top1=choice.chosen.expected_top1,
            expected_seconds=choice.chosen.expected_seconds,
        )
        for evidence, choice in measured
    ]
    accuracies = np.array([backbone.expected_top1 for backbone in backbones])
    place = int(pick(accuracies, [backbone.expected_seconds for backbone in backbones], TOLERANCE[prefer]))
    chosen, (evidence, choice) = backbones[place], measured[place]
    others = sorted(
        (backbone for backbone in backbones if backbone != chosen), key=lambda backbone: backbone.expected_seconds
    )
    told = ", ".join(f"{other.model} {100 * other.probe_accuracy:.1f} %" for other in others)
    why = f"{chosen.model} is taken: its linear probe has {100 * chosen.probe_accuracy:.1f} %, that of {told}"
    reasons = (choice.reasons[0], why, *choice.reasons[1:])
    return evidence, choice.changed(backbones=(chosen, *others), reasons=reasons)


def settle(choice: Choice, contest: Contest, race: Race, evidence: Evidence) -> Choice:
    """Return the choice that a race ends with, and its story.

    Args:
        choice: before it.
        contest: what it was about.
        race: how it went.
        evidence: what was measured before it.
    """
    raced = [place for place in race.left[0] if place != MEASURED]
    candidates = _with_belief(choice.candidates, contest, race.belief, measured=contest.named(raced))
    winner = contest.names[race.winner]
    reasons = (choice.reasons[0], *_story(candidates, contest, race), _why(candidates, winner, contest.tolerance))
    return _choice(candidates, winner, reasons, evidence).changed(
        racing=choice.racing, fallback=choice.fallback, backbones=choice.backbones
    )


def _choice(candidates: tuple[Candidate, ...], name: str, reasons: tuple[str, ...], evidence: Evidence) -> Choice:
    candidates = _in_order(candidates, name)
    probe = next(candidate for candidate in candidates if candidate.name == "linear_probe")
    return Choice(
        strategy=candidates[0].strategy,
        reasons=(*reasons, _expectation(candidates[0], probe)),
        candidates=candidates,
        forecast=forecast(evidence, candidates[0].expected_top1),
    )


def _in_order(candidates: Sequence[Candidate], name: str) -> tuple[Candidate, ...]:
    return tuple(sorted(candidates, key=lambda candidate: (candidate.name != name, candidate.expected_seconds)))


def _with_belief(
    candidates: Sequence[Candidate], contest: Contest, belief: Belief, measured: Sequence[str] = ()
) -> tuple[Candidate, ...]:
    """Return candidates with what is believed of them."""
    likely = chances(belief, contest.costs, contest.tolerance)
    known = {
        name: {
            "expected_top1": round(float(belief.mean[place]), 4),
            "expected_top1_error": round(float(belief.covariance[place, place]) ** 0.5, 4),
            "chance": round(float(likely[place]), 2),
        }
        for place, name in enumerate(contest.names)
    }
    for name in measured:
        known[name]["basis"] = "measured"
    return tuple(candidate.changed(**known.get(candidate.name, {})) for candidate in candidates)


def _fallback(candidates: Sequence[Candidate], name: str, recipe: Recipe) -> str:
    """Return who is trained where training did harm: the one with the lowest rates, which hardly ever does."""
    chosen, other = (next(candidate for candidate in candidates if candidate.name == each) for each in (name, FALLBACK))
    seconds = chosen.expected_seconds + other.expected_seconds
    is_too_long = recipe.time_budget is not None and seconds > recipe.time_budget
    return "" if is_too_long or name in {"linear_probe", FALLBACK} else FALLBACK


def _racing(
    contest: Contest, left: Sequence[int], candidates: Sequence[Candidate], evidence: Evidence, recipe: Recipe
) -> tuple[str, ...]:
    """Return who should race, or nobody where that does not pay, takes too long, or can not be."""
    raced = [place for place in left if place != MEASURED]
    is_stream = evidence.num_held < evidence.num_images  # read once, from its beginning
    if is_stream or not is_worth_racing(contest.belief, raced, num_judged(evidence), PRICE[recipe.prefer]):
        return ()
    names = contest.named(left)
    is_too_long = recipe.time_budget is not None and most_seconds(names, candidates) > recipe.time_budget
    return () if is_too_long else names


def _members(candidates: Sequence[Candidate], contest: Contest, place: int, recipe: Recipe) -> tuple[str, ...]:
    """Return whose mean to take where accuracy is preferred and time allows."""
    other = partner(contest.belief, contest.costs, place, PRICE[recipe.prefer])
    if recipe.prefer != "accuracy" or recipe.ensemble or other is None:
        return ()
    names = contest.named((place, other))
    seconds = sum(candidate.expected_seconds for candidate in candidates if candidate.name in names)
    return () if recipe.time_budget is not None and seconds > recipe.time_budget else names


def _ensemble(name: str, recipe: Recipe) -> str:
    """Return what is averaged: nothing where linear probes would, which do not differ by their seed."""
    asked = ENSEMBLE if recipe.ensemble == "auto" else recipe.ensemble or ""
    return "" if name == "linear_probe" and asked != "backbones" else asked


def _refuse_too_short_a_budget(candidates: Sequence[Candidate], recipe: Recipe) -> None:
    seconds = next(candidate.expected_seconds for candidate in candidates if candidate.name == "linear_probe")
    if recipe.time_budget is not None and seconds > recipe.time_budget:
        raise RecipeError(
            f"a time budget of {recipe.time_budget:.0f} s is too short: the linear probe alone takes about "
            f"{seconds:.0f} s here; give more time, or fewer images with --limit"
        )
