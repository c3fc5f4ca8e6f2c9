"""Check the data and the paths that a user gives before anything is read."""

from collections.abc import Sequence
from pathlib import Path

from finetune.data.demo import refuse_other_demos
from finetune.data.folder import refuse_without_class_folders
from finetune.data.table import refuse_other_files
from finetune.errors import DataError


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
