"""What an interrupted training needs to go on, on disk."""

from pathlib import Path
from typing import Any

import torch

from finetune.errors import RunFolderError
from finetune.processes import is_so_everywhere


class Checkpoints:
    """Finished phases and the last checkpoint of the running one; None keeps nothing.

    Files hold tensors and plain values alone and are read with `weights_only`, so that a foreign run folder can not
    run code.
    """

    def __init__(self, folder: Path | None, writes: bool = True) -> None:
        """Keep files in `folder`; of several processes one alone `writes`."""
        self._folder = folder
        self._writes = writes and folder is not None

    def begin(self) -> None:
        """Make the folder, which marks the run as begun.

        Raises:
            RunFolderError: another process does not see it, so that it could not go on from where this one does.
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
        """Return where a training is kept that another one goes on from."""
        below = Checkpoints(None if self._folder is None else self._folder / "before", self._writes)
        below.begin()
        return below

    def finished(self, phase: str) -> dict[str, Any] | None:
        """Return what `finish` kept for a phase."""
        return self._read(f"{phase}.pt")

    def finish(self, phase: str, content: dict[str, Any]) -> None:
        """Keep a phase's result and drop its checkpoint."""
        self._write(f"{phase}.pt", content)
        if self._folder is not None and self._writes:
            (self._folder / f"{phase}-step.pt").unlink(missing_ok=True)

    def step(self, phase: str) -> dict[str, Any] | None:
        """Return the last checkpoint within a phase."""
        return self._read(f"{phase}-step.pt")

    def save_step(self, phase: str, content: dict[str, Any]) -> None:
        """Keep a checkpoint within a phase."""
        self._write(f"{phase}-step.pt", content)

    def _read(self, name: str) -> dict[str, Any] | None:
        if self._folder is None or not (self._folder / name).exists():
            return None
        content: dict[str, Any] = torch.load(self._folder / name, map_location="cpu", weights_only=True)
        return content

    def _write(self, name: str, content: dict[str, Any]) -> None:
        if self._folder is None or not self._writes:
            return
        partial = self._folder / f"{name}.partial"
        torch.save(content, partial)
        partial.replace(self._folder / name)
