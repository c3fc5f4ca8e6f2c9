"""What stands before a training, and the trainings of an ensemble."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from finetune.decide.choice import Choice
from finetune.decide.decision import AUTO_ENSEMBLE
from finetune.decide.evidence import Evidence
from finetune.decide.plan import CYCLE_SHARE, Plan
from finetune.decide.planning import make_plan
from finetune.recipe import Recipe


@dataclass(frozen=True, slots=True, kw_only=True)
class PlannedRun:
    """Why and how something is trained."""

    recipe: Recipe
    """As it was resolved."""
    evidence: Evidence
    choice: Choice
    plan: Plan

    @property
    def name(self) -> str:
        """What its files are called; other members of an ensemble have other names."""
        return "-".join(self._marks(self.choice.chosen.name)).replace(" ", "-")

    @property
    def label(self) -> str:
        """What people read."""
        return ", ".join(self._marks(self.choice.chosen.label))

    def _marks(self, candidate: str) -> Iterator[str]:
        """Yield what tells a member of an ensemble from the others."""
        if self.choice.ensemble == "backbones":
            yield self.plan.model
        yield candidate
        if self.plan.training_seed != self.plan.seed:
            yield f"seed {self.plan.training_seed}"
        if self.plan.cycle:
            yield f"cycle {self.plan.cycle + 1}"
        if self.plan.fold:
            yield f"fold {self.plan.fold}"


def plan_choice(recipe: Recipe, evidence: Evidence, choice: Choice) -> PlannedRun:
    """Return a choice with the plan that carries it out, and the recipe with what was resolved."""
    model = recipe.models if choice.ensemble == "backbones" else evidence.model
    resolved = recipe.changed(model=model, image_size=evidence.preprocessing.image_size, metric=evidence.metric)
    plan = make_plan(budgeted(recipe), evidence, choice)
    return PlannedRun(recipe=resolved, evidence=evidence, choice=choice, plan=plan)


def list_members(leading: PlannedRun, others: Sequence[PlannedRun]) -> tuple[PlannedRun, ...]:
    """Return what is trained: the members of an ensemble, or what leads alone.

    Args:
        leading: what is trained where one model ships.
        others: the same of the other networks.
    """
    choice = leading.choice
    if choice.members:
        return tuple(_candidate(leading, name) for name in choice.members)
    kind, _, count = choice.ensemble.partition(":")
    if kind == "seeds":
        seeds = range(leading.plan.training_seed, leading.plan.training_seed + int(count))
        return tuple(_with(leading, training_seed=seed) for seed in seeds)
    if kind == "snapshots":
        shorter = CYCLE_SHARE * leading.plan.time_budget
        cycles = [_with(leading, cycle=cycle, time_budget=shorter) for cycle in range(1, int(count))]
        return leading, *cycles
    if kind == "folds":
        return leading, *(_with(leading, fold=fold, refit=False) for fold in range(1, leading.plan.folds + 1))
    if kind == "backbones":
        return (leading, *others)
    return (leading,)


def budgeted(recipe: Recipe) -> Recipe:
    """Return the recipe with the share of its time budget that each member of its ensemble has."""
    if recipe.time_budget is None or recipe.ensemble is None:
        return recipe
    kind, _, count = (AUTO_ENSEMBLE if recipe.ensemble == "auto" else recipe.ensemble).partition(":")
    # Of snapshots all but the first are shorter; folds are trained for one model, too.
    trainings = {"snapshots": 1.0 + CYCLE_SHARE * (int(count or 1) - 1), "backbones": float(len(recipe.models))}
    return recipe.changed(time_budget=recipe.time_budget / trainings.get(kind, float(count or 1)))


def _candidate(leading: PlannedRun, name: str) -> PlannedRun:
    """Return another candidate's decisions, with its share of the time budget."""
    choice = leading.choice.led_by(name)
    plan = make_plan(leading.recipe, leading.evidence, choice)
    seconds = {each.name: each.expected_seconds for each in choice.candidates if each.name in choice.members}
    plan = plan.changed(time_budget=plan.time_budget * seconds[name] / sum(seconds.values()))
    return replace(leading, choice=choice, plan=plan)


def _with(leading: PlannedRun, **changes: float) -> PlannedRun:
    return replace(leading, plan=leading.plan.changed(**changes))
