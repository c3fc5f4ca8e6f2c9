"""Keep the decisions that a run began with until it is finished.

A finished run has the decisions of the model that was kept, which may be others: an ensemble may lose members, a
fallback may replace a rejected training. A run that is killed while they are written is resumed from the first ones.
"""

import shutil
from pathlib import Path

from finetune.decide.planned_run import PlannedRun, list_members
from finetune.files import PARTIAL
from finetune.processes import from_main_process
from finetune.runs.folder import RunFolder
from finetune.runs.places import DECISIONS, member_numbers

KEPT = "begun"
"""Name of their folder among the checkpoints."""


def keep_first_decisions(folder: RunFolder) -> None:
    """Copy the decisions of a run that is in progress to its checkpoints, unless they are there."""
    from_main_process(lambda: _keep(folder.path, folder.checkpoints))


def first_decisions(folder: RunFolder) -> RunFolder:
    """Return the folder with the decisions that a run began with: those that were kept, or the run folder."""
    kept = folder.checkpoints / KEPT
    return RunFolder(kept) if kept.exists() else folder


def read_members(folder: RunFolder) -> tuple[PlannedRun, ...]:
    """Return the planned runs that `RunFolder.begin` wrote, the leading one first.

    Where the members of an ensemble have no folders of their own, they follow from the leading one.

    Raises:
        RunFolderError: there is no plan here.
    """
    source = first_decisions(folder)
    numbers = member_numbers(source.path)
    stored = tuple(RunFolder(source.path / "members" / str(number)).read_decisions() for number in numbers)
    return stored or list_members(source.read_decisions(), [])


def _keep(path: Path, checkpoints: Path) -> None:
    kept = checkpoints / KEPT
    if kept.exists():
        return
    partial = checkpoints / f"{KEPT}{PARTIAL}"
    shutil.rmtree(partial, ignore_errors=True)
    for place in (Path(), *(Path("members") / str(number) for number in member_numbers(path))):
        (partial / place).mkdir(parents=True)
        for name in DECISIONS:
            shutil.copyfile(path / place / name, partial / place / name)
    partial.rename(kept)
