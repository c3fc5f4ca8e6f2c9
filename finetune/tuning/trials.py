"""Propose trials and keep their results in Optuna's storage, which several workers may share."""

import time
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import optuna
from optuna.distributions import BaseDistribution, FloatDistribution
from optuna.exceptions import StorageInternalError
from optuna.samplers import BaseSampler, TPESampler
from optuna.trial import FrozenTrial, TrialState, create_trial
from sqlalchemy.exc import IntegrityError, OperationalError, ProgrammingError, SQLAlchemyError

from finetune.errors import TuningError
from finetune.recipe_tuning import Search
from finetune.tuning.space import Parameters, Space, draw, grid
from finetune.tuning.state import Trial
from finetune.work import Work

UNPRUNED = 3
"""Number of fine trials that must finish before any is stopped early."""

RUNGS = (1 / 3, 2 / 3)
"""Fractions of the steps after which a trial is evaluated before its end."""

LEAST_RUNG = 2
"""First rung at which a trial may be stopped. At rung 1 high learning rates look worse than they are
(experiments/compare_searches.py)."""

STARTUP = 5
"""Number of random trials before the Parzen estimator proposes."""

PAUSES = (0.5, 1.0)
"""Waiting times before each new attempt to open the storage, in seconds; another worker may be creating its tables."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Proposer:
    """Propose the parameters of a trial from nothing but its number and the trials before it.

    A resumed search therefore proposes the same parameters again.
    """

    search: Search
    """Way in which parameters are proposed: `grid`, `random` or `tpe`."""
    space: Space
    """Ranges of the parameters."""
    count: int
    """Number of trials asked for."""
    seed: int
    """Seed of the random numbers."""
    first: Parameters | None = None
    """Parameters of the first trial; None if they are proposed like those of the others."""
    shorter: tuple[Trial, ...] = ()
    """Coarse trials, which the Parzen estimator treats as pruned fine ones."""

    @property
    def num_trials(self) -> int:
        """Number of trials that will be proposed: a grid may have fewer points than `count`."""
        return len(self._grid()) + self._offset if self.search == "grid" else self.count

    def propose(self, number: int, before: Sequence[FrozenTrial]) -> Parameters:
        """Return the parameters of a trial.

        Args:
            number: number of the trial in its set, from 0.
            before: the trials of the set before it.
        """
        if self.first is not None and number == 0:
            return self.first
        if self.search == "grid":
            points = self._grid()
            return points[(number - self._offset) % len(points)]
        if self.search == "random":
            return draw(self.space, self.seed, len(self.shorter), number)
        return self._estimate(number, before)

    @property
    def _offset(self) -> int:
        return 0 if self.first is None else 1

    def _grid(self) -> list[Parameters]:
        wanted = self.count - self._offset
        return grid(self.space, wanted, self.seed) if wanted else []

    def _estimate(self, number: int, before: Sequence[FrozenTrial]) -> Parameters:
        """Return the proposal of the tree-structured Parzen estimator (Bergstra et al. 2011) after these trials."""
        seeds = np.random.SeedSequence([self.seed, len(self.shorter), number])
        sampler = TPESampler(seed=int(seeds.generate_state(1)[0]), n_startup_trials=STARTUP)
        study = _create_study(sampler=sampler)
        study.add_trials([*self._shorter(), *before])
        found = study.ask(dict(self.distributions())).params
        return {each.name: each.rounded(found[each.name]) for each in self.space}

    def _shorter(self) -> list[FrozenTrial]:
        inside = [
            trial
            for trial in self.shorter
            if trial.losses and all(each.low <= trial.parameters[each.name] <= each.high for each in self.space)
        ]
        return [
            create_trial(
                state=TrialState.PRUNED,
                params=trial.parameters,
                distributions=self.distributions(),
                intermediate_values={LEAST_RUNG: trial.losses[0]},
            )
            for trial in inside
        ]

    def distributions(self) -> dict[str, BaseDistribution]:
        """Return the ranges as Optuna's distributions."""
        return {each.name: FloatDistribution(each.low, each.high, log=True) for each in self.space}


class _Sampler(BaseSampler):
    """Give Optuna the parameters of a proposer."""

    def __init__(self, proposer: Proposer) -> None:
        self._proposer = proposer

    def infer_relative_search_space(self, *_: object) -> dict[str, BaseDistribution]:
        return {}

    def sample_relative(self, *_: object) -> dict[str, Any]:
        return {}

    def sample_independent(self, study: optuna.Study, trial: FrozenTrial, param_name: str, *_: object) -> float:
        before = [other for other in study.get_trials(deepcopy=False) if other.number < trial.number]
        return self._proposer.propose(trial.number, [other for other in before if other.params])[param_name]


class TrialSet:
    """The coarse or the fine trials, in a storage that several workers may share."""

    def __init__(
        self,
        name: Literal["coarse", "fine"],
        storage: optuna.storages.BaseStorage,
        study: str,
        about: str,
        proposer: Proposer,
        numbers: tuple[int, int],
        worker: str,
        is_shared: bool,
    ) -> None:
        """Open the trial set in a storage, or create it there.

        Args:
            name: name of the trial set.
            storage: Optuna's storage.
            study: name of the search, the same for all workers.
            about: description of the search, which must be the same for all workers.
            proposer: proposer of parameters.
            numbers: folder numbers of the first and the second trial; those of later trials ascend from the second.
            worker: name of the worker that trains the trials of this process.
            is_shared: whether other workers may use the storage.

        Raises:
            TuningError: the storage holds another search of this name.
        """
        self.name = name
        self._numbers = numbers
        self._is_shared = is_shared
        self._worker = worker
        self._proposer = proposer
        self._study = _create_study(
            storage=storage,
            study_name=f"{study}-{name}",
            sampler=_Sampler(proposer),
            pruner=optuna.pruners.MedianPruner(n_startup_trials=UNPRUNED, n_warmup_steps=LEAST_RUNG),
            load_if_exists=True,
        )
        if self._study.user_attrs.setdefault("about", about) != about:
            raise TuningError(
                f"the storage holds another search named '{study}' ({self._study.user_attrs['about']}; this one is "
                f"{about}); give the run folder another name with --output"
            )
        self._study.set_user_attr("about", about)

    def interrupted(self) -> optuna.Trial | None:
        """Return the trial of this worker that an interruption left unfinished; None if there is none."""
        running = [trial for trial in self._all() if trial.state == TrialState.RUNNING and self._is_own(trial)]
        return self._claimed(optuna.Trial(self._study, running[0]._trial_id)) if running else None

    def begin(self) -> optuna.Trial | None:
        """Return a new trial, or None if enough trials have begun."""
        return self._claimed(self._study.ask()) if len(self._all()) < self._proposer.num_trials else None

    def number(self, trial: optuna.Trial) -> int:
        """Return the number of a trial's folder."""
        return int(trial.user_attrs["number"])

    def parameters(self, trial: optuna.Trial) -> Parameters:
        """Return the parameters of a trial."""
        space = self._proposer.space
        return {each.name: trial.suggest_float(each.name, each.low, each.high, log=True) for each in space}

    def should_stop(self, trial: optuna.Trial, rung: int, loss: float) -> bool:
        """Record the held-out loss at a rung (1 or 2); return whether it is above the median of the other trials."""
        if rung not in self._all()[trial.number].intermediate_values:
            trial.report(loss, rung)
        return trial.should_prune()

    def end(
        self,
        trial: optuna.Trial,
        loss: float | None,
        accuracy: float,
        seconds: float,
        work: Work,
        has_diverged: bool = False,
    ) -> None:
        """Record the result of a trial.

        Args:
            trial: the trial that has ended.
            loss: held-out log-loss in nats; None if the trial was stopped early or diverged.
            accuracy: held-out accuracy by the metric of the plan.
            seconds: wall time of the trial, in seconds.
            work: images decoded, sent forward and sent backward.
            has_diverged: whether the trial diverged.
        """
        trial.set_user_attr("accuracy", accuracy)
        trial.set_user_attr("seconds", round(seconds, 2))
        trial.set_user_attr("work", work.model_dump())
        trial.set_user_attr("diverged", has_diverged)
        self._study.tell(trial, loss, state=TrialState.PRUNED if loss is None else TrialState.COMPLETE)

    def trials(self, own: bool = False) -> tuple[Trial, ...]:
        """Return the trials that have ended, of all workers or only this worker's own."""
        ended = self._study.get_trials(deepcopy=False, states=(TrialState.COMPLETE, TrialState.PRUNED))
        return tuple(self._value(trial) for trial in ended if not own or self._is_own(trial))

    def work(self, counted: Collection[int]) -> Work:
        """Return the computational work of this worker's trials, except those whose numbers are in `counted`."""
        own = (trial.user_attrs for trial in self._all() if self._is_own(trial) and "work" in trial.user_attrs)
        return sum((Work(**known["work"]) for known in own if known["number"] not in counted), Work())

    def worker_of(self, number: int) -> str:
        """Return the name of the worker that trained a trial."""
        return next(str(each.user_attrs["worker"]) for each in self._all() if each.user_attrs["number"] == number)

    def _all(self) -> list[FrozenTrial]:
        return self._study.get_trials(deepcopy=False)

    def _is_own(self, trial: FrozenTrial) -> bool:
        # A worker that was killed between creating and claiming a trial leaves it without a name.
        unclaimed = None if self._is_shared else self._worker
        return trial.user_attrs.get("worker", unclaimed) == self._worker

    def _claimed(self, trial: optuna.Trial) -> optuna.Trial:
        first, second = self._numbers
        trial.set_user_attr("number", second + trial.number - 1 if trial.number else first)
        trial.set_user_attr("worker", self._worker)
        return trial

    def _value(self, trial: FrozenTrial) -> Trial:
        reported = tuple(trial.intermediate_values[step] for step in sorted(trial.intermediate_values))
        is_over = trial.state == TrialState.COMPLETE and trial.value is not None
        state: Literal["finished", "pruned", "diverged"] = "finished" if is_over else "pruned"
        return Trial(
            number=trial.user_attrs["number"],
            stage=self.name,
            parameters=trial.params,
            state="diverged" if trial.user_attrs["diverged"] else state,
            losses=(*reported, trial.value) if is_over else reported,
            accuracy=trial.user_attrs["accuracy"],
            seconds=trial.user_attrs["seconds"],
        )


def _create_study(**options: Any) -> optuna.Study:  # noqa: ANN401  (Optuna's own options)
    """Return a study; from then on Optuna prints only warnings, not a line for each study and trial."""
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    return optuna.create_study(**options)


def open_storage(url: str) -> optuna.storages.BaseStorage:
    """Return Optuna's storage at a database URL.

    Raises:
        TuningError: the storage cannot be used.
    """
    pauses = iter(PAUSES)
    while True:
        try:
            return optuna.storages.RDBStorage(url)
        except (ImportError, SQLAlchemyError, StorageInternalError, ValueError) as error:
            # These errors may pass, because another worker may be creating the same tables.
            is_passing = isinstance(error, IntegrityError | OperationalError | ProgrammingError)
            pause = next(pauses, None) if is_passing else None
            if pause is None:
                reason = str(error).strip().splitlines()[0].rstrip(".")
                raise TuningError(
                    f"the storage cannot be used: {reason}; give a database URL such as postgresql://HOST/NAME with "
                    f"--storage, or leave it out"
                ) from None
            time.sleep(pause)
