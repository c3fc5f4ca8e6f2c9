"""Keep what identifies the images of a run in its folder, and refuse to continue it on other images."""

import shutil
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from finetune.data import DataIdentity, ImageSplits, identify, load_plan_images, tie_copies, without_undecodable
from finetune.data.identity import contents_of
from finetune.decide.plan import Plan
from finetune.errors import RunFolderError
from finetune.names import quoted
from finetune.processes import from_main_process
from finetune.runs.folder import RunFolder
from finetune.runs.places import IDENTITY, holds_tuning


def write_identity(folder: RunFolder, splits: ImageSplits) -> None:
    """Write what identifies the images of a new run."""

    def write() -> None:
        folder.path.mkdir(parents=True, exist_ok=True)
        identify(splits).save(folder.path / IDENTITY)

    from_main_process(write)


def check_identity(
    folder: RunFolder,
    splits: ImageSplits,
    source: RunFolder | None = None,
    accept: bool = False,
    forget: Callable[[RunFolder], None] | None = None,
) -> str:
    """Compare the images with those that a run or a plan was made for, and return the changes that were accepted.

    If changes are accepted, what was trained so far is removed, because it was trained on other images.

    Args:
        folder: the run folder.
        splits: the images.
        source: the folder of the plan, whose images count if the run folder does not say which its own are.
        accept: whether to accept changes, and to record them.
        forget: removes what was trained so far; `forget_training` by default.

    Raises:
        RunFolderError: the images have changed.
    """
    return from_main_process(lambda: _check_identity(folder, splits, source or folder, accept, forget))


def check_evaluated(folder: RunFolder, splits: ImageSplits, data: str, accept: bool) -> str:
    """Compare the images of an evaluation with those of the run, if both are of the same data, and return the changes
    that were accepted; they are recorded in the run folder, if it can be written to.

    Args:
        folder: the run folder.
        splits: the images, as `test`.
        data: the data, as the evaluation names it.
        accept: whether to accept changes.

    Raises:
        RunFolderError: the images have changed.
    """
    known, plan = _read(folder), folder.read_plan()
    # Under a limit, the run lists only the training images that it used.
    if known is None or not known.images or plan.limit or not _is_same(plan.data, data):
        return ""
    difference = known.difference_from_part(identify(splits))
    if difference:  # images that cannot be decoded are left out anyway
        difference = known.difference_from_part(identify(without_undecodable(splits, only_test=True)))
    if difference and not accept:
        raise RunFolderError(
            f"{data} has changed since the run in {folder.path} began: {difference}; restore the data, or accept the "
            f"changes with --accept-changes"
        )
    record = f"evaluated on changed data: {difference}"
    if difference and record not in known.accepted:
        with suppress(OSError):
            known.changed(accepted=(*known.accepted, record)).save(folder.path / IDENTITY)
    return difference


def _is_same(first: str, second: str) -> bool:
    """Return whether two names are of the same data."""
    return first == second or Path(first).expanduser().resolve() == Path(second).expanduser().resolve()


def load_known_images(folder: RunFolder, plan: Plan, source: RunFolder | None = None) -> ImageSplits:
    """Return the images of a plan as the run divided them: without those that cannot be decoded, if it left them out,
    and with copies of one picture on one side.

    Args:
        folder: the run folder.
        plan: the plan.
        source: the folder of the plan, which counts if the run folder does not say how its images were divided.

    Raises:
        DataError: the images cannot be loaded.
    """
    known = from_main_process(lambda: _read(folder) or _read(source or folder))
    splits = load_plan_images(plan)
    if known is None:
        return splits
    if known.all_decoded:
        splits = without_undecodable(splits)
    return tie_copies(splits, known.copies, plan.seed, plan.limit or None)


def forget_training(folder: RunFolder) -> None:
    """Remove what was trained so far, because the images are others from now on."""
    from_main_process(lambda: shutil.rmtree(folder.checkpoints, ignore_errors=True))


def count_trained_on(folder: RunFolder, splits: ImageSplits, with_validation: bool) -> list[bool]:
    """Return for each test image whether the model of a run was trained on it; [] if the run does not say it.

    Args:
        folder: the run folder.
        splits: the images to evaluate on, as `test`.
        with_validation: whether the final model was trained on the validation split, too.
    """
    seen = contents_in(folder, "train", *(("validation",) if with_validation else ()))
    if not seen or splits.test is None:
        return []
    return [content.text in seen for content in contents_of(splits.test)]


def contents_in(folder: RunFolder, *splits: str) -> set[str]:
    """Return what identifies the content of each image in some splits of a run; nothing if the run does not say it."""
    known = _read(folder)
    return set() if known is None else known.contents(*splits)


def _read(folder: RunFolder) -> DataIdentity | None:
    path = folder.path / IDENTITY
    return DataIdentity.load(path) if path.exists() else None


def _check_identity(
    folder: RunFolder,
    splits: ImageSplits,
    source: RunFolder,
    accept: bool,
    forget: Callable[[RunFolder], None] | None,
) -> str:
    found = identify(splits)
    known = _read(folder) or _read(source)
    difference = "" if known is None else known.difference(found)
    if difference and not accept:
        command = "tune" if holds_tuning(folder.path) else "train"
        raise RunFolderError(
            f"the data has changed since the run in {source.path} began: {difference}; restore the data, accept the "
            f"changes with --accept-changes, or train anew: finetune {command} --recipe "
            f"{quoted(source.path / 'recipe.yaml')}"
        )
    if known is not None and difference:
        # What was trained goes first: if the process ends here, the changes are still to be accepted.
        (forget or forget_training)(folder)
        found = found.changed(accepted=(*known.accepted, difference))
    elif known is not None:
        found = found.changed(accepted=known.accepted)
    if known != found:
        folder.path.mkdir(parents=True, exist_ok=True)
        found.save(folder.path / IDENTITY)
    return difference


def regrouped(
    regroup: Callable[[str], ImageSplits], change: Callable[[ImageSplits], ImageSplits], rule: str
) -> ImageSplits:
    """Return the images with the groups of a rule, as `regroup` returns them, after a change."""
    return change(regroup(rule))
