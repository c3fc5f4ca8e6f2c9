"""Check run folders, and name new ones, without reading a model, so that a mistake in a path is reported at once."""

import os
import shutil
from contextlib import suppress
from datetime import datetime
from pathlib import Path

from finetune.errors import RunFolderError
from finetune.files import PARTIAL, explain
from finetune.names import quoted
from finetune.runs.live import LOCK, STATE, refuse_if_in_use
from finetune.value import read_json

SCHEDULE = "schedule.svg"
"""Name of the file with the plot of the learning rates."""

IDENTITY = "data.json"
"""Name of the file that identifies the images of a run."""

PLAN_FILES = frozenset({"recipe.yaml", "evidence.json", "choice.json", "plan.json", IDENTITY, SCHEDULE})
"""Names of the files of a run folder before its training starts."""

DECISIONS = ("recipe.yaml", "evidence.json", "choice.json", "plan.json")
"""Names of the files with the decisions of a run, in the order in which they are written."""

BEGINNING = PLAN_FILES | {STATE, "tuning.json"}
"""Names of the files that a run writes until its plan is there."""


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
    names = _names_in(path)
    return "plan.json" in names and names <= PLAN_FILES


def is_finished(path: Path) -> bool:
    """Return whether there is a finished model."""
    return (path / "metrics.json").exists()


def holds_tuning(path: Path) -> bool:
    """Return whether the folder is that of a search for hyper-parameters."""
    return (path / "tuning.json").exists()


def holds_nothing(path: Path) -> bool:
    """Return whether a folder is missing, empty, or has only the files of a run that was killed before its plan was
    there: nothing is lost when another run uses it."""
    names = _names_in(path)
    if "plan.json" in names or (path.exists() and not path.is_dir()):
        return False
    place = path / "members"  # without a member yet, if the run was killed when it had made the folder
    members = names & BEGINNING and place.is_dir() and all(entry.name.isdecimal() for entry in place.iterdir())
    return names <= BEGINNING | ({"members"} if members else set())


def member_numbers(path: Path) -> list[int]:
    """Return the numbers of the members of an ensemble that have a folder, in their order."""
    return sorted(int(entry.name) for entry in (path / "members").glob("[0-9]*") if entry.name.isdecimal())


def forget_beginning(path: Path) -> None:
    """Remove the members that a run wrote which was killed before its plan was there."""
    if holds_nothing(path):
        shutil.rmtree(path / "members", ignore_errors=True)


def is_resumable(path: Path) -> bool:
    """Return whether there is a run to continue."""
    return (path / "plan.json").exists() and not is_finished(path)


def resume_command(path: Path) -> str:
    """Return the command that continues an interrupted run."""
    return f"finetune {'tune' if holds_tuning(path) else 'train'} --resume {quoted(path)}"


def describe_interruption(path: Path | None) -> str:
    """Return what is left of a run that was interrupted, and the command that continues it, if there is something to
    continue.

    Args:
        path: the run folder; None if the run had none yet.
    """
    if path is None or not (path / "plan.json").exists():
        return "interrupted before the choice was made, so there is nothing to resume; start again"
    if is_finished(path):
        return f"interrupted after the run was finished; its model is in {path}"
    has_checkpoint = next(path.glob("**/checkpoints/**/*.pt"), None) is not None
    saved = "the last checkpoint is saved" if has_checkpoint else "the plan is saved, and no step of the training yet"
    return f"interrupted; {saved}; continue with: {resume_command(path)}"


def refuse_impossible(path: Path) -> None:
    """Refuse a folder that cannot be made or written to.

    Raises:
        RunFolderError: a part of its path is a file, its name is too long, or its disk cannot be written to.
    """
    try:
        with suppress(FileNotFoundError, NotADirectoryError):
            path.lstat()  # of a name that is too long
        above = next(place for place in (path, *path.absolute().parents) if os.path.lexists(place))
        above.stat()  # of a broken link
    except OSError as error:
        raise RunFolderError(explain(error)) from None
    if not above.is_dir():
        raise RunFolderError(f"{above} is a file; give a new folder with --output")
    if not os.access(above, os.W_OK | os.X_OK):
        raise RunFolderError(f"{above} cannot be written to; give a new folder elsewhere with --output")


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
    refuse_impossible(path)
    refuse_if_in_use(path)
    if holds_nothing(path) or holds_only_a_plan(path):
        return
    if is_finished(path):
        raise RunFolderError(f"{path} holds another run, which is not overwritten; give a new folder with --output")
    if (path / "plan.json").exists():
        raise RunFolderError(
            f"{path} holds an interrupted run, which is not overwritten; continue it: {resume_command(path)}"
        )
    raise RunFolderError(f"{path} is neither empty nor a run folder; give a new folder with --output")


def _names_in(path: Path) -> set[str]:
    """Return the names in a folder, without the lock and the files that a killed process had not written to their
    ends."""
    if not path.is_dir():
        return set()
    return {entry.name for entry in path.iterdir() if not entry.name.endswith(PARTIAL)} - {LOCK}


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
            f"resume; run it again: finetune train --recipe {quoted(path / 'recipe.yaml')}"
        )


def refuse_tuning(path: Path) -> None:
    """Refuse to resume a search for hyper-parameters as a training.

    Raises:
        RunFolderError: the folder is that of a search.
    """
    if holds_tuning(path):
        raise RunFolderError(f"{path} holds an interrupted search; continue it: {resume_command(path)}")


def refuse_without_tuning(path: Path) -> None:
    """Refuse to resume a training as a search for hyper-parameters.

    Raises:
        RunFolderError: the folder is that of a training.
    """
    if not holds_tuning(path):
        raise RunFolderError(f"{path} holds no search for hyper-parameters; resume it with: {resume_command(path)}")


def refuse_without_a_model(path: Path) -> None:
    """Refuse to predict with a run that has no model yet.

    Raises:
        RunFolderError: there is no run, or it is not finished.
    """
    refuse_without_a_plan(path)
    if not is_finished(path):
        raise RunFolderError(
            f"the run in {path} is not finished (metrics.json is missing); continue it: {resume_command(path)}"
        )
