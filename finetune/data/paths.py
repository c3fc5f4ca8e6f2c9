"""Check the data that a user gives before anything is read, and make a table of image files without labels."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from finetune.data.demo import refuse_other_demos
from finetune.data.folder import refuse_without_class_folders
from finetune.data.scanning import why_unreadable
from finetune.data.table import refuse_other_files
from finetune.errors import DataError
from finetune.reading import AS_STORED, Reading


@dataclass(frozen=True, slots=True)
class PathTable:
    """A table of image files without labels, with those methods of a `datasets.Dataset` that reading images needs."""

    paths: tuple[str, ...]
    """Path of each image, in the order of the rows."""

    @property
    def column_names(self) -> list[str]:
        """Names of the columns: `image` alone."""
        return ["image"]

    def __len__(self) -> int:
        """Return the number of images."""
        return len(self.paths)

    def __getitem__(self, column: str) -> list[dict[str, Any]]:
        """Return the undecoded images, the only column.

        Raises:
            KeyError: another column was asked for.
        """
        if column not in self.column_names:
            raise KeyError(column)
        return [{"path": path, "bytes": None} for path in self.paths]

    def select(self, rows: Sequence[int]) -> "PathTable":
        """Return a table of some rows."""
        return PathTable(tuple(self.paths[row] for row in rows))


def table_of_paths(paths: list[str], reading: Reading = AS_STORED) -> PathTable:
    """Return an unlabelled table of image files.

    Raises:
        DataError: a file is missing or cannot be read as an image.
    """
    for path, reason in zip(paths, why_unreadable(paths, reading), strict=True):
        if reason is not None:
            raise DataError(f"{path} cannot be read as an image: {reason}")
    return PathTable(tuple(paths))


def listed(paths: Sequence[str | Path]) -> Sequence[str | Path]:
    """Return the paths that were given, unless they are a single one.

    Raises:
        DataError: one path was given, whose letters would be taken for paths.
    """
    if isinstance(paths, (str, Path)):
        raise DataError(f"a single path was given; give a list of paths: [{str(paths)!r}]")
    return paths


def check_data(data: str) -> None:
    """Check that there is something to read at `data`, as in `load_images`; data sets of the hub are not looked up.

    Raises:
        DataError: there is no such folder, file or demo, the file is not a table, or the folder has no class folders.
    """
    kind, colon, name = data.partition(":")
    if colon and kind == "demo":
        refuse_other_demos(name)
    if colon and kind in {"demo", "hf", "stream"}:
        return
    path = Path(data).expanduser()
    if not path.exists():
        raise DataError(f"there is no folder or file {data}; give a folder with one subfolder of images for each class")
    if path.is_file():
        refuse_other_files(path)
    else:
        refuse_without_class_folders(path)
