"""Read Hugging Face data sets from the hub or from a local folder."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import datasets

from finetune.data.labels import read_labels
from finetune.data.table import (
    LABEL_COLUMNS,
    SPLIT_NAMES,
    LabelledTable,
    find_column,
    name_split,
    read_groups,
    refuse_straddling_groups,
)
from finetune.errors import DataError
from finetune.recipe import TableColumns


def load_hub_table(name: str, columns: TableColumns) -> LabelledTable:
    """Return the images of a Hugging Face data set with an image column and a label column.

    Columns are found by their type (Image, ClassLabel), then by their name. Classes have the order of the ClassLabel.

    Raises:
        DataError: the data set cannot be loaded, has no image column, has several labels per image, ...
    """
    images: list[datasets.Dataset] = []
    labels: list[str] = []
    splits: list[str] = []
    groups: list[str] = []
    class_names: list[str] | None = None
    grouped = False
    if columns.split is not None:
        raise DataError(f"{name}: a Hugging Face data set has its own splits; remove columns.split")
    loaded = load_dataset_dict(name)
    # The training split comes first, so that its ClassLabel decides the order of the classes.
    for split, dataset in sorted(loaded.items(), key=lambda item: SPLIT_NAMES.get(str(item[0])) != "train"):
        image_column = image_column_of(dataset, columns.path, name)
        label_column = label_column_of(dataset, columns.label, name)
        undecoded = dataset.select_columns([image_column]).cast_column(image_column, datasets.Image(decode=False))
        images.append(undecoded if image_column == "image" else undecoded.rename_column(image_column, "image"))
        feature = dataset.features[label_column]
        values = list(dataset[label_column])
        if isinstance(feature, datasets.ClassLabel):
            class_names = class_names or []
            class_names += [known for known in feature.names if known not in class_names]
            if all(value is None or value < 0 for value in values):
                raise DataError(f"{name}: images of the split '{split}' have no label; remove the split")
            values = ["" if value is None or value < 0 else feature.names[value] for value in values]
        labels += read_labels(values, label_column, declared=isinstance(feature, datasets.ClassLabel))
        splits += [name_split(str(split), name)] * len(values)
        group_column = "group" if "group" in dataset.column_names else None
        if columns.group is not None:
            group_column = find_column(dataset.column_names, columns.group, (), "group", name)
        grouped = grouped or group_column is not None
        # Without a group column in this split, each image is a group of its own.
        groups += (
            [f"{split} {row}" for row in range(len(values))]
            if group_column is None
            else read_groups(list(dataset[group_column]), f"{split} row")
        )
    if grouped:
        refuse_straddling_groups(groups, splits)
    return LabelledTable(
        sources=datasets.concatenate_datasets(images)["image"],  # read from the disk when they are needed
        labels=labels,
        splits=splits if set(splits) != {"train"} else None,
        groups=groups if grouped else None,
        class_names=class_names,
    )


def load_dataset_dict(name: str, streaming: bool = False) -> Mapping[Any, Any]:
    """Return the splits, by name, of a data set on the hub or in a local folder, stored or as streams.

    Raises:
        DataError: the data set cannot be loaded.
    """
    folder = Path(name).expanduser()
    try:
        if (folder / "dataset_dict.json").exists() or (folder / "state.json").exists():
            loaded = datasets.load_from_disk(str(folder))
        else:
            loaded = datasets.load_dataset(str(folder) if folder.exists() else name, streaming=streaming)
    except Exception as error:  # the readers and the network raise exceptions of any type
        sentence = " ".join(str(error).split())[:300]
        raise DataError(
            f"the data set {name} cannot be loaded ({sentence}); offline, give the path of a local copy"
        ) from error
    splits: Mapping[Any, Any] = loaded if isinstance(loaded, dict) else {"train": loaded}
    if streaming:
        return {
            split: dataset.to_iterable_dataset() if isinstance(dataset, datasets.Dataset) else dataset
            for split, dataset in splits.items()
        }
    return splits


def image_column_of(dataset: datasets.Dataset | datasets.IterableDataset, asked: str | None, name: str) -> str:
    """Return the name of the column with images, found by its type, then by its name.

    Raises:
        DataError: there is no such column, or several.
    """
    found: list[str] = [column for column, feature in dataset.features.items() if isinstance(feature, datasets.Image)]
    if asked is not None or len(found) != 1:
        usual = ("image", "img")
        return find_column(found or dataset.column_names, asked, usual, "path", f"{name} ({len(found)} image columns)")
    return found[0]


def label_column_of(dataset: datasets.Dataset | datasets.IterableDataset, asked: str | None, name: str) -> str:
    """Return the name of the column with classes, found by its type, then by its name.

    Raises:
        DataError: there is no such column, or several, or it has several labels per image.
    """
    several = [
        column
        for column, feature in dataset.features.items()
        if isinstance(feature, datasets.List) and isinstance(feature.feature, datasets.ClassLabel)
    ]
    if several and asked in (None, *several):
        raise DataError(f"{name}: '{several[0]}' holds several labels per image; multi-label data is not supported")
    found: list[str] = [key for key, feature in dataset.features.items() if isinstance(feature, datasets.ClassLabel)]
    if asked is None and len(found) == 1:
        return found[0]
    return find_column(found or dataset.column_names, asked, LABEL_COLUMNS, "label", name)
