"""Optuna's side of a search: what was tried, by whom, and what is tried next."""

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
from finetune.recipe import Search
from finetune.tuning.space import Parameters, Space, Trial, draw, grid
from finetune.work import Work

UNPRUNED = 3
"""Long trials that go to their end before any is stopped early."""

LEAST_RUNG = 2
"""First rung at which a trial may be stopped: at the one before, high learning rates look worse than they are
(docs/tuning.md)."""

STARTUP = 5
"""Random trials before the Parzen estimator has something to estimate from."""

PAUSES = (0.5, 1.0)
"""Seconds before a storage that another worker may be setting up is opened again."""

optuna.logging.set_verbosity(optuna.logging.WARNING)


@dataclass(frozen=True, slots=True, kw_only=True)
class Proposer:
    """Proposes the parameters of a trial from its number and the trials before it alone: whoever asks again, after an
    interruption, is told the same."""

    search: Search
    space: Space
    count: int
    """Trials that are wanted."""
    seed: int
    first: Parameters | None = None
    """Of the first trial, where they are given."""
    shorter: tuple[Trial, ...] = ()
    """Trials of the stage before, which the Parzen estimator takes for pruned ones."""

    @property
    def num_trials(self) -> int:
        """How many trials there will be: a grid may have fewer points than are wanted."""
        return len(self._grid()) + self._offset if self.search == "grid" else self.count

    def propose(self, number: int, before: Sequence[FrozenTrial]) -> Parameters:
        """Return the parameters of a trial."""
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
        """Return what the Parzen estimator (Bergstra et al. 2011) proposes after these trials."""
        seeds = np.random.SeedSequence([self.seed, len(self.shorter), number])
        sampler = TPESampler(seed=int(seeds.generate_state(1)[0]), n_startup_trials=STARTUP)
        study = optuna.create_study(sampler=sampler)
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
        """Return the ranges as Optuna has them."""
        return {each.name: FloatDistribution(each.low, each.high, log=True) for each in self.space}


class _Sampler(BaseSampler):
    """Hands Optuna what a proposer proposes."""

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
    """The coarse or the fine trials, in a storage that other workers may share."""

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
        """Find the stage in a storage, or put it there.

        Args:
            name: of the stage.
            storage: Optuna's.
            study: the search's name, which workers share.
            about: what must be the same for all workers.
            proposer: of parameters.
            numbers: of the folder of the first trial, and of the second one, from which on they ascend.
            worker: who does the trials of this process.
            is_shared: whether other workers may use the storage.

        Raises:
            TuningError: the storage holds another search of this name.
        """
        self.name = name
        self._numbers = numbers
        self._is_shared = is_shared
        self._worker = worker
        self._proposer = proposer
        self._study = optuna.create_study(
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
        """Return the trial that this worker had begun when it was interrupted."""
        running = [trial for trial in self._all() if trial.state == TrialState.RUNNING and self._is_own(trial)]
        return self._claimed(optuna.Trial(self._study, running[0]._trial_id)) if running else None

    def begin(self) -> optuna.Trial | None:
        """Return a new trial, or None where enough are begun."""
        return self._claimed(self._study.ask()) if len(self._all()) < self._proposer.num_trials else None

    def number(self, trial: optuna.Trial) -> int:
        """Return the number of a trial's folder."""
        return int(trial.user_attrs["number"])

    def parameters(self, trial: optuna.Trial) -> Parameters:
        """Return the parameters of a trial."""
        space = self._proposer.space
        return {each.name: trial.suggest_float(each.name, each.low, each.high, log=True) for each in space}

    def should_stop(self, trial: optuna.Trial, rung: int, loss: float) -> bool:
        """Keep the loss at a rung, 1 or 2; return whether the median of the others' was lower."""
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
        """Keep what a trial came to; without a loss it did not go to its end."""
        trial.set_user_attr("accuracy", accuracy)
        trial.set_user_attr("seconds", round(seconds, 2))
        trial.set_user_attr("work", work.model_dump())
        trial.set_user_attr("diverged", has_diverged)
        self._study.tell(trial, loss, state=TrialState.PRUNED if loss is None else TrialState.COMPLETE)

    def trials(self, own: bool = False) -> tuple[Trial, ...]:
        """Return the trials that ended, of all workers or this one's own."""
        ended = self._study.get_trials(deepcopy=False, states=(TrialState.COMPLETE, TrialState.PRUNED))
        return tuple(self._value(trial) for trial in ended if not own or self._is_own(trial))

    def work(self, counted: Collection[int]) -> Work:
        """Return what this worker's trials took, but for those that are counted elsewhere."""
        lost = (trial.user_attrs for trial in self._all() if self._is_own(trial) and "work" in trial.user_attrs)
        return sum((Work(**known["work"]) for known in lost if known["number"] not in counted), Work())

    def worker_of(self, number: int) -> str:
        """Return who did a trial."""
        return next(str(each.user_attrs["worker"]) for each in self._all() if each.user_attrs["number"] == number)

    def _all(self) -> list[FrozenTrial]:
        return self._study.get_trials(deepcopy=False)

    def _is_own(self, trial: FrozenTrial) -> bool:
        nobody = None if self._is_shared else self._worker  # it was killed before it could say whose it is
        return trial.user_attrs.get("worker", nobody) == self._worker

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


def open_storage(url: str) -> optuna.storages.BaseStorage:
    """Return Optuna's storage at a database URL.

    Raises:
        TuningError: it can not be used.
    """
    pauses = iter(PAUSES)
    while True:
        try:
            return optuna.storages.RDBStorage(url)
        except (ImportError, SQLAlchemyError, StorageInternalError, ValueError) as error:
            # Another worker may be making the same tables.
            is_passing = isinstance(error, IntegrityError | OperationalError | ProgrammingError)
            pause = next(pauses, None) if is_passing else None
            if pause is None:
                reason = str(error).strip().splitlines()[0].rstrip(".")
                raise TuningError(
                    f"the storage can not be used: {reason}; give a database URL such as postgresql://HOST/NAME with "
                    f"--storage, or leave it out"
                ) from None
            time.sleep(pause)
