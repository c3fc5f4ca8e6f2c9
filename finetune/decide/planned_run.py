"""Combine the recipe, evidence, choice and plan of a training, and list the trainings of an ensemble."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from finetune.decide.budget import describe_command, training_budget
from finetune.decide.choice import Choice
from finetune.decide.decision import AUTO_ENSEMBLE
from finetune.decide.evidence import Evidence
from finetune.decide.plan import CYCLE_SHARE, Plan
from finetune.decide.planning import make_plan
from finetune.decide.workload import TRAINING_FOLDS
from finetune.recipe import Recipe


@dataclass(frozen=True, slots=True, kw_only=True)
class PlannedRun:
    """The recipe, evidence, choice and plan of a training."""

    recipe: Recipe
    """Recipe with the network, the image size and the metric filled in."""
    evidence: Evidence
    """Measurements that the choice is based on."""
    choice: Choice
    """Choice that follows from the evidence."""
    plan: Plan
    """Plan that carries out the choice."""

    @property
    def name(self) -> str:
        """Name of the training's files, different for each member of an ensemble."""
        return "-".join(self._marks(self.choice.chosen.name)).replace(" ", "-")

    @property
    def label(self) -> str:
        """Name of the training in printed sentences and tables."""
        return ", ".join(self._marks(self.choice.chosen.label))

    def _marks(self, candidate: str) -> Iterator[str]:
        """Yield the parts of the name that differ between the members of an ensemble."""
        if self.choice.ensemble == "backbones":
            yield self.plan.model
        yield candidate
        if self.plan.training_seed != self.plan.seed:
            yield f"seed {self.plan.training_seed}"
        if self.plan.cycle:
            yield f"cycle {self.plan.cycle + 1}"
        if self.plan.fold:
            yield f"fold {self.plan.fold}"


def plan_choice(recipe: Recipe, evidence: Evidence, choice: Choice, share: float = 1.0) -> PlannedRun:
    """Return a choice, its plan, and the recipe with the network, the image size and the metric filled in.

    Args:
        recipe: the recipe.
        evidence: the measurements that the choice is based on.
        choice: the choice.
        share: fraction of the time that is left for trainings that this training may take.

    Raises:
        RecipeError: the recipe's fixed numbers do not fit together.
    """
    model = recipe.models if choice.ensemble == "backbones" else evidence.model
    resolved = recipe.changed(model=model, image_size=evidence.preprocessing.image_size, metric=evidence.metric)
    plan = make_plan(budgeted(recipe, evidence, share), evidence, choice)
    return PlannedRun(recipe=resolved, evidence=evidence, choice=choice, plan=plan)


def list_members(leading: PlannedRun, others: Sequence[PlannedRun]) -> tuple[PlannedRun, ...]:
    """Return the trainings to carry out: one for each member of the ensemble, or the leading one alone.

    Args:
        leading: training of the chosen candidate and network.
        others: trainings of the other networks.
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


def budgeted(recipe: Recipe, evidence: Evidence, share: float = 1.0) -> Recipe:
    """Return the recipe with the time budget of one training: of a member of its ensemble, if there is one.

    Args:
        recipe: the recipe, whose time budget is that of the whole command.
        evidence: the measurements, with the time that has passed.
        share: fraction of the time that is left for trainings that they may take.

    Raises:
        RecipeError: the time that is left is too short even for a linear probe.
    """
    if recipe.time_budget is None:
        return recipe
    kind, _, count = (AUTO_ENSEMBLE if recipe.ensemble == "auto" else recipe.ensemble or "").partition(":")
    # All snapshots except the first are shorter. Folds count as one training, because a single model is
    # cross-validated, too.
    trainings = {"snapshots": 1.0 + CYCLE_SHARE * (int(count or 1) - 1), "backbones": float(len(recipe.models))}
    models = {"folds": TRAINING_FOLDS + 1, "backbones": len(recipe.models)}.get(kind, int(count or 1))
    left = share * training_budget(recipe.time_budget, evidence, models)
    return recipe.changed(time_budget=left / trainings.get(kind, float(count or 1)))


def describe_members(members: Sequence[PlannedRun]) -> str:
    """Return the expected time of the whole command that trains the members, in words."""
    training = 0.0
    for own in members:
        if own.plan.fold:  # the training of a fold is a part of the cross-validation
            continue
        seconds = own.choice.chosen.expected_seconds * (CYCLE_SHARE if own.plan.cycle else 1.0)
        training += min(seconds, own.plan.time_budget or seconds)
    # The last evidence was measured after all others.
    last = max((own.evidence for own in members), key=lambda evidence: evidence.seconds_before)
    return describe_command(last, training, len(members))


def _candidate(leading: PlannedRun, name: str) -> PlannedRun:
    """Return the training of another candidate, with its share of the time budget."""
    choice = leading.choice.led_by(name)
    plan = make_plan(budgeted(leading.recipe, leading.evidence), leading.evidence, choice)
    seconds = {each.name: each.expected_seconds for each in choice.candidates if each.name in choice.members}
    plan = plan.changed(time_budget=plan.time_budget * seconds[name] / sum(seconds.values()))
    return replace(leading, choice=choice, plan=plan)


def _with(leading: PlannedRun, **changes: float) -> PlannedRun:
    return replace(leading, plan=leading.plan.changed(**changes))
