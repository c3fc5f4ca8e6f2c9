"""Read a Hugging Face data set as a stream during the training, without storing it."""

from collections.abc import Iterator
from itertools import count, islice

import datasets
import numpy as np

from finetune.data.decoding import ImageSource, digest_of, encoded_bytes
from finetune.data.hub import image_column_of, label_column_of, load_dataset_dict
from finetune.data.scanning import why_unreadable
from finetune.data.splitting import stratified_holdout
from finetune.data.table import LabelledTable, name_split
from finetune.decide.workload import HELD_OUT
from finetune.errors import DataError
from finetune.recipe import TableColumns

SAMPLE = 5_000
"""Largest number of encoded images of each split that are held in memory: the sample for the measurement, the held-out
images and the test images."""

BUFFER = 1_000
"""Size of the buffer in which a stream is shuffled, in images; the order of the stream's files is shuffled, too."""


class ImageStream:
    """The training images of a stream without the held-out ones, in a new order in each pass."""

    def __init__(self, dataset: datasets.IterableDataset, num_images: int, held_out: frozenset[bytes]) -> None:
        """Read from a shuffled data set with the columns `image` (undecoded) and `label`.

        Args:
            dataset: the training split.
            num_images: number of images in the split.
            held_out: digests of the held-out images, which are skipped.
        """
        self._dataset = dataset
        self._held_out = held_out
        self.num_images = num_images
        """Number of training images, the held-out ones included."""

    def read(self, start: int) -> Iterator[tuple[ImageSource, int]]:
        """Yield pairs of an image and its class index without end, starting at position `start`; unreadable images are
        skipped.

        Raises:
            DataError: there is no readable image.
        """
        # A position counts the images that are not skipped, so that a position is the same image in every run with the
        # same seed.
        position = 0
        for epoch in count():
            self._dataset.set_epoch(epoch)
            before = position
            for row in self._dataset:
                source: ImageSource = row["image"]
                if digest_of(encoded_bytes(source)) in self._held_out or why_unreadable([source])[0] is not None:
                    continue
                if position >= start:
                    yield source, int(row["label"])
                position += 1
            if position == before:
                raise DataError("the stream has no readable training image except the held-out ones")


def load_stream(name: str, columns: TableColumns, seed: int) -> tuple[LabelledTable, ImageStream | None]:
    """Return a sample of each split of a Hugging Face data set, and the stream of its training images.

    A split of at most `SAMPLE` images is sampled whole; if this is the training split, there is no stream.

    Args:
        name: hub name or local folder.
        columns: names of the columns; by default they are found by type and name.
        seed: seed of the sample and of the order of the images.

    Raises:
        DataError: the data set cannot be loaded, its classes have no names, or the sample lacks a class.
    """
    sources: list[ImageSource] = []
    labels: list[str] = []
    splits: list[str] = []
    class_names: list[str] = []
    streamed: datasets.IterableDataset | None = None
    num_images = 0
    if columns.delimiter is not None or columns.labels is not None:
        raise DataError(f"a stream is read with one label per image alone; store the data set with hf:{name}")
    for split, dataset in load_dataset_dict(name, streaming=True).items():
        label_column = label_column_of(dataset, columns.label, name)
        class_names = _class_names(dataset, label_column, name)
        kind = name_split(str(split), name)
        shuffled = _plain(dataset, image_column_of(dataset, columns.path, name), label_column).shuffle(
            seed=seed, buffer_size=BUFFER
        )
        # One image more than the sample shows whether the split is longer.
        rows = list(islice(shuffled, SAMPLE + 1))
        is_longer, rows = len(rows) > SAMPLE, rows[:SAMPLE]
        if any(row["label"] is None or row["label"] < 0 for row in rows):
            raise DataError(f"{name}: images of the split '{split}' have no label; remove the split")
        sources += [row["image"] for row in rows]
        labels += [class_names[row["label"]] for row in rows]
        splits += [kind] * len(rows)
        if kind == "train" and is_longer:
            streamed, num_images = shuffled, _size(dataset, str(split), label_column)
    table = LabelledTable(
        sources=sources, labels=labels, splits=splits if set(splits) != {"train"} else None, class_names=class_names
    )
    if streamed is None:
        return table, None
    table = _with_validation(table, class_names, name, seed)
    # The stream also contains the sampled images; the held-out ones are recognised by their digests.
    held_out = frozenset(
        digest_of(encoded_bytes(source))
        for source, split in zip(table.sources, table.splits or (), strict=True)
        if split == "validation"
    )
    return table, ImageStream(streamed, num_images, held_out)


def _with_validation(table: LabelledTable, class_names: list[str], name: str, seed: int) -> LabelledTable:
    """Return the table with a validation split: the data set's own, or a held-out part of the training sample."""
    splits = list(table.splits or ["train"] * len(table.labels))
    train = [number for number, split in enumerate(splits) if split == "train"]
    trained = [table.labels[number] for number in train]
    missing = [known for known in class_names if known not in trained]
    if missing:
        raise DataError(
            f"{name}: the first {len(train)} images of the shuffled stream show none of {len(missing)} classes, such "
            f"as '{missing[0]}'; shuffle the data set, or store it with hf:{name}"
        )
    if "validation" not in splits:
        _, held_out = stratified_holdout(np.unique(trained, return_inverse=True)[1], HELD_OUT, seed)
        for number in held_out:
            splits[train[number]] = "validation"
    return LabelledTable(sources=table.sources, labels=table.labels, splits=splits, class_names=table.class_names)


def _plain(dataset: datasets.IterableDataset, image_column: str, label_column: str) -> datasets.IterableDataset:
    """Return the two columns under the names `image` and `label`, with undecoded images."""
    selected = dataset.select_columns([image_column, label_column])
    names = {image_column: "image", label_column: "label"}
    renamed = selected.rename_columns({old: new for old, new in names.items() if old != new})
    return renamed.cast_column("image", datasets.Image(decode=False))


def _class_names(dataset: datasets.IterableDataset, label_column: str, name: str) -> list[str]:
    """Return the names of the classes in the order of the ClassLabel."""
    feature = dataset.features[label_column] if dataset.features else None
    if isinstance(feature, datasets.List):
        raise DataError(
            f"{name}: '{label_column}' holds several labels per image, which a stream does not read; store the data "
            f"set with hf:{name}"
        )
    if not isinstance(feature, datasets.ClassLabel):
        raise DataError(
            f"{name}: the classes of a stream must be known in advance, but '{label_column}' is not a ClassLabel; "
            f"store the data set with hf:{name}"
        )
    return list(feature.names)


def _size(dataset: datasets.IterableDataset, split: str, label_column: str) -> int:
    """Return the number of images in a split, from the data set's description or by counting the labels."""
    known = (dataset.info.splits or {}).get(split)
    if known is not None and known.num_examples:
        return int(known.num_examples)
    return sum(1 for _ in dataset.select_columns([label_column]))
