"""Keep what identifies the images of a run in its folder, and refuse to continue it on other images."""

import shutil
from pathlib import Path

from finetune.data import DataIdentity, ImageSplits, identify
from finetune.errors import RunFolderError
from finetune.processes import from_main_process
from finetune.runs.folder import RunFolder

IDENTITY = "data.json"
"""Name of the file that identifies the images of a run."""


def keep_identity(folder: RunFolder, splits: ImageSplits) -> None:
    """Write what identifies the images of a run, or compare it with what was written when the run began.

    Raises:
        RunFolderError: the images have changed since then.
    """
    from_main_process(lambda: _keep_identity(folder.path, splits))


def were_all_decoded(folder: RunFolder) -> bool:
    """Return whether the run left out the images that cannot be decoded."""
    path = folder.path / IDENTITY
    return from_main_process(lambda: path.exists() and DataIdentity.load(path).all_decoded)


def forget_training(folder: RunFolder) -> None:
    """Remove what was trained so far, because the images are others from now on."""

    def forget() -> None:
        shutil.rmtree(folder.checkpoints, ignore_errors=True)
        (folder.path / IDENTITY).unlink(missing_ok=True)

    from_main_process(forget)


def _keep_identity(path: Path, splits: ImageSplits) -> None:
    found = identify(splits)
    if not (path / IDENTITY).exists():
        found.save(path / IDENTITY)
    elif difference := DataIdentity.load(path / IDENTITY).difference(found):
        raise RunFolderError(
            f"the data has changed since the run in {path} began: {difference}; restore the data, or train anew: "
            f"finetune train --recipe {path / 'recipe.yaml'}"
        )
