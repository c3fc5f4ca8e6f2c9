"""Load labelled images from a folder, a table, a Hugging Face data set or the demo, as splits to train on."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from finetune.data.cleaning import Cleaned, clean
from finetune.data.demo import demo_folder
from finetune.data.folder import load_folder
from finetune.data.hub import load_hub_table
from finetune.data.image_splits import (
    ImageSplits,
    check_counts,
    describe_rare,
    groups_of,
    labels_of,
    paths_of,
    to_dataset,
    to_splits,
    with_column,
)
from finetune.data.kinds import describe_depth
from finetune.data.known_groups import groups_by_rule, with_groups
from finetune.data.label_sets import as_text, class_texts
from finetune.data.labels import label_text
from finetune.data.paths import check_data
from finetune.data.splitting import stratified_subset
from finetune.data.streaming import ImageStream, load_stream
from finetune.data.table import LabelledTable, Labelling, labelling_of_sets, load_table, refuse_several_labels
from finetune.data.value_range import find_range
from finetune.decide.answers import check_order
from finetune.decide.plan import Plan
from finetune.errors import DataError, RecipeError, quoted_names
from finetune.reading import AS_STORED, Reading
from finetune.recipe import TableColumns


def load_images(
    data: str,
    columns: TableColumns | None = None,
    limit: int | None = None,
    seed: int = 0,
    groups: str = "auto",
    reading: Reading = AS_STORED,
    allow_rare: bool = False,
    order: Sequence[str] | None = None,
) -> ImageSplits:
    """Return the labelled splits of `data`.

    Unreadable files are left out and listed in `unreadable`. If the data has no splits, 15 % of each class become the
    test split; groups are not divided. The splits are the same for the same files and seed.

    Args:
        data: a folder with one subfolder for each class (with or without train, val or validation, and test folders), a
            CSV, TSV or Parquet file, `demo:digits`, `hf:NAME` (a Hugging Face data set from the hub or a local folder),
            or `stream:NAME` (the same, read as a stream).
        columns: names of a table's columns; by default they are found by type and name.
        limit: number of training images to use, stratified by class; None: all.
        seed: seed of the splits that are made here.
        groups: rule for the groups, as in a recipe; `auto` reads a group column or `groups.csv`, and searches nothing.
        reading: how the values of the images become 8-bit channels: the section `image` of a recipe, or that of a plan.
        allow_rare: whether classes may have too few images to hold one out; these are trained on and not evaluated.
        order: names of all classes, the lowest grade first; None: the classes are in the order of their names.

    Raises:
        DataError: the data cannot be found, or has no images, only one class, a class with one image, ...
        RecipeError: the order has not the names of all classes, or is not for such images.
    """
    splits, cleaned = _load_splits(
        data, columns or TableColumns(), seed, groups, reading, allow_rare=allow_rare, order=order
    )
    stream = splits.stream
    if limit is not None and stream is not None:
        raise DataError(f"a stream is read as a whole; leave --limit out, or store {data} by writing hf: in its name")
    if limit is not None:
        keep = stratified_subset(labels_of(splits.train), limit, seed)
        splits = replace(splits, train=splits.train.select(keep))
    check_counts(splits)
    return _with_range(replace(splits, notes=(*splits.notes, *describe_rare(splits))), cleaned, seed)


def load_with_copies(data: str, reading: Reading = AS_STORED, columns: TableColumns | None = None) -> ImageSplits:
    """Return the labelled splits of `data` as `load_images` does, but with all copies of the same picture.

    Args:
        data: labelled images.
        reading: how the values of the images become 8-bit channels.
        columns: columns of a table; None: those with the usual names.

    Raises:
        DataError: as `load_images`, or the data is a stream.
    """
    if data.startswith("stream:"):
        raise DataError(f"images of a stream are not compared; store {data} by writing hf: in its name")
    splits, cleaned = _load_splits(data, columns or TableColumns(), 0, "auto", reading, copies=True, allow_rare=True)
    if splits.has_sets:
        raise DataError(f"an audit is of images with one label each, but those of {data} have any number")
    check_counts(splits)
    return _with_range(splits, cleaned, 0)


def load_plan_images(plan: Plan) -> ImageSplits:
    """Return the labelled splits that a plan was made for, or those that it is to be trained on.

    Raises:
        DataError: as in `load_images`.
    """
    reading = plan.preprocessing.reading
    return load_images(
        plan.data,
        plan.columns,
        plan.limit or None,
        plan.seed,
        plan.groups,
        reading,
        allow_rare=plan.allow_rare,
        order=None if plan.answers is None else plan.answers.order,
    )


def load_scored_images(
    data: str,
    class_names: tuple[str, ...],
    columns: TableColumns | None = None,
    reading: Reading = AS_STORED,
    has_sets: bool = False,
) -> ImageSplits:
    """Return the images to evaluate a trained model on, as `test`: the test split of the data, or all images if it has
    none.

    Labels are indices into the model's `class_names`, or sets of them.

    Args:
        data: labelled images, as for `load_images`.
        class_names: classes of the model.
        columns: names of a table's columns.
        reading: how the model reads the values of the images.
        has_sets: whether the model gives an image any number of labels.

    Raises:
        DataError: the data cannot be loaded, has a class that the model does not know, or sets that it does not
            give.
    """
    loaded, _ = _load_any(data, columns or TableColumns(), 0)
    cleaned = clean(loaded, data, reading=reading)
    table = _with_known_names(cleaned.table, class_names, has_sets, data)
    if table.splits is not None and "test" in table.splits:
        table = table.select([number for number, split in enumerate(table.splits) if split == "test"])
    unknown = sorted(set(table.names()) - set(class_names))
    if unknown:
        raise DataError(
            f"{data} has classes that the model does not know: {quoted_names(unknown)}; it knows "
            f"{quoted_names(list(class_names))}"
        )
    everything = to_dataset(table, class_names)
    splits = ImageSplits(
        train=everything.select([]), validation=None, test=everything, class_names=class_names, reading=reading
    )
    noted = _noted(splits, cleaned)
    return replace(noted, notes=(*noted.notes, *describe_depth(cleaned.kinds, reading)))


def label_paths(
    paths: list[str],
    labels: list[str] | list[tuple[str, ...]],
    groups: list[str] | None = None,
    seed: int = 0,
    reading: Reading = AS_STORED,
    allow_rare: bool = False,
    order: Sequence[str] | None = None,
) -> ImageSplits:
    """Return splits without a test split, made from image files and the class name of each, or its set of class names.

    Raises:
        DataError: the numbers of paths and labels (or groups) differ, no image can be read, there is only one class,
            ...
        RecipeError: the order has not the names of all classes, or is not for such images.
    """
    for what, values in (("labels", labels), ("groups", groups)):
        if values is not None and len(values) != len(paths):
            raise DataError(f"{len(paths)} paths and {len(values)} {what} were given; give one for each path")
    sets = [label for label in labels if isinstance(label, tuple)]
    found = labelling_of_sets(sets, "lists") if sets else Labelling([str(label) for label in labels])
    table = LabelledTable(
        sources=list(paths),
        labels=found.labels,
        sets=found.sets,
        groups=groups,
        splits=["train"] * len(paths),
        notes=found.notes,
    )
    if not paths:
        raise DataError("no paths were given; give the image files and their labels")
    refuse_several_labels(paths, found.labels)
    cleaned = clean(table, "the given paths", reading=reading)
    splits = to_splits(_in_order(cleaned.table, order), seed, cleaned.pictures, allow_rare)
    splits = _noted(replace(splits, group_rule="" if groups is None else "column"), cleaned)
    check_counts(splits)
    return _with_range(replace(splits, notes=(*splits.notes, *describe_rare(splits))), cleaned, seed)


def _load_splits(
    data: str,
    columns: TableColumns,
    seed: int,
    groups: str,
    reading: Reading,
    copies: bool = False,
    allow_rare: bool = False,
    order: Sequence[str] | None = None,
) -> tuple[ImageSplits, Cleaned]:
    """Return the labelled splits of `data`, with or without copies of the same picture, and what was left out."""
    if data.startswith("stream:") and order is not None:
        raise RecipeError(
            f"labels.order is not for streams; leave it out, or store {data.removeprefix('stream:')} by writing hf: "
            f"in its name"
        )
    loaded, stream = _load_any(data, columns, seed)
    cleaned = clean(loaded, data, copies=stream is None and not copies, reading=reading)
    if stream is not None and groups not in {"auto", "none"}:
        raise DataError(f"a stream has no groups; leave groups out, or store {data} by writing hf: in its name")
    table, rule = with_groups(_in_order(cleaned.table, order), groups, data)
    splits = replace(to_splits(table, seed, cleaned.pictures, allow_rare), stream=stream, group_rule=rule)
    splits = _noted(splits, cleaned)
    return replace(splits, num_shared=_num_shared(splits)), cleaned


def _in_order(table: LabelledTable, order: Sequence[str] | None) -> LabelledTable:
    """Return a table whose classes are in an order, if there is one.

    Raises:
        RecipeError: the order has not the names of all classes, or images have sets of labels.
    """
    if order is None:
        return table
    if table.sets is not None:
        raise RecipeError("labels.order is for one label per image, but these have any number; leave it out")
    check_order(order, sorted(set(table.names())))
    return replace(table, class_names=list(order))


def _with_known_names(table: LabelledTable, class_names: tuple[str, ...], has_sets: bool, data: str) -> LabelledTable:
    """Return a table with the names that the model has for the classes; for a model of sets, of one label each.

    Raises:
        DataError: images have sets of labels, but the model gives one label.
    """
    known = {label_text(name): name for name in class_names}
    if table.sets is not None and not has_sets:
        raise DataError(f"{data} has several labels per image, but the model gives one; evaluate it on other data")
    if not has_sets:
        return replace(table, labels=[known.get(label, label) for label in table.labels])
    given = table.sets if table.sets is not None else [(label,) for label in table.labels]
    sets = [tuple(known.get(name, name) for name in names) for names in given]
    return replace(table, sets=sets, labels=list(map(as_text, sets)))


def group_training_images(splits: ImageSplits, rule: str) -> ImageSplits:
    """Return splits whose training images have the groups that a rule finds in their paths."""
    names = class_texts(labels_of(splits.train), splits.class_names)
    groups = groups_by_rule(rule, paths_of(splits.train), names)
    return replace(splits, train=with_column(splits.train, "group", groups), group_rule=rule)


def _noted(splits: ImageSplits, cleaned: Cleaned) -> ImageSplits:
    """Return splits that list what was left out."""
    return replace(splits, unreadable=cleaned.unreadable, left_out=cleaned.left_out, notes=cleaned.notes)


def _with_range(splits: ImageSplits, cleaned: Cleaned, seed: int) -> ImageSplits:
    """Return splits whose images are all read with the same range, that of the training images if none is given."""
    reading = cleaned.reading
    if not any(kind.needs_range(reading) for kind in cleaned.kinds):
        idle = ("no image is deeper than 8 bits, so image.range changes nothing",) if reading.ranges else ()
        return replace(splits, reading=reading, notes=(*splits.notes, *idle))
    reading, notes = find_range(splits.train["image"], labels_of(splits.train), reading, seed)
    return replace(splits, reading=reading, notes=(*splits.notes, *notes))


def _num_shared(splits: ImageSplits) -> int:
    """Return the number of validation and test images whose group also has training images."""
    known = set() if (own := groups_of(splits.train)) is None else {*own.tolist()}
    parts = [groups_of(part) for part in (splits.validation, splits.test) if part is not None and known]
    return sum(group in known for part in parts if part is not None for group in part.tolist())


def _load_any(data: str, columns: TableColumns, seed: int) -> tuple[LabelledTable, ImageStream | None]:
    if data.startswith("stream:"):
        return load_stream(data.removeprefix("stream:"), columns, seed)
    return _load_stored(data, columns), None


def _load_stored(data: str, columns: TableColumns) -> LabelledTable:
    if data.startswith("demo:"):
        return load_folder(demo_folder(data.removeprefix("demo:")))
    if data.startswith("hf:"):
        return load_hub_table(data.removeprefix("hf:"), columns)
    check_data(data)
    path = Path(data).expanduser()
    return load_table(path, columns) if path.is_file() else load_folder(path)
