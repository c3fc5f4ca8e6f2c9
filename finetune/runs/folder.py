"""Store a run on disk: its recipe, evidence, choice and plan, then its model and metrics."""

import json
import shutil
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from pydantic import Field

from finetune.decide.choice import Choice
from finetune.decide.diagnosis import Verdict, diagnose
from finetune.decide.evidence import Evidence
from finetune.decide.plan import Plan
from finetune.decide.planned_run import PlannedRun
from finetune.ensemble.recommendation import Option
from finetune.errors import RunFolderError
from finetune.files import write_text
from finetune.history import Row
from finetune.names import quoted
from finetune.predict.metrics import Metrics
from finetune.predict.model import Ensemble, Predictor, TrainedModel
from finetune.processes import from_main_process
from finetune.recipe import load_recipe, save_recipe
from finetune.runs.environment import describe_environment
from finetune.runs.live import HISTORY, read_rows, read_state
from finetune.runs.model_files import read_network, write_network
from finetune.runs.places import (
    SCHEDULE,
    forget_beginning,
    holds_only_a_plan,
    is_finished,
    member_numbers,
    refuse_if_taken,
    refuse_without_a_plan,
)
from finetune.value import FrozenModel, is_none
from finetune.work import Work

if TYPE_CHECKING:
    from finetune.data import ImageSplits


class Seconds(FrozenModel):
    """Wall time of the parts of a run, in seconds."""

    evidence: float
    """Wall time of the measurements, in seconds."""
    search: Annotated[float, Field(alias="race")]
    """Wall time of the search for hyper-parameters, in seconds; 0 without one. In files of earlier versions also that
    of trainings that lost a race."""
    train: float
    """Wall time of the trainings that were finished, in seconds."""
    total: float
    """Wall time of the whole run, in seconds."""


class RunMetrics(FrozenModel):
    """The quality of a run's model, and its cost."""

    validation: Metrics
    """Metrics on images that the network was not trained on; if there is a refit, measured before it."""
    validation_source: str
    """Description of the images on which the validation metrics were measured."""
    test: Metrics | None
    """Metrics on the test split; None if there is no test split."""
    seconds: Seconds
    """Wall time of the parts of the run."""
    work: Work
    """Images decoded, sent forward and sent backward by all trainings of the run."""
    options: tuple[Option, ...] = ()
    """The models and averages that were compared at the end of an ensemble; empty without an ensemble."""
    note: str = ""
    """Remark on how the model was made, such as that a training was rejected; empty if there is nothing to remark."""
    verdicts: tuple[Verdict, ...] = ()
    """Problems found in the training's history; those of an ensemble are with each member."""


class Averaged(FrozenModel):
    """The members of an ensemble, and the temperature of their averaged probabilities."""

    members: Annotated[tuple[Annotated[str, Field(pattern=r"^members/[0-9]+$")], ...], Field(min_length=1)]
    """Run folders of the members, relative to that of the ensemble."""
    temperature: Annotated[float, Field(gt=0, allow_inf_nan=False)]
    """Divisor of the logarithms of the mean probabilities before the softmax."""
    thresholds: Annotated[tuple[Annotated[float, Field(ge=0, le=1)], ...] | None, Field(exclude_if=is_none)] = None
    """Probability from which each label of a set is given; left out where each image has one label."""


@dataclass(frozen=True, slots=True)
class RunFolder:
    """The folder of one run.

    Methods that write do so in the main process alone; every process must call them.
    """

    path: Path
    """Path of the folder."""

    @property
    def checkpoints(self) -> Path:
        """The folder with the state of unfinished trainings, one subfolder for each training."""
        return self.path / "checkpoints"

    @property
    def members(self) -> tuple["RunFolder", ...]:
        """The run folders of an ensemble's members, or this folder alone."""
        if not (self.path / "ensemble.json").exists():
            return (self,)
        return tuple(RunFolder(self.path / name) for name in Averaged.load(self.path / "ensemble.json").members)

    def trial(self, number: int) -> Path:
        """Return the folder of a trial in a search for hyper-parameters, with its plan and its history."""
        return self.path / "trials" / str(number)

    def holds_only_a_plan(self) -> bool:
        """Return whether there is a plan, but no training has started."""
        return holds_only_a_plan(self.path)

    def is_finished(self) -> bool:
        """Return whether there is a finished model."""
        return is_finished(self.path)

    def begin(self, members: Sequence[PlannedRun], plot: bool = False) -> None:
        """Write the recipe, evidence, choice and plan of a new run, and those of each member of an ensemble.

        The plan of the leading run comes last: a folder without it holds no run yet.

        Args:
            members: the planned run, or the members of an ensemble, the leading one first.
            plot: whether to plot the learning rates of the leading run.

        Raises:
            RunFolderError: another run has taken the folder in the meantime.
        """

        def write() -> None:
            refuse_if_taken(self.path)
            forget_beginning(self.path)
            for number, member in enumerate(members if len(members) > 1 else (), start=1):
                _write_decisions(_member_path(self.path, number), member)
            if plot:
                from finetune.runs.plots import plot_schedule  # matplotlib takes long to import

                self.path.mkdir(parents=True, exist_ok=True)
                plot_schedule(members[0].plan, self.path / SCHEDULE)
            _write_decisions(self.path, members[0])

        from_main_process(write)

    def write_decisions(self, decisions: PlannedRun) -> None:
        """Write the recipe, evidence, choice and plan."""
        from_main_process(lambda: _write_decisions(self.path, decisions))

    def write_choice(self, choice: Choice) -> None:
        """Write the choice alone."""
        from_main_process(lambda: choice.save(self.path / "choice.json"))

    def write_history(self, history: Sequence[Row]) -> None:
        """Write a training's history as JSON, one row a line."""
        from_main_process(lambda: _write_history(self.path, history))

    def write_model(
        self, model: Predictor, metrics: RunMetrics, splits: "ImageSplits", members: Sequence[PlannedRun] = ()
    ) -> None:
        """Write the model, its history and its metrics. The metrics come last, because they mark a finished run.

        Args:
            model: the final model of the run.
            metrics: the quality of the model and its cost.
            splits: the images; `splits.csv` lists them, and `predictions.parquet` those that were held out or tested.
            members: the planned runs of an ensemble's members, in the order of `model.members`.
        """
        from_main_process(lambda: _write_run(self.path, model, metrics, splits, members))

    def read_decisions(self) -> PlannedRun:
        """Return the recipe, evidence, choice and plan.

        Raises:
            RunFolderError: there is no plan here.
            RecipeError: another file is missing or wrong.
        """
        return PlannedRun(
            plan=self.read_plan(),
            recipe=load_recipe(self.path / "recipe.yaml"),
            evidence=Evidence.load(self.path / "evidence.json"),
            choice=Choice.load(self.path / "choice.json"),
        )

    def read_plan(self) -> Plan:
        """Return the plan.

        Raises:
            RunFolderError: there is no run here.
        """
        refuse_without_a_plan(self.path)
        return Plan.load(self.path / "plan.json")

    def read_metrics(self) -> RunMetrics:
        """Return the quality of the model and its cost."""
        return RunMetrics.load(self.path / "metrics.json")

    def read_history(self) -> tuple[Row, ...]:
        """Return the history of a training that has ended or diverged.

        Raises:
            RunFolderError: there is no history.
        """
        self.read_plan()
        rows, state = read_rows(self.path), read_state(self.path)
        has_ended = self.is_finished() or state is None or any("diverged_in" in row for row in rows[-1:])
        if not (self.path / HISTORY).exists() or not has_ended:
            raise RunFolderError(
                f"there is no history in {self.path} yet; it is complete when a training ends or diverges; train the "
                f"plan: finetune train --plan {quoted(self.path / 'plan.json')}, or, if it was interrupted, "
                f"--resume {quoted(self.path)}; follow a run in progress: finetune watch {quoted(self.path)}"
            )
        return tuple(rows)

    def read_model(self) -> Predictor:
        """Return the trained model, or the ensemble of several, ready to predict.

        Raises:
            RunFolderError: there is no finished run here.
        """
        if not (self.path / "ensemble.json").exists():
            return _read_trained(self)
        members = tuple(map(_read_trained, self.members))
        averaged = Averaged.load(self.path / "ensemble.json")
        return Ensemble(
            members=members,
            plan=members[0].plan,
            class_names=members[0].class_names,
            temperature=averaged.temperature,
            thresholds=averaged.thresholds,
            validation=_validation_of(self),
        )


def _member_path(path: Path, number: int) -> Path:
    """Return the folder of an ensemble's member; the first member has number 1."""
    return path / "members" / str(number)


def _write_decisions(path: Path, decisions: PlannedRun) -> None:
    path.mkdir(parents=True, exist_ok=True)
    save_recipe(decisions.recipe, path / "recipe.yaml")
    decisions.evidence.save(path / "evidence.json")
    decisions.choice.save(path / "choice.json")
    decisions.plan.save(path / "plan.json")  # last: it marks a run that can be continued


def _write_history(path: Path, history: Sequence[Row]) -> None:
    write_text(path / HISTORY, "".join(json.dumps(dict(row)) + "\n" for row in history))


def _write_run(
    path: Path, model: Predictor, metrics: RunMetrics, splits: "ImageSplits", members: Sequence[PlannedRun]
) -> None:
    if isinstance(model, Ensemble):
        _write_ensemble(path, model, metrics, splits, members)
    if isinstance(model, TrainedModel):
        write_network(model, path)
    from finetune.runs.image_tables import write_image_tables  # it imports all trainings, which a prediction needs not

    write_image_tables(path, model, splits)
    _write_history(path, model.history)
    write_text(path / "environment.json", json.dumps(describe_environment(), indent=2) + "\n")
    metrics.save(path / "metrics.json")  # last: it marks a finished run
    shutil.rmtree(path / "checkpoints", ignore_errors=True)
    kept = len(model.members) if isinstance(model, Ensemble) else 0
    for number in member_numbers(path):
        if number > kept:
            shutil.rmtree(_member_path(path, number), ignore_errors=True)
    if not kept:
        shutil.rmtree(path / "members", ignore_errors=True)


def _write_ensemble(
    path: Path, model: Ensemble, metrics: RunMetrics, splits: "ImageSplits", members: Sequence[PlannedRun]
) -> None:
    """Write each member of an ensemble as a separate run, and the file that lists them."""
    for number, (own, member) in enumerate(zip(members, model.members, strict=True), start=1):
        folder = _member_path(path, number)
        choice = own.choice.changed(members=(), ensemble="", fallback="")
        _write_decisions(folder, replace(own, choice=choice))
        seconds = metrics.seconds.changed(train=round(member.seconds, 2), total=round(member.seconds, 2))
        alone = metrics.changed(
            options=(),
            validation=member.validation,
            validation_source=member.plan.evaluated_on,
            test=member.test,
            seconds=seconds,
            work=member.work,
            note=member.note,
            verdicts=diagnose(member.history, member.plan, own.evidence),
        )
        _write_run(folder, member, alone, splits, ())
    names = [f"members/{number}" for number in range(1, len(model.members) + 1)]
    averaged = Averaged(members=names, temperature=model.temperature, thresholds=model.thresholds)
    averaged.save(path / "ensemble.json")


def _read_trained(folder: RunFolder) -> TrainedModel:
    return replace(read_network(folder.path, folder.read_plan()), validation=_validation_of(folder))


def _validation_of(folder: RunFolder) -> Metrics | None:
    return folder.read_metrics().validation if folder.is_finished() else None
