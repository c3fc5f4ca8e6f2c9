"""Check the data and the paths that a user gives before anything is read."""

from collections.abc import Sequence
from pathlib import Path

from finetune.data.demo import refuse_other_demos
from finetune.data.folder import refuse_without_class_folders
from finetune.data.grouping import is_table
from finetune.data.table import refuse_other_files
from finetune.errors import DataError
from finetune.recipe import Recipe


def listed(paths: Sequence[str | Path]) -> Sequence[str | Path]:
    """Return the paths that were given, unless they are a single one.

    Raises:
        DataError: one path was given, whose letters would be taken for paths.
    """
    if isinstance(paths, (str, Path)):
        raise DataError(f"a single path was given; give a list of paths: [{str(paths)!r}]")
    return paths


def with_absolute_paths(recipe: Recipe) -> Recipe:
    """Return a recipe whose data, weights and table of groups mean the same in any working directory."""
    return recipe.changed(
        data=_absolute(recipe.data),
        weights=recipe.weights and _absolute(recipe.weights),
        groups=_absolute(recipe.groups) if is_table(recipe.groups) else recipe.groups,
    )


def _absolute(name: str) -> str:
    """Return a name with its absolute path, or as it is if it is not of a file or folder, such as `demo:digits`."""
    kind, colon, rest = name.partition(":")
    own, path = (kind + colon, rest) if kind in {"hf", "stream"} else ("", name)
    found = Path(path).expanduser()
    return own + str(found.absolute()) if path and found.exists() else name


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
