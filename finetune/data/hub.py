"""Read Hugging Face data sets from the hub or from a local folder."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import datasets

from finetune.data.label_sets import read_sets
from finetune.data.labels import read_labels
from finetune.data.table import (
    LABEL_COLUMNS,
    SPLIT_NAMES,
    LabelledTable,
    Labelling,
    find_column,
    labelling_of_sets,
    name_split,
    read_groups,
    read_labelling,
    refuse_straddling_groups,
)
from finetune.errors import DataError
from finetune.recipe import TableColumns


def load_hub_table(name: str, columns: TableColumns) -> LabelledTable:
    """Return the images of a Hugging Face data set with an image column and a label column.

    Columns are found by their type (Image, ClassLabel), then by their name. Classes have the order of the ClassLabel.

    Raises:
        DataError: the data set cannot be loaded, has no image column, ...
    """
    images: list[datasets.Dataset] = []
    parts: list[Labelling] = []
    splits: list[str] = []
    groups: list[str] = []
    grouped = False
    if columns.split is not None:
        raise DataError(f"{name}: a Hugging Face data set has its own splits; remove columns.split")
    loaded = load_dataset_dict(name)
    # The training split comes first, so that its ClassLabel decides the order of the classes.
    for split, dataset in sorted(loaded.items(), key=lambda item: SPLIT_NAMES.get(str(item[0])) != "train"):
        image_column = image_column_of(dataset, columns.path, name)
        undecoded = dataset.select_columns([image_column]).cast_column(image_column, datasets.Image(decode=False))
        images.append(undecoded if image_column == "image" else undecoded.rename_column(image_column, "image"))
        parts.append(_labelling_of(dataset, str(split), columns, name))
        splits += [name_split(str(split), name)] * len(dataset)
        group_column = "group" if "group" in dataset.column_names else None
        if columns.group is not None:
            group_column = find_column(dataset.column_names, columns.group, (), "group", name)
        grouped = grouped or group_column is not None
        # Without a group column in this split, each image is a group of its own.
        groups += (
            [f"{split} {row}" for row in range(len(dataset))]
            if group_column is None
            else read_groups(list(dataset[group_column]), f"{split} row")
        )
    if grouped:
        refuse_straddling_groups(groups, splits)
    found = _joined(parts)
    return LabelledTable(
        sources=datasets.concatenate_datasets(images)["image"],  # read from the disk when they are needed
        labels=found.labels,
        sets=found.sets,
        splits=splits if set(splits) != {"train"} else None,
        groups=groups if grouped else None,
        class_names=found.class_names,
        notes=found.notes,
    )


def _labelling_of(dataset: datasets.Dataset, split: str, columns: TableColumns, name: str) -> Labelling:
    """Return which labels the images of a split have."""
    if columns.labels is not None or columns.delimiter is not None:
        texts = [key for key, feature in dataset.features.items() if not isinstance(feature, datasets.Image)]
        return read_labelling({key: list(dataset[key]) for key in texts}, columns, name)
    label_column = label_column_of(dataset, columns.label, name)
    feature, values = dataset.features[label_column], list(dataset[label_column])
    if isinstance(feature, datasets.List):
        known = feature.feature.names if isinstance(feature.feature, datasets.ClassLabel) else None
        given = [[each for each in value or () if each is not None] for value in values]
        named = given if known is None else [[known[each] for each in value if each >= 0] for value in given]
        sets = read_sets(named, label_column, None)
        return labelling_of_sets(sets, f"column '{label_column}', lists", known and list(known))
    if not isinstance(feature, datasets.ClassLabel):
        return Labelling(read_labels(values, label_column))
    if all(value is None or value < 0 for value in values):
        raise DataError(f"{name}: images of the split '{split}' have no label; remove the split")
    values = ["" if value is None or value < 0 else feature.names[value] for value in values]
    return Labelling(read_labels(values, label_column, declared=True), class_names=list(feature.names))


def _joined(parts: Sequence[Labelling]) -> Labelling:
    """Return what is known about the labels of all splits, the first of which decides the order of the classes."""
    named = [part.class_names for part in parts if part.class_names is not None]
    sets = [part.sets for part in parts if part.sets is not None]
    return Labelling(
        labels=[label for part in parts for label in part.labels],
        sets=[each for part in sets for each in part] if sets else None,
        class_names=list(dict.fromkeys(name for part in named for name in part)) if named else None,
        source=parts[0].source,
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
        DataError: there is no such column, or several.
    """
    found: list[str] = [key for key, feature in dataset.features.items() if _is_class(feature)]
    if asked is None and len(found) == 1:
        return found[0]
    return find_column(found or dataset.column_names, asked, LABEL_COLUMNS, "label", name)


def _is_class(feature: object) -> bool:
    """Return whether a column holds classes, or lists of classes."""
    own = feature.feature if isinstance(feature, datasets.List) else feature
    return isinstance(own, datasets.ClassLabel)
