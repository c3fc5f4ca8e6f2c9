"""Divide a table of labelled images into training, validation and test splits."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
from datasets import ClassLabel, Dataset, Features, List, Value, concatenate_datasets
from datasets import Image as ImageFeature
from datasets.arrow_dataset import Column
from datasets.utils import are_progress_bars_disabled, disable_progress_bars, enable_progress_bars

from finetune.data.decoding import Unreadable, encoded_bytes
from finetune.data.label_sets import count_images, images_by_class, to_matrix
from finetune.data.scanning import why_undecodable
from finetune.data.splitting import LEAST_TO_HOLD_OUT, Ties, Together, stratified_holdout
from finetune.data.streaming import ImageStream
from finetune.data.table import LabelledTable
from finetune.errors import DataError, quoted_names
from finetune.names import as_unicode
from finetune.reading import AS_STORED, Reading

if TYPE_CHECKING:
    from numpy.typing import NDArray

CHECKED_SIDE = 256
"""Smallest shorter side to which images are decoded to see whether they can be, in pixels."""

PICTURE = "picture"
"""Name of the column with the number of the picture that an image shows."""

LEAST_TO_TEST = 3
"""Number of images that a class needs so that one can be tested: one more is held out, and one is trained on."""

LEAST_PICTURES = 3
"""Number of pictures that a class needs so that copies are kept together: for the test, to hold out, to train on."""

TEST_FRACTION = 0.15
"""Fraction of each class that becomes the test split, if the data has no splits."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ImageSplits:
    """Labelled images, divided into splits for training, validation and test.

    Each split is a `datasets.Dataset` with an undecoded `image`, a `label` (ClassLabel over `class_names`, the same in
    all splits; of images with sets of labels, a list with a 0 or 1 for each class) and, if there are any, a `group`.
    """

    train: Dataset
    """Training images, or a sample of them if they are streamed."""
    validation: Dataset | None
    """Validation split of the data; None if the data has none, in which case held-out images are taken from `train`
    later."""
    test: Dataset | None
    """Test split: that of the data or, if the data has no splits, a part of each class; else None."""
    class_names: tuple[str, ...]
    """Names of the classes, in the order of their indices."""
    unreadable: tuple[Unreadable, ...] = ()
    """Files that cannot be read as images and were left out."""
    left_out: tuple[Unreadable, ...] = ()
    """Images that were left out because they have no label or are copies."""
    notes: tuple[str, ...] = ()
    """Sentences about what was changed or left out when the data was read."""
    all_decoded: bool = False
    """Whether all images were decoded, and those that cannot be were left out."""
    test_was_made: bool = False
    """Whether `test` was split off from the training images because the data has no test split."""
    test_share: float = 0.0
    """Share of all images that became `test`, 0 .. 1, if it was split off."""
    allow_rare: bool = False
    """Whether classes may have too few images to be evaluated: they are trained on and never held out."""
    group_rule: str = ""
    """Rule that gave the groups, as in a recipe; empty: the images have no groups."""
    num_shared: int = 0
    """Number of validation and test images whose group also has training images."""
    reading: Reading = AS_STORED
    """How the values of the images become 8-bit channels."""
    copies: tuple[tuple[str, ...], ...] = ()
    """Changed copies of one picture that no split made here divides: the contents of their images (`contents_of`)."""
    stream: ImageStream | None = None
    """Stream of all training images if `train` is only a sample of them, else None."""

    @property
    def has_sets(self) -> bool:
        """Whether an image has any number of labels."""
        return isinstance(self.train.features["label"], List)

    @property
    def num_training_images(self) -> int:
        """Number of training images, including those that are only in the stream."""
        return len(self.train) if self.stream is None else self.stream.num_images


def labels_of(dataset: Dataset) -> "NDArray[np.int64]":
    """Return the class indices (n_images,) of a split, or its sets of labels (n_images, num_classes)."""
    found = np.asarray(dataset.with_format("numpy")["label"][:], dtype=np.int64)
    feature = dataset.features["label"]
    return found.reshape(len(dataset), feature.length) if isinstance(feature, List) else found


def groups_of(dataset: Dataset) -> "NDArray[np.str_] | None":
    """Return the groups (n_images,) of a split, or None if it has no groups."""
    return np.asarray(dataset["group"][:], dtype=str) if "group" in dataset.column_names else None


def together_of(dataset: Dataset) -> "Together | None":
    """Return what keeps the images of a split together: their groups, and the copies of one picture; None: nothing."""
    groups = groups_of(dataset)
    if PICTURE not in dataset.column_names:
        return groups
    return Ties(groups, np.asarray(dataset[PICTURE][:], dtype=np.int64))


def with_pictures(dataset: Dataset, pictures: "NDArray[np.int64]") -> Dataset:
    """Return a split with the number of the picture that each image shows, (n_images,), if some show the same one.

    Pictures of a class that has only two of them or fewer are not kept together: without them, it could not be split.
    """
    if PICTURE in dataset.column_names:
        dataset = dataset.remove_columns(PICTURE)
    pictures = pictures.copy()
    for own in images_by_class(labels_of(dataset)):
        if len(np.unique(pictures[own])) < LEAST_PICTURES:
            pictures[own] = len(pictures) + own
    if len(np.unique(pictures)) == len(pictures):
        return dataset
    return with_column(dataset, PICTURE, pictures.tolist())


def with_column(dataset: Dataset, name: str, values: list[Any]) -> Dataset:
    """Return a split with a further column, without the progress bars of `datasets` where its rows were selected."""
    was_shown = not are_progress_bars_disabled()
    disable_progress_bars()
    try:
        return dataset.add_column(name, values)
    finally:
        if was_shown:
            enable_progress_bars()


def paths_of(dataset: Dataset) -> list[str]:
    """Return the path of each image, or `image N` where it has none."""
    return [row["path"] or f"image {number}" for number, row in enumerate(dataset["image"])]


def without_undecodable(splits: ImageSplits, only_test: bool = False) -> ImageSplits:
    """Return splits without the images that pass a scan of their files and cannot be decoded; these are listed in
    `unreadable`.

    All images are decoded, which takes a hundred times as long as the scan. It is therefore done only after an image
    could not be decoded.

    Args:
        splits: labelled images.
        only_test: whether to leave the other splits as they are.

    Raises:
        DataError: of a class, too few training images are left.
    """
    parts = {"test": splits.test}
    if not only_test:
        parts |= {"train": splits.train, "validation": splits.validation}
    found: list[Unreadable] = []
    kept: dict[str, Dataset | None] = {}
    for name, part in parts.items():
        reasons = [] if part is None else why_undecodable(part["image"], CHECKED_SIDE, splits.reading)
        if part is None or not any(reasons):
            kept[name] = part
            continue
        paths = paths_of(part)
        found += [Unreadable(path=path, reason=reason) for path, reason in zip(paths, reasons, strict=True) if reason]
        left = [row for row, reason in enumerate(reasons) if reason is None]
        kept[name] = part.select(left) if left else None
    if kept.get("train", splits.train) is None:
        raise DataError(f"no training image can be decoded; the first is {found[0].path}: {found[0].reason}")
    changes: dict[str, Any] = {**kept, "unreadable": (*splits.unreadable, *found), "all_decoded": not only_test}
    decoded = replace(splits, **changes)
    if not only_test:
        check_counts(decoded)
    return decoded


def to_splits(
    table: LabelledTable, seed: int, pictures: Sequence[Sequence[int]] = (), allow_rare: bool = False
) -> ImageSplits:
    """Return the splits of a table; if the table has no splits, `TEST_FRACTION` of each class become the test split.

    Args:
        table: labelled images.
        seed: seed of the test split.
        pictures: rows that show one picture, which are not divided, for each picture that has several rows.
        allow_rare: whether classes may have too few images to be evaluated; these become training images.

    Raises:
        DataError: there is no training image, or a class has images in the validation or test split only.
    """
    found = set(table.names())
    class_names = tuple(name for name in table.class_names or sorted(found) if name in found)
    splits = table.splits
    if splits is None:
        everything = with_pictures(to_dataset(table, class_names), _number_pictures(pictures, len(table.labels)))
        whole = ImageSplits(
            train=everything, validation=None, test=None, class_names=class_names, allow_rare=allow_rare
        )
        check_counts(whole, LEAST_TO_TEST)
        labels, together = labels_of(everything), together_of(everything)
        stay, held_out = stratified_holdout(labels, TEST_FRACTION, seed, together, LEAST_TO_TEST)
        return ImageSplits(
            train=everything.select(stay),
            validation=None,
            test=everything.select(held_out),
            class_names=class_names,
            allow_rare=allow_rare,
            test_was_made=True,
            test_share=len(held_out) / len(everything),
        )
    rows_of = {
        name: [number for number, split in enumerate(splits) if split == name]
        for name in ("train", "validation", "test")
    }
    if not rows_of["train"]:
        raise DataError("the data has a test split but no training images; add a train split")
    trained = {*table.names(rows_of["train"])}
    for name in ("validation", "test"):
        only_later = sorted({*table.names(rows_of[name])} - trained)
        if only_later:
            raise DataError(
                f"the {name} split has classes without any training image: {quoted_names(only_later)}; "
                f"add training images of them or take them out of the {name} split"
            )
    # A class that the data set names but has no image of is not a class of the model.
    class_names = tuple(name for name in class_names if name in trained)
    parts = {name: to_dataset(table.select(rows), class_names) for name, rows in rows_of.items() if rows}
    numbers = _number_pictures(pictures, len(table.labels))[rows_of["train"]]
    parts["train"] = with_pictures(parts["train"], numbers)
    return ImageSplits(
        train=parts["train"],
        validation=parts.get("validation"),
        test=parts.get("test"),
        class_names=class_names,
        allow_rare=allow_rare,
    )


def _number_pictures(pictures: Sequence[Sequence[int]], count: int) -> "NDArray[np.int64]":
    """Return the first row that shows the same picture, for each of `count` rows, (count,)."""
    numbers = np.arange(count)
    for rows in pictures:
        numbers[list(rows)] = min(rows)
    return numbers


def to_dataset(table: LabelledTable, class_names: tuple[str, ...]) -> Dataset:
    """Return a table as a split; labels become indices into `class_names`, and sets become a 0 or 1 for each class."""
    image = ImageFeature(decode=False)
    content: dict[str, Any]
    if table.sets is None:
        position = {name: number for number, name in enumerate(class_names)}
        content = {"label": [position[label] for label in table.labels]}
        features = {"label": ClassLabel(names=list(class_names))}
    else:
        content = {"label": to_matrix(table.sets, class_names).tolist()}
        features = {"label": List(Value("int8"), length=len(class_names))}
    if table.groups is not None:
        content["group"] = list(table.groups)
        features["group"] = Value("string")
    if isinstance(table.sources, Column):  # images of a Hugging Face data set stay in its files
        labelled = Dataset.from_dict(content, features=Features(features))
        return concatenate_datasets([table.sources.source, labelled], axis=1)
    content["image"] = [source if isinstance(source, dict) else _row_of_file(str(source)) for source in table.sources]
    return Dataset.from_dict(content, features=Features({"image": image, **features}))


def _row_of_file(path: str) -> dict[str, Any]:
    """Return the row of an image file."""
    name = as_unicode(path)
    if name == path:
        return {"path": path, "bytes": None}
    # A data set cannot hold a path that is not UTF-8: its content is held instead.
    return {"path": name, "bytes": encoded_bytes(path)}


def check_counts(splits: ImageSplits, least: int = LEAST_TO_HOLD_OUT) -> None:
    """Check that there are two or more classes with at least `least` training images each, and no class with fewer,
    unless the splits allow rare classes.

    Raises:
        DataError: there are too few classes, or a class has too few training images.
    """
    counts = count_images(labels_of(splits.train), len(splits.class_names))
    if len(splits.class_names) < 2:
        raise DataError(
            f"there is only one class, '{splits.class_names[0]}'; a classifier needs at least two, each in its "
            f"own folder"
            if splits.class_names
            else "no training image has a label; fill in the labels"
        )
    few = [name for name, count in zip(splits.class_names, counts, strict=True) if count < least]
    uses = "one to learn from, one to check with" + (" and one to test with" if least == LEAST_TO_TEST else "")
    if few and not splits.allow_rare:
        raise DataError(
            f"too few training images of {quoted_names(few)}: every class needs at least {least}, {uses}; add images, "
            f"leave the class out, or train on it without evaluating it: --allow-rare (recipe key allow_rare)"
        )
    if len(few) > len(counts) - 2:
        raise DataError(
            f"too few training images of {quoted_names(few)}: with allow_rare, two classes at least need {least} each, "
            f"{uses}; add images"
        )


def describe_rare(splits: ImageSplits) -> tuple[str, ...]:
    """Return in one sentence which classes have too few images to be evaluated, if there are any."""
    if not splits.allow_rare:
        return ()
    counts = count_images(labels_of(splits.train), len(splits.class_names))
    least, images = LEAST_TO_HOLD_OUT, "training images"
    if splits.test is not None and splits.test_was_made:
        counts = counts + count_images(labels_of(splits.test), len(counts))
        least, images = LEAST_TO_TEST, "images"
    rare = [name for name, count in zip(splits.class_names, counts, strict=True) if count < least]
    if not rare:
        return ()
    tested = ", and none is tested" if least == LEAST_TO_TEST else ""
    return (
        f"{len(rare)} of {len(counts)} classes have fewer than {least} {images}: {quoted_names(rare)}. All of these "
        f"are trained on{tested}; the only image of a class is never held out",
    )
