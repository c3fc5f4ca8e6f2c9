"""Hugging Face data sets as streams: read from where they lie while they are trained on, without being stored."""

from collections.abc import Iterator, Mapping
from itertools import count, islice

import datasets
import numpy as np

from finetune.data.decoding import ImageSource, digest_of, encoded_bytes, why_unreadable
from finetune.data.hub import image_column_of, label_column_of, load_dataset_dict
from finetune.data.splitting import stratified_holdout
from finetune.data.table import LabelledTable, name_split
from finetune.decide.workload import HELD_OUT
from finetune.errors import DataError
from finetune.recipe import TableColumns

SAMPLE = 5_000
"""Images of each split that are held in memory, encoded: what is measured, what judges, what is tested on."""

BUFFER = 1_000
"""Images among which a stream is shuffled, beside the order of its files."""


class ImageStream:
    """The training images of a stream without those that judge, in another order at each pass."""

    def __init__(self, dataset: datasets.IterableDataset, num_images: int, judging: frozenset[bytes]) -> None:
        """Read `dataset`, shuffled, with an undecoded `image` and a `label`; leave out images with these digests."""
        self._dataset = dataset
        self._judging = judging
        self.num_images = num_images
        """Training images in all."""

    def read(self, start: int) -> Iterator[tuple[ImageSource, int]]:
        """Yield image and class without end, from position `start` on; unreadable images are passed over."""
        position = 0
        for epoch in count():
            self._dataset.set_epoch(epoch)
            before = position
            for row in self._dataset:
                source: ImageSource = row["image"]
                if digest_of(encoded_bytes(source)) in self._judging or why_unreadable([source])[0] is not None:
                    continue
                if position >= start:
                    yield source, int(row["label"])
                position += 1
            if position == before:
                raise DataError("the stream has no readable training image beside those that judge")


def load_stream(
    name: str, columns: TableColumns, split_names: Mapping[str, str], seed: int
) -> tuple[LabelledTable, ImageStream | None]:
    """Return a sample of each split of a Hugging Face data set, and the stream of its training images.

    A split of at most `SAMPLE` images is the sample itself, and where that is the training split there is no stream.

    Args:
        name: hub name or local folder.
        columns: which columns hold what; found by type, then by name.
        split_names: what splits may be called.
        seed: of the sample and of the order.

    Raises:
        DataError: it can not be loaded, names no classes, or its sample lacks one of them.
    """
    sources: list[ImageSource] = []
    labels: list[str] = []
    splits: list[str] = []
    class_names: list[str] = []
    streamed: datasets.IterableDataset | None = None
    num_images = 0
    for split, dataset in load_dataset_dict(name, streaming=True).items():
        label_column = label_column_of(dataset, columns.label, name)
        class_names = _class_names(dataset, label_column, name)
        kind = name_split(str(split), split_names, name)
        shuffled = _plain(dataset, image_column_of(dataset, columns.path, name), label_column).shuffle(
            seed=seed, buffer_size=BUFFER
        )
        rows = list(islice(shuffled, SAMPLE + 1))
        goes_on, rows = len(rows) > SAMPLE, rows[:SAMPLE]
        if any(row["label"] is None or row["label"] < 0 for row in rows):
            raise DataError(f"{name}: images of the split '{split}' have no label; take the split out")
        sources += [row["image"] for row in rows]
        labels += [class_names[row["label"]] for row in rows]
        splits += [kind] * len(rows)
        if kind == "train" and goes_on:
            streamed, num_images = shuffled, _size(dataset, str(split), label_column)
    table = LabelledTable(
        sources=sources, labels=labels, splits=splits if set(splits) != {"train"} else None, class_names=class_names
    )
    if streamed is None:
        return table, None
    judged = _with_judges(table, class_names, name, seed)
    judging = frozenset(
        digest_of(encoded_bytes(source))
        for source, split in zip(judged.sources, judged.splits or (), strict=True)
        if split == "validation"
    )
    return judged, ImageStream(streamed, num_images, judging)


def _with_judges(table: LabelledTable, class_names: list[str], name: str, seed: int) -> LabelledTable:
    """Hold a part of the training sample out, unless there is a validation split."""
    splits = list(table.splits or ["train"] * len(table.labels))
    train = [number for number, split in enumerate(splits) if split == "train"]
    trained = [table.labels[number] for number in train]
    missing = [known for known in class_names if known not in trained]
    if missing:
        raise DataError(
            f"{name}: the first {len(train)} images of the shuffled stream show none of {len(missing)} classes, such "
            f"as '{missing[0]}'; shuffle the data set, or let it be stored with hf:{name}"
        )
    if "validation" not in splits:
        _, held = stratified_holdout(np.unique(trained, return_inverse=True)[1], HELD_OUT, seed)
        for number in held:
            splits[train[number]] = "validation"
    return LabelledTable(sources=table.sources, labels=table.labels, splits=splits, class_names=table.class_names)


def _plain(dataset: datasets.IterableDataset, image_column: str, label_column: str) -> datasets.IterableDataset:
    """Return the two columns by their usual names, images undecoded."""
    selected = dataset.select_columns([image_column, label_column])
    names = {image_column: "image", label_column: "label"}
    renamed = selected.rename_columns({old: new for old, new in names.items() if old != new})
    return renamed.cast_column("image", datasets.Image(decode=False))


def _class_names(dataset: datasets.IterableDataset, label_column: str, name: str) -> list[str]:
    feature = dataset.features[label_column] if dataset.features else None
    if not isinstance(feature, datasets.ClassLabel):
        raise DataError(
            f"{name}: the classes of a stream must be known beforehand, but column '{label_column}' is no ClassLabel; "
            f"let the data set be stored with hf:{name}"
        )
    return list(feature.names)


def _size(dataset: datasets.IterableDataset, split: str, label_column: str) -> int:
    """Return how many images a split has: as it says itself, or counted by its labels."""
    known = (dataset.info.splits or {}).get(split)
    if known is not None and known.num_examples:
        return int(known.num_examples)
    return sum(1 for _ in dataset.select_columns([label_column]))
