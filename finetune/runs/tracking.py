"""Send the history of a run to experiment trackers such as TensorBoard and MLflow, through Accelerate."""

from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

from accelerate import Accelerator
from accelerate.tracking import GeneralTracker, get_available_trackers

from finetune.decide.planned_run import PlannedRun
from finetune.errors import RecipeError
from finetune.history import Row
from finetune.recipe import Tracker

PROJECT = "finetune"
"""Name of the project or experiment under which trackers list runs."""

FOLDER = "tensorboard"
"""Folder of the event files within a run folder."""

PACKAGES: dict[Tracker, str] = {"comet_ml": "comet-ml"}
"""Packages that have another name than the tracker."""

LABELS = ("phase", "step", "training")
"""Entries of a row that say which step it is."""


def check_trackers(names: Sequence[Tracker]) -> None:
    """Check that the packages of trackers are installed.

    Raises:
        RecipeError: a package is missing.
    """
    available = {str(each) for each in get_available_trackers()}
    for name in names:
        if name not in available:
            raise RecipeError(f"track: {name} is not installed; install it: pip install {PACKAGES.get(name, name)}")


class Trackers:
    """Trackers of one run. They work in a thread of their own, so that the training does not wait for them."""

    def __init__(self, names: Sequence[Tracker], planned: PlannedRun, folder: Path) -> None:
        """Start the trackers with the settings of a training.

        Args:
            names: names of the trackers.
            planned: the training.
            folder: the run folder; TensorBoard's files are in it.

        Raises:
            RecipeError: a package is missing, or a tracker cannot be started.
        """
        check_trackers(names)
        # A single thread: MLflow knows a run in the thread that started it only.
        self._thread = ThreadPoolExecutor(1, "trackers")
        self._pending: list[Future[None]] = []
        self._started: list[GeneralTracker] = []
        for name in names:
            try:
                self._started += self._thread.submit(_start, name, planned, folder).result()
            except Exception as error:  # each library has its own errors, such as those of a missing account
                self._thread.shutdown()
                raise RecipeError(f"track: {name} cannot be started: {error}") from error

    def log(self, rows: Sequence[tuple[int, Row]]) -> None:
        """Send rows of the history, each with its number in the run."""
        self._pending = [future for future in self._pending if not future.done() or future.exception()]
        # After an error, the tracker gets no further rows; the error is named at the end.
        if not any(future.done() for future in self._pending):
            self._pending += [self._thread.submit(self._log, number, row) for number, row in rows]

    def close(self) -> str:
        """Send what is left and end the trackers; return the first error, "" if there was none."""
        self._pending += [self._thread.submit(tracker.finish) for tracker in self._started]
        self._thread.shutdown()
        errors = [str(future.exception()) for future in self._pending if future.exception()]
        return errors[0] if errors else ""

    def _log(self, number: int, row: Row) -> None:
        prefix = "/".join(str(row[name]) for name in ("training", "phase") if name in row)
        # "update_ratio:head" is a series "head" of the group "update_ratio".
        values = {f"{prefix}/{name.replace(':', '/')}": value for name, value in row.items() if name not in LABELS}
        for tracker in self._started:
            tracker.log(values, step=number)


def _start(name: Tracker, planned: PlannedRun, folder: Path) -> list[GeneralTracker]:
    plan = planned.plan
    accelerator = Accelerator(log_with=name, project_dir=str(folder))
    named = {"mlflow": {"run_name": folder.name}, "wandb": {"name": folder.name}}
    config = {
        "data": plan.data,
        "model": plan.model,
        "strategy": plan.strategy,
        "steps": plan.steps,
        "batch_size": plan.batch_size,
        "image_size": plan.preprocessing.image_size,
        "learning_rate": plan.head_learning_rate,
        "weight_decay": plan.weight_decay,
        "precision": plan.precision,
        "seed": plan.seed,
        "run_folder": str(folder),
    }
    accelerator.init_trackers(FOLDER if name == "tensorboard" else PROJECT, config, named)
    trackers: list[GeneralTracker] = accelerator.trackers
    return trackers
