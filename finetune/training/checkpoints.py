"""Keep on disk what an interrupted training needs to continue."""

from pathlib import Path
from typing import Any

import torch

from finetune.errors import RunFolderError
from finetune.files import replacing
from finetune.processes import is_so_everywhere


class Checkpoints:
    """The results of finished phases and the last checkpoint of the current one; without a folder, nothing is kept.

    Files hold tensors and plain values alone and are read with `weights_only`, so that a run folder from elsewhere
    cannot run code.
    """

    def __init__(self, folder: Path | None, writes: bool = True) -> None:
        """Keep files in `folder`; only one of several processes `writes` them."""
        self._folder = folder
        self._writes = writes and folder is not None

    def begin(self) -> None:
        """Make the folder, which marks the training as begun.

        Raises:
            RunFolderError: a process does not see the folder, so it could not continue from a checkpoint.
        """
        if self._folder is None:
            return
        if self._writes:
            self._folder.mkdir(parents=True, exist_ok=True)
        if not is_so_everywhere(self._folder.is_dir):
            raise RunFolderError(
                f"{self._folder} is not seen by all machines; give an --output on a disk that all of them share"
            )

    def before(self) -> "Checkpoints":
        """Return the checkpoints of an earlier training, from which this one continues."""
        below = Checkpoints(None if self._folder is None else self._folder / "before", self._writes)
        below.begin()
        return below

    def finished(self, phase: str) -> dict[str, Any] | None:
        """Return the result that `finish` kept for a phase; None if the phase has not finished."""
        return self._read(f"{phase}.pt")

    def finish(self, phase: str, content: dict[str, Any]) -> None:
        """Keep a phase's result and delete its checkpoint."""
        self._write(f"{phase}.pt", content)
        if self._folder is not None and self._writes:
            (self._folder / f"{phase}-step.pt").unlink(missing_ok=True)

    def step(self, phase: str) -> dict[str, Any] | None:
        """Return the last checkpoint within a phase; None if there is none."""
        return self._read(f"{phase}-step.pt")

    def save_step(self, phase: str, content: dict[str, Any]) -> None:
        """Keep a checkpoint within a phase, instead of the last one."""
        self._write(f"{phase}-step.pt", content)

    def _read(self, name: str) -> dict[str, Any] | None:
        if self._folder is None or not (self._folder / name).exists():
            return None
        try:
            content: dict[str, Any] = torch.load(self._folder / name, map_location="cpu", weights_only=True)
        except Exception as error:  # of a damaged file, torch and pickle raise exceptions of any type
            sentence = " ".join(str(error).split())[:200] or type(error).__name__
            raise RunFolderError(
                f"the checkpoint {self._folder / name} is damaged ({sentence}); remove it to train this phase anew"
            ) from None
        return content

    def _write(self, name: str, content: dict[str, Any]) -> None:
        """Write a file; it is there whole or not at all.

        Raises:
            OSError: the disk is full, or cannot be written to.
        """
        if self._folder is None or not self._writes:
            return
        with replacing(self._folder / name) as partial, partial.open("wb") as file:
            torch.save(content, file)
