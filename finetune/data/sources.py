"""From whatever the person has (folders, a table, a Hugging Face data set, the demo) to labelled splits."""

import os
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from datasets import ClassLabel, Dataset, Features, Value, concatenate_datasets
from datasets import Image as ImageFeature
from datasets.arrow_dataset import Column

from finetune.cache import cache_folder
from finetune.data.decoding import why_unreadable
from finetune.data.hub import load_hub_table
from finetune.data.splitting import stratified_holdout, stratified_subset
from finetune.data.streaming import ImageStream, load_stream
from finetune.data.table import LabelledTable, load_table
from finetune.errors import DataError
from finetune.recipe import TableColumns

if TYPE_CHECKING:
    from numpy.typing import NDArray

TEST_FRACTION = 0.15
"""Share of a data set without splits that becomes its test split."""

SPLIT_NAMES = {
    "train": "train", "training": "train",
    "val": "validation", "validation": "validation", "valid": "validation", "dev": "validation",
    "test": "test", "testing": "test",
}  # fmt: skip

SIDE_FILES = frozenset({
    ".txt", ".csv", ".tsv", ".json", ".jsonl", ".xml", ".yaml", ".yml", ".md", ".html", ".pdf", ".py", ".ipynb",
    ".zip", ".tar", ".gz", ".db", ".ini", ".log", ".npy", ".npz", ".mat", ".parquet", ".xlsx",
})  # fmt: skip
"""Files that lie beside images and are none; everything else in a class folder counts, whatever its name."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Unreadable:
    """A file that was left out."""

    path: str
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class ImageSplits:
    """Labelled images, parted for training, choosing and judging.

    Each split is a `datasets.Dataset` with an undecoded `image`, a `label` (ClassLabel over `class_names`, the same
    in all splits) and, where images belong together, a `group`.
    """

    train: Dataset
    validation: Dataset | None
    """As it was given; None means that it is still to be taken from `train`."""
    test: Dataset | None
    class_names: tuple[str, ...]
    unreadable: tuple[Unreadable, ...] = ()
    test_was_made: bool = False
    """Whether `test` was split off here, because the data came without one."""
    stream: ImageStream | None = None
    """All training images, where `train` is but a sample of them."""

    @property
    def num_training_images(self) -> int:
        """How many images there are to train on."""
        return len(self.train) if self.stream is None else self.stream.num_images


def labels_of(dataset: Dataset) -> "NDArray[np.int64]":
    """Return the class indices (n_images,) of a split."""
    return np.asarray(dataset.with_format("numpy")["label"][:], dtype=np.int64)


def groups_of(dataset: Dataset) -> "NDArray[np.str_] | None":
    """Return the groups (n_images,) of a split, or None where images stand alone."""
    return np.asarray(dataset["group"][:], dtype=str) if "group" in dataset.column_names else None


def paths_of(dataset: Dataset) -> list[str]:
    """Return each image's path, or `image N` where it has none."""
    return [row["path"] or f"image {number}" for number, row in enumerate(dataset["image"])]


def load_images(data: str, columns: TableColumns | None = None, limit: int | None = None, seed: int = 0) -> ImageSplits:
    """Return the labelled splits of `data`: a folder, a table, `demo:digits`, `hf:NAME` or `stream:NAME`.

    Unreadable files are left out and listed in `unreadable`. Of data without any split, 15 % of each class become the
    test split (groups whole), the same for the same files and seed.

    Args:
        data: a class-per-folder tree (flat or with train / val|validation / test), a CSV, TSV or Parquet file, the
        embedded
            demo, or a Hugging Face data set (hub name or local folder), stored or as a stream.
        columns: which columns of a table hold what; found by name and type where left out.
        limit: keep so many training images, each class in proportion.
        seed: of the splits made here.

    Raises:
        DataError: no such data, no images, one class, a class with one image, classes that only a later split has, ...
    """
    loaded, stream = _load_any(data, columns or TableColumns(), seed)
    table, unreadable = _without_unreadable(loaded, data)
    splits = replace(_to_splits(table, seed), unreadable=tuple(unreadable), stream=stream)
    if limit is not None and stream is not None:
        raise DataError(f"a stream is read as a whole; leave --limit out, or let {data} be stored with hf: in its name")
    if limit is not None:
        keep = stratified_subset(labels_of(splits.train), limit, seed)
        splits = replace(splits, train=splits.train.select(keep))
    _check_counts(splits)
    return splits


def load_scored_images(data: str, class_names: tuple[str, ...], columns: TableColumns | None = None) -> ImageSplits:
    """Return the images to score a model on, as the `test` split: the data's test split if it has one, else all.

    Labels are indices into the model's `class_names`.

    Raises:
        DataError: a class that the model does not know.
    """
    loaded, _ = _load_any(data, columns or TableColumns(), 0)
    table, unreadable = _without_unreadable(loaded, data)
    if table.splits is not None and "test" in table.splits:
        table = table.select([number for number, split in enumerate(table.splits) if split == "test"])
    unknown = sorted(set(table.labels) - set(class_names))
    if unknown:
        raise DataError(
            f"{data} has classes that the model does not know: {_listed(unknown)}; it knows "
            f"{_listed(list(class_names))}"
        )
    everything = _to_dataset(table, class_names)
    return ImageSplits(
        train=everything.select([]),
        validation=None,
        test=everything,
        class_names=class_names,
        unreadable=tuple(unreadable),
    )


def label_paths(paths: list[str], labels: list[str], groups: list[str] | None = None, seed: int = 0) -> ImageSplits:
    """Return splits without a test split of `paths` and their class names, as `ImageClassifier.fit` needs them.

    Raises:
        DataError: not one label (and group) for each path, no image that can be read, one class, ...
    """
    for what, values in (("labels", labels), ("groups", groups)):
        if values is not None and len(values) != len(paths):
            raise DataError(f"{len(paths)} paths and {len(values)} {what} were given; give one for each path")
    table = LabelledTable(sources=list(paths), labels=list(labels), groups=groups, splits=["train"] * len(paths))
    if not paths:
        raise DataError("no paths were given; give the image files and their labels")
    readable, unreadable = _without_unreadable(table, "the given paths")
    splits = replace(_to_splits(readable, seed), unreadable=tuple(unreadable))
    _check_counts(splits)
    return splits


def table_of_paths(paths: list[str]) -> Dataset:
    """Return an unlabelled table of image files.

    Raises:
        DataError: a file that is not there or can not be read as an image.
    """
    for path, reason in zip(paths, why_unreadable(paths), strict=True):
        if reason is not None:
            raise DataError(f"{path} can not be read as an image: {reason}")
    rows = [{"path": path, "bytes": None} for path in paths]
    return Dataset.from_dict({"image": rows}, features=Features({"image": ImageFeature(decode=False)}))


def _load_any(data: str, columns: TableColumns, seed: int) -> tuple[LabelledTable, ImageStream | None]:
    if data.startswith("stream:"):
        return load_stream(data.removeprefix("stream:"), columns, SPLIT_NAMES, seed)
    return _load_stored(data, columns), None


def _load_stored(data: str, columns: TableColumns) -> LabelledTable:
    if data.startswith("demo:"):
        return _load_folder(_demo(data.removeprefix("demo:")))
    if data.startswith("hf:"):
        return load_hub_table(data.removeprefix("hf:"), columns, SPLIT_NAMES)
    path = Path(data).expanduser()
    if not path.exists():
        raise DataError(f"there is no folder or file {data}; give a folder with one subfolder of images for each class")
    if path.is_file():
        return load_table(path, columns, SPLIT_NAMES)
    return _load_folder(path)


def _load_folder(root: Path) -> LabelledTable:
    splits = _split_folders(root)
    folders = [(split, folder) for split, folder in splits.items()] if splits else [(None, root)]
    sources: list[Any] = []
    labels: list[str] = []
    names: list[str] = []
    for split, folder in folders:
        for class_folder in sorted(entry for entry in folder.iterdir() if _is_class_folder(entry)):
            files = files_below(class_folder)
            sources += files
            labels += [class_folder.name] * len(files)
            names += [split or ""] * len(files)
    if not sources:
        raise DataError(_nothing_found(root))
    return LabelledTable(sources=sources, labels=labels, splits=names if splits else None)


def _split_folders(root: Path) -> dict[str, Path]:
    """Return the split folders of a tree, or {} if it is flat: a class may be called `train`, too."""
    found: dict[str, Path] = {}
    for entry in sorted(root.iterdir()):
        split = SPLIT_NAMES.get(entry.name.lower())
        if split and entry.is_dir() and any(_is_class_folder(child) for child in entry.iterdir()):
            if split in found:
                raise DataError(f"{root} has two folders for the {split} split: {found[split].name} and {entry.name}")
            found[split] = entry
    if found and "train" not in found:
        if len(found) > 1:
            raise DataError(f"{root} has {_listed(sorted(found))} but no train folder")
        found = {"test": next(iter(found.values()))} if "test" in found else {}
    if len(found) == 1:
        (alone,) = found.values()
        beside = [entry for entry in sorted(root.iterdir()) if entry != alone and _is_class_folder(entry)]
        others = [entry.name for entry in beside if entry.name.lower() not in SPLIT_NAMES and files_below(entry)]
        if others:
            raise DataError(
                f"{root} has the folder {alone.name}, with classes in it, beside {_listed(others)}; if {alone.name} is "
                f"a split, give it alone: --data {alone}; if it is a class, rename it"
            )
    return found


def _is_class_folder(entry: Path) -> bool:
    return entry.is_dir() and not entry.name.startswith(".") and entry.name != "__MACOSX"


def files_below(folder: Path) -> list[str]:
    """Return the sorted paths of all files in and below a folder that may be images: no hidden ones, no side files."""
    files: list[str] = []
    for parent, directories, names in os.walk(folder, followlinks=True):
        directories[:] = sorted(name for name in directories if not name.startswith("."))
        files += [
            os.path.join(parent, name)  # noqa: PTH118  (a Path for each of many files takes most of an index's time)
            for name in sorted(names)
            if not name.startswith(".") and os.path.splitext(name)[1].lower() not in SIDE_FILES  # noqa: PTH122
        ]
    return files


def _nothing_found(root: Path) -> str:
    loose = [entry for entry in root.iterdir() if entry.is_file() and entry.suffix.lower() not in SIDE_FILES]
    if loose:
        return (
            f"{root} holds {len(loose)} files but no class folders; "
            f"put the images of each class into a subfolder named after the class, or give a table with path and label"
        )
    return f"{root} is empty; expected one subfolder of images for each class"


def _demo(name: str) -> Path:
    """Return the folder of the embedded demo, written on first use."""
    if name != "digits":
        raise DataError(f"there is no demo '{name}'; the embedded demo is demo:digits")
    from PIL import Image
    from sklearn.datasets import load_digits

    root = cache_folder() / name
    if root.exists():
        return root
    digits = load_digits()
    partial = root.with_name(f"digits-{os.getpid()}")
    for number, (pixels, label) in enumerate(zip(digits.images, digits.target, strict=True)):
        folder = partial / str(label)
        folder.mkdir(parents=True, exist_ok=True)
        # The scans have 17 grey levels, dark ink as high values.
        Image.fromarray((pixels * (255 / 16)).round().astype(np.uint8)).save(folder / f"{number:04d}.png")
    try:
        partial.rename(root)
    except OSError:  # another process was faster, and wrote the same
        if not root.exists():
            raise
    return root


def _without_unreadable(table: LabelledTable, data: str) -> tuple[LabelledTable, list[Unreadable]]:
    if not table.labels:
        raise DataError(f"{data} has no rows")
    reasons = why_unreadable(table.sources)
    unreadable = [
        Unreadable(path=table.name(number), reason=reason)
        for number, reason in enumerate(reasons)
        if reason is not None
    ]
    if not unreadable:
        return table, unreadable
    if len(unreadable) == len(reasons):
        raise DataError(
            f"none of the {len(reasons)} files of {data} can be read as an image; the first is {unreadable[0].path}: "
            f"{unreadable[0].reason}"
        )
    return table.select([number for number, reason in enumerate(reasons) if reason is None]), unreadable


def _to_splits(table: LabelledTable, seed: int) -> ImageSplits:
    found = set(table.labels)
    class_names = tuple(name for name in table.class_names or sorted(found) if name in found)
    splits = table.splits
    if splits is None:
        everything = _to_dataset(table, class_names)
        _check_counts(ImageSplits(train=everything, validation=None, test=None, class_names=class_names), least=3)
        stay, held = stratified_holdout(labels_of(everything), TEST_FRACTION, seed, groups_of(everything))
        return ImageSplits(
            train=everything.select(stay),
            validation=None,
            test=everything.select(held),
            class_names=class_names,
            test_was_made=True,
        )
    members = {
        name: [number for number, split in enumerate(splits) if split == name]
        for name in ("train", "validation", "test")
    }
    if not members["train"]:
        raise DataError("the data has a test split but no training images; add a train split")
    trained = {table.labels[number] for number in members["train"]}
    for name in ("validation", "test"):
        only_later = sorted({table.labels[number] for number in members[name]} - trained)
        if only_later:
            raise DataError(
                f"the {name} split has classes without any training image: {_listed(only_later)}; "
                f"add training images of them or take them out of the {name} split"
            )
    class_names = tuple(name for name in class_names if name in trained)
    parts = {name: _to_dataset(table.select(rows), class_names) for name, rows in members.items() if rows}
    return ImageSplits(
        train=parts["train"], validation=parts.get("validation"), test=parts.get("test"), class_names=class_names
    )


def _to_dataset(table: LabelledTable, class_names: tuple[str, ...]) -> Dataset:
    position = {name: number for number, name in enumerate(class_names)}
    image = ImageFeature(decode=False)
    content: dict[str, list[Any]] = {"label": [position[label] for label in table.labels]}
    features = {"label": ClassLabel(names=list(class_names))}
    if table.groups is not None:
        content["group"] = list(table.groups)
        features["group"] = Value("string")
    if isinstance(table.sources, Column):
        labelled = Dataset.from_dict(content, features=Features(features))
        return concatenate_datasets([table.sources.source, labelled], axis=1)
    content["image"] = [
        source if isinstance(source, dict) else {"path": str(source), "bytes": None} for source in table.sources
    ]
    return Dataset.from_dict(content, features=Features({"image": image, **features}))


def _check_counts(splits: ImageSplits, least: int = 2) -> None:
    counts = np.bincount(labels_of(splits.train), minlength=len(splits.class_names))
    if len(splits.class_names) < 2:
        raise DataError(
            f"there is only one class, '{splits.class_names[0]}'; a classifier needs at least two, each in its "
            f"own folder"
        )
    few = [name for name, count in zip(splits.class_names, counts, strict=True) if count < least]
    if few:
        uses = "one to learn from, one to check with" + (" and one to test with" if least == 3 else "")
        raise DataError(
            f"too few training images of {_listed(few)}: every class needs at least {least}, {uses}; add images or "
            f"leave the class out"
        )


def _listed(names: list[str], most: int = 8) -> str:
    shown = ", ".join(repr(name) for name in names[:most])
    return shown + (f" and {len(names) - most} more" if len(names) > most else "")
