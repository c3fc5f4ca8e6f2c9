"""Scan a folder of images: one subfolder for each class, with or without train, validation and test folders."""

import os
from collections.abc import Iterator
from pathlib import Path

from finetune.data.table import SPLIT_NAMES, LabelledTable
from finetune.errors import DataError, quoted_names

SIDE_FILES = frozenset({
    ".txt", ".csv", ".tsv", ".json", ".jsonl", ".xml", ".yaml", ".yml", ".md", ".html", ".pdf", ".py", ".ipynb",
    ".zip", ".tar", ".gz", ".db", ".ini", ".log", ".npy", ".npz", ".mat", ".parquet", ".xlsx",
    ".part",
})  # fmt: skip
"""Endings of files that are not images; every other file in a class folder counts as an image."""


def load_folder(root: Path) -> LabelledTable:
    """Return the images below the class folders of `root` with their classes and, if `root` has split folders, their
    splits.

    Raises:
        DataError: there is no image, or the folders do not show what is a split and what is a class.
    """
    splits = _split_folders(root)
    if not splits:
        inverted = _inverted(root)
        if inverted is not None:
            return inverted
        _refuse_splits_as_classes(root)
    folders = [(split, folder) for split, folder in splits.items()] if splits else [(None, root)]
    sources: list[str] = []
    labels: list[str] = []
    names: list[str] = []
    listed: set[str] = set()
    for split, folder in folders:
        for class_folder in sorted(entry for entry in folder.iterdir() if _is_class_folder(entry)):
            files = files_below(class_folder)
            listed.add(class_folder.name)
            sources += files
            labels += [class_folder.name] * len(files)
            names += [split or ""] * len(files)
    if not sources:
        raise _nothing_found(root)
    return LabelledTable(
        sources=sources, labels=labels, splits=names if splits else None, notes=_describe_empty(listed - {*labels})
    )


def _describe_empty(names: set[str]) -> tuple[str, ...]:
    """Return a sentence about class folders without images, if there are any."""
    if not names:
        return ()
    verbs = "folder has no images and is" if len(names) == 1 else "folders have no images and are"
    return (f"the {verbs} not a class: {quoted_names(sorted(names))}",)


def files_below(folder: Path) -> list[str]:
    """Return the sorted paths of all files in a folder and its subfolders, except hidden ones and `SIDE_FILES`."""
    return list(walk_files(folder))


def walk_files(folder: Path) -> Iterator[str]:
    """Yield the paths of `files_below` in their order, while the folders are read.

    Each folder is read once: links to folders are followed, but not upwards or to where the walk has been.
    """
    seen = {os.path.realpath(place) for place in (folder, *folder.absolute().parents)}
    seen |= {str(place) for place in Path(os.path.realpath(folder)).parents}
    for parent, directories, names in os.walk(folder, followlinks=True):
        directories[:] = [
            name
            for name in sorted(directories)
            if not name.startswith(".") and _is_new(os.path.join(parent, name), seen)  # noqa: PTH118
        ]
        for name in sorted(names):
            if not name.startswith(".") and not is_side_file(name):
                yield os.path.join(parent, name)  # noqa: PTH118  (with many files, a Path would take most of the time)


def describe_overlooked(root: Path) -> list[tuple[Path, str]]:
    """Return what is in a folder of images but is not read, with the reason: empty class folders, and loose images."""
    splits = _split_folders(root)
    found = []
    for folder in list(splits.values()) or [root]:
        for entry in sorted(folder.iterdir()):
            if _is_class_folder(entry):
                if not files_below(entry):
                    found.append((entry, "a class folder without images"))
            elif entry.is_file() and not entry.name.startswith(".") and not is_side_file(entry.name):
                found.append((entry, "a file next to the class folders, which is not read"))
    return found


def is_side_file(name: str) -> bool:
    """Return whether a file is not an image, by its ending."""
    return os.path.splitext(name)[1].lower() in SIDE_FILES  # noqa: PTH122  (as in `walk_files`)


def _is_new(folder: str, seen: set[str]) -> bool:
    """Return whether a folder has not been seen, and remember it."""
    place = os.path.realpath(folder)
    is_new = place not in seen
    seen.add(place)
    return is_new


def _split_folders(root: Path) -> dict[str, Path]:
    """Return the folder of each split, or {} if `root` has no splits; a class may have the name of a split, too."""
    found: dict[str, Path] = {}
    for entry in sorted(root.iterdir()):
        split = SPLIT_NAMES.get(entry.name.lower())
        if split and entry.is_dir() and any(_is_class_folder(child) for child in entry.iterdir()):
            if split in found:
                raise DataError(
                    f"{root} has two folders for the {split} split: {found[split].name} and "
                    f"{entry.name}; merge them into one"
                )
            found[split] = entry
    if found and "train" not in found:
        if len(found) > 1:
            raise DataError(f"{root} has {quoted_names(sorted(found))} but no train folder; add one")
        found = {"test": next(iter(found.values()))} if "test" in found else {}
    if len(found) == 1:
        (only,) = found.values()
        _refuse_other_classes(root, only)
    return found


def _inverted(root: Path) -> LabelledTable | None:
    """Return the images of a tree with a train folder and other splits in each class folder; None if it is none."""
    class_folders = [entry for entry in sorted(root.iterdir()) if _is_class_folder(entry)]
    below = [
        [child for child in sorted(folder.iterdir()) if not child.name.startswith(".")] for folder in class_folders
    ]
    names = [{SPLIT_NAMES.get(child.name.lower(), "") if child.is_dir() else "" for child in own} for own in below]
    if not names or any("" in own or "train" not in own for own in names) or set().union(*names) == {"train"}:
        return None
    found = [
        (file, folder.name, SPLIT_NAMES[child.name.lower()])
        for folder, children in zip(class_folders, below, strict=True)
        for child in children
        for file in files_below(child)
    ]
    return LabelledTable(
        sources=[file for file, _, _ in found],
        labels=[label for _, label, _ in found],
        splits=[split for _, _, split in found],
        notes=("the splits are read from the folders below each class folder",),
    )


def _refuse_splits_as_classes(root: Path) -> None:
    """Raise a DataError if all class folders have names of splits, such as train and test1, and hold images."""
    folders = [entry.name for entry in sorted(root.iterdir()) if _is_class_folder(entry) and files_below(entry)]
    splits = [SPLIT_NAMES.get(name.lower().rstrip("0123456789_- ")) for name in folders]
    if len(folders) > 1 and "train" in splits and None not in splits:
        raise DataError(
            f"{root} has the splits {quoted_names(folders)} but no class folders in them; put the images of each class "
            f"into a subfolder named after the class ({root / folders[splits.index('train')] / 'CLASS'}), or give a "
            f"table with path, label and split"
        )


def _refuse_other_classes(root: Path, only: Path) -> None:
    """Raise a DataError if class folders with images are next to the single split folder `only`."""
    folders = [entry for entry in sorted(root.iterdir()) if entry != only and _is_class_folder(entry)]
    others = [entry.name for entry in folders if entry.name.lower() not in SPLIT_NAMES and files_below(entry)]
    if others:
        raise DataError(
            f"{root} has the folder {only.name}, with classes in it, next to {quoted_names(others)}; if {only.name} is "
            f"a split, give only this folder: --data {only}; if it is a class, rename it"
        )


def _is_class_folder(entry: Path) -> bool:
    return entry.is_dir() and not entry.name.startswith(".") and entry.name != "__MACOSX"


def refuse_without_class_folders(root: Path) -> None:
    """Refuse a folder without subfolders.

    Raises:
        DataError: there is no class folder.
    """
    if not any(_is_class_folder(entry) for entry in root.iterdir()):
        raise _nothing_found(root)


def _nothing_found(root: Path) -> DataError:
    """Return the error of a folder without images in class folders."""
    loose = [entry for entry in root.iterdir() if entry.is_file() and entry.suffix.lower() not in SIDE_FILES]
    if loose:
        return DataError(
            f"{root} holds {len(loose)} files but no class folders; "
            f"put the images of each class into a subfolder named after the class, or give a table with path and label"
        )
    return DataError(f"{root} is empty; expected one subfolder of images for each class")
