"""Keep the state of a search: its ranges, findings, trials and winner, as `tuning.json` holds them."""

from collections.abc import Sequence
from typing import Literal

from finetune.decide.choice import Choice
from finetune.decide.plan import Plan
from finetune.recipe import Recipe
from finetune.recipe_tuning import Search
from finetune.tuning.space import Parameters, Space, make_space
from finetune.value import FrozenModel

TRIALS = 20
"""Default number of trials."""

COARSE_SHARE = 0.6
"""Share of the trials that are coarse: shorter, and spread over the whole range. The others are fine: trained to the
end, near the best coarse trial."""


class Finding(FrozenModel):
    """The result of one of the six steps."""

    step: int
    """Number of the step, 1 to 6."""
    holds: bool
    """Whether the search may continue."""
    says: str
    """The result in a sentence, with its numbers."""


class Trial(FrozenModel):
    """One training of a search."""

    number: int
    """Number of the trial; its folder is `trials/<number>`."""
    stage: Literal["coarse", "fine"]
    """The trial set that the trial belongs to."""
    parameters: Parameters
    """Values of the parameters that are searched for."""
    state: Literal["finished", "pruned", "diverged"]
    """Outcome of the trial; a coarse trial is `finished` at the last rung, a fine one at the last step."""
    losses: tuple[float, ...]
    """Held-out log-loss in nats at each rung reached and at the end, each at its best temperature."""
    accuracy: float
    """Held-out accuracy at the last evaluation, by the metric of the plan."""
    seconds: float
    """Wall time of the trial, in seconds."""


class Tuning(FrozenModel):
    """A search: its ranges, its findings and its trials."""

    name: str
    """Name of the search in the storage."""
    worker: str
    """Worker that trains the trials of this folder, as `host:path`."""
    search: Search
    """Way in which parameters are proposed: `grid`, `random` or `tpe`."""
    num_trials: int
    """Number of trials asked for, coarse and fine ones together."""
    asked: Space
    """Ranges that the recipe asks for, or the defaults, before step 3 narrows them."""
    space: Space
    """Ranges that are searched; step 3 narrows the learning rates to those with which the training loss falls."""
    findings: tuple[Finding, ...] = ()
    """Results of the steps so far, in their order."""
    trials: tuple[Trial, ...] = ()
    """Trials that have ended, by number."""
    winner: int = -1
    """Number of the trial that becomes the final model; -1 until it is chosen."""
    seconds: float = 0.0
    """Wall time of the search so far in seconds, over all interruptions."""

    @property
    def num_coarse(self) -> int:
        """Number of coarse trials: at least one, and fewer than all."""
        return min(max(1, round(COARSE_SHARE * self.num_trials)), self.num_trials - 1)

    @property
    def num_fine(self) -> int:
        """Number of fine trials."""
        return self.num_trials - self.num_coarse

    def begun_anew(self) -> "Tuning":
        """Return this search before its first step."""
        return Tuning(
            name=self.name,
            worker=self.worker,
            search=self.search,
            num_trials=self.num_trials,
            asked=self.asked,
            space=self.asked,
        )


def begin_tuning(recipe: Recipe, choice: Choice, plan: Plan, name: str, worker: str) -> Tuning:
    """Return the search that a recipe asks for, before its first step.

    Args:
        recipe: recipe of the search.
        choice: the choice whose first candidate is tuned.
        plan: the plan of that candidate.
        name: name of the search in the storage.
        worker: name of the worker that trains trials here.

    Raises:
        RecipeError: the strategy takes no steps, or the recipe fixes all parameters.
    """
    asked, space = recipe.tuning, make_space(recipe, choice, plan)
    return Tuning(
        name=name,
        worker=worker,
        search=asked.search or "tpe",
        num_trials=asked.trials or TRIALS,
        asked=space,
        space=space,
    )


def best_of(trials: Sequence[Trial]) -> Trial:
    """Return the finished trial with the lowest held-out loss; of two equal ones, the earlier.

    Raises:
        ValueError: no trial finished.
    """
    return min(
        (trial for trial in trials if trial.state == "finished"), key=lambda trial: (trial.losses[-1], trial.number)
    )
