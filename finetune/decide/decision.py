"""Decide which candidates to train, average and fall back to. `reasons` explains the decision in sentences."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from finetune.decide.candidates import SPECS, Candidate, list_candidates
from finetune.decide.contest import Contest, make_contest
from finetune.decide.evidence import Evidence
from finetune.errors import RecipeError
from finetune.recipe import Recipe

PROBE_SUFFICES = 0.005
"""Error rate of the linear probe (with one standard error added) below which nothing else is considered."""

FALLBACK = "full_near"
"""Name of the candidate that is trained if the pick is rejected: the one with the lowest learning rates."""

AUTO_ENSEMBLE = "snapshots:3"
"""Ensemble that `auto` stands for (docs/explanation/ensembles.md)."""

Ground = Literal["asked", "probe_suffices", "contest"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Decision:
    """A decision, not yet explained in sentences."""

    contest: Contest
    """Contest between the candidates."""
    candidates: tuple[Candidate, ...]
    """All candidates with their expectations, in the order of `SPECS`."""
    name: str
    """Name of the candidate to train."""
    ground: Ground
    """Reason for this candidate. `asked`: the recipe names its strategy; `probe_suffices`: the linear probe makes
    hardly any errors; `contest`: the rule of the contest picks it."""
    members: tuple[str, ...] = ()
    """Names of the candidates to average, the pick first; empty: the pick predicts alone."""
    ensemble: str = ""
    """Ensemble that the recipe asks for, with `auto` resolved; empty: there is none."""
    fallback: str = ""
    """Name of the candidate to train if the pick is rejected and a time budget still allows for it; empty: the linear
    probe is kept instead."""


def make_decision(evidence: Evidence, recipe: Recipe) -> Decision:
    """Return the decision for the measured images. The recipe may fix the strategy, prefer speed, or limit the time.

    Raises:
        RecipeError: the time budget is too short even for a linear probe.
    """
    candidates = list_candidates(evidence, recipe)
    contest = make_contest(candidates, evidence, recipe)
    candidates = contest.believed(candidates)
    if recipe.strategy != "auto":
        name = _asked(candidates, recipe)
        ensemble = _ensemble(name, recipe)
        return Decision(contest=contest, candidates=candidates, name=name, ground="asked", ensemble=ensemble)
    if 1.0 - evidence.probe_accuracy + evidence.probe_accuracy_error < PROBE_SUFFICES:
        return Decision(
            contest=contest,
            candidates=candidates,
            name="linear_probe",
            ground="probe_suffices",
            ensemble=_ensemble("linear_probe", recipe),
        )
    _refuse_too_short_a_budget(candidates, recipe)
    affordable = {each.name for each in candidates if each.has_enough_steps and SPECS[each.name].is_considered}
    left = [place for place, name in enumerate(contest.names) if name in affordable]
    place = contest.pick(left)
    name = contest.names[place]
    return Decision(
        contest=contest,
        candidates=candidates,
        name=name,
        ground="contest",
        members=_members(candidates, contest, place, left, recipe),
        ensemble=_ensemble(name, recipe),
        fallback=_fallback(name),
    )


def _asked(candidates: Sequence[Candidate], recipe: Recipe) -> str:
    """Return the name of the candidate of the strategy that the recipe asks for: of those with the usual depth and
    number of steps, the most accurate one."""
    usual = [each for each in candidates if each.strategy == recipe.strategy and each.length == 1.0]
    return max(usual, key=lambda candidate: candidate.expected_top1).name


def _fallback(name: str) -> str:
    """Return the name of the candidate to train if the pick is rejected; "" if there is none."""
    return "" if name in {"linear_probe", FALLBACK} else FALLBACK


def _members(
    candidates: Sequence[Candidate], contest: Contest, place: int, left: Sequence[int], recipe: Recipe
) -> tuple[str, ...]:
    """Return the names of the pick and of its partner among the places that are left, to average them; none unless
    accuracy is preferred and the time budget allows for both."""
    other = contest.partner(place, left) if recipe.prefer == "accuracy" and not recipe.ensemble else None
    if other is None:
        return ()
    names = (contest.names[place], contest.names[other])
    seconds = sum(candidate.expected_seconds for candidate in candidates if candidate.name in names)
    return () if recipe.time_budget is not None and seconds > recipe.time_budget else names


def _ensemble(name: str, recipe: Recipe) -> str:
    """Return the ensemble that the recipe asks for, or ""; linear probes are not averaged, because they do not depend
    on the seed."""
    asked = AUTO_ENSEMBLE if recipe.ensemble == "auto" else recipe.ensemble or ""
    return "" if name == "linear_probe" and asked != "backbones" else asked


def _refuse_too_short_a_budget(candidates: Sequence[Candidate], recipe: Recipe) -> None:
    seconds = next(candidate.expected_seconds for candidate in candidates if candidate.name == "linear_probe")
    if recipe.time_budget is not None and seconds > recipe.time_budget:
        raise RecipeError(
            f"the time budget is too short: it leaves {recipe.time_budget:.0f} s for this training, and the linear "
            f"probe alone takes about {seconds:.0f} s here; give more time, or fewer images with --limit"
        )
