"""Check run folders, and name new ones, without reading a model, so that a mistake in a path is reported at once."""

from datetime import datetime
from pathlib import Path

from finetune.errors import RunFolderError
from finetune.runs.live import STATE, refuse_if_in_use
from finetune.value import read_json

SCHEDULE = "schedule.svg"
"""Name of the file with the plot of the learning rates."""

PLAN_FILES = frozenset({"recipe.yaml", "evidence.json", "choice.json", "plan.json", SCHEDULE})
"""Names of the files of a run folder before its training starts."""


def default_folder(data: str) -> Path:
    """Return `runs/<data>-<time>`, which does not exist yet."""
    stem = Path(data.rstrip("/")).stem if ":" not in data else data.replace(":", "-").replace("/", "-")
    base = Path("runs") / f"{stem or 'images'}-{datetime.now():%Y%m%d-%H%M%S}"
    path, number = base, 2
    while path.exists():
        path, number = base.with_name(f"{base.name}-{number}"), number + 1
    return path


def holds_only_a_plan(path: Path) -> bool:
    """Return whether there is a plan, but no training has started."""
    names = {entry.name for entry in path.iterdir()} if path.is_dir() else set()
    return "plan.json" in names and names <= PLAN_FILES


def is_finished(path: Path) -> bool:
    """Return whether there is a finished model."""
    return (path / "metrics.json").exists()


def holds_tuning(path: Path) -> bool:
    """Return whether the folder is that of a search for hyper-parameters."""
    return (path / "tuning.json").exists()


def refuse_without_a_plan(path: Path) -> None:
    """Refuse a folder that holds no run.

    Raises:
        RunFolderError: there is no plan.
    """
    if not (path / "plan.json").exists():
        raise RunFolderError(f"there is no run in {path}; expected a folder with plan.json, made by 'finetune train'")


def refuse_if_taken(path: Path) -> None:
    """Refuse a folder that is not new, not empty, and holds more than a plan, or that a running process uses.

    Raises:
        RunFolderError: the folder holds a run or other files.
    """
    refuse_if_in_use(path)
    if not path.exists() or holds_only_a_plan(path):
        return
    if not path.is_dir():
        raise RunFolderError(f"{path} is a file; give a new folder with --output")
    if is_finished(path):
        raise RunFolderError(f"{path} holds another run, which is not overwritten; give a new folder with --output")
    if (path / "plan.json").exists():
        raise RunFolderError(f"{path} holds an interrupted run, which is not overwritten; continue it: --resume {path}")
    if {entry.name for entry in path.iterdir()} - {STATE}:
        raise RunFolderError(f"{path} is neither empty nor a run folder; give a new folder with --output")


def refuse_if_finished(path: Path) -> None:
    """Refuse to resume a run that has a model.

    Raises:
        RunFolderError: the run is finished.
    """
    if is_finished(path):
        raise RunFolderError(f"the run in {path} is finished; there is nothing to resume")


def refuse_if_raced(path: Path) -> None:
    """Refuse to resume a run of an earlier version that trained several candidates for a part of their steps first.

    Raises:
        RunFolderError: the choice has such a race, which no longer exists.
    """
    choice = read_json(path / "choice.json", RunFolderError)
    if isinstance(choice, dict) and choice.get("racing"):
        raise RunFolderError(
            f"the run in {path} has a race between candidates, which an earlier version began and this one cannot "
            f"resume; run it again: finetune train --recipe {path / 'recipe.yaml'}"
        )


def refuse_tuning(path: Path) -> None:
    """Refuse to resume a search for hyper-parameters as a training.

    Raises:
        RunFolderError: the folder is that of a search.
    """
    if holds_tuning(path):
        raise RunFolderError(f"{path} holds an interrupted search; continue it: finetune tune --resume {path}")


def refuse_without_tuning(path: Path) -> None:
    """Refuse to resume a training as a search for hyper-parameters.

    Raises:
        RunFolderError: the folder is that of a training.
    """
    if not holds_tuning(path):
        raise RunFolderError(
            f"{path} holds no search for hyper-parameters; resume it with: finetune train --resume {path}"
        )


def refuse_without_a_model(path: Path) -> None:
    """Refuse to predict with a run that has no model yet.

    Raises:
        RunFolderError: there is no run, or it is not finished.
    """
    refuse_without_a_plan(path)
    if not any((path / name).exists() for name in ("config.json", "ensemble.json")):
        raise RunFolderError(
            f"the run in {path} is not finished (config.json is missing); continue it: finetune train --resume {path}"
        )
