"""Give each image of a table its group, by the rule that the recipe names."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from finetune.data.decoding import in_threads, read_exif
from finetune.data.grouping import BLOCKS, EXIF, group_by_path, is_table
from finetune.data.table import LabelledTable, read_columns, refuse_straddling_groups
from finetune.errors import DataError

GROUPS_FILE = "groups.csv"
"""Table in the data folder that is read by default."""


def groups_by_rule(rule: str, paths: Sequence[str], labels: Sequence[str], root: str = "") -> list[str | None]:
    """Return the group of each image, or None where the rule finds none.

    Args:
        rule: `folder`, a pattern, `blocks:` and a pattern, or `exif:` and what to read.
        paths: file of each image.
        labels: name of each image's class.
        root: the data folder, to which patterns are relative.
    """
    if rule.startswith(EXIF):
        return in_threads(lambda path: read_exif(path, rule.removeprefix(EXIF)), paths)
    return group_by_path(rule, relative(paths, root), labels)


def relative(paths: Sequence[str], root: str) -> list[str]:
    """Return paths relative to the data folder, with `/` between folders."""
    start = Path(root).as_posix() + "/"
    return [path.replace("\\", "/").removeprefix(start) for path in paths]


def with_groups(table: LabelledTable, rule: str, data: str) -> tuple[LabelledTable, str]:
    """Return a table with the group of each image, and the rule that gave it; "" if the images have no groups.

    Under `auto` the groups are those of a group column or, if there is none, of `groups.csv` in the data folder.

    Raises:
        DataError: images have no group, all have one, or each has its own; or a declared group is in several splits.
    """
    root = Path(data).expanduser()
    root = root.parent if root.is_file() else root
    if rule == "auto":
        rule = "column" if table.groups is not None else GROUPS_FILE if (root / GROUPS_FILE).is_file() else "none"
    if rule == "none":
        return replace(table, groups=None), ""
    if rule == "column" and table.groups is None:
        raise DataError(f"groups: {data} has no group column; name it with --set columns.group=NAME")
    if rule == "column":
        return table, rule
    paths = [table.name(row) for row in range(len(table.labels))]
    if is_table(rule):
        groups = _read_groups(rule, root, paths)
        if table.splits is not None:
            refuse_straddling_groups(groups, [*table.splits])
    else:
        groups = _by_split(rule, table, paths, root)
    if len({*groups}) in {1, len(groups)}:
        which = "one group to all images" if len({*groups}) == 1 else "every image a group of its own"
        raise DataError(f"groups: {rule!r} gives {which}; give a rule that tells apart what images share, or none")
    return replace(table, groups=groups), rule


def _by_split(rule: str, table: LabelledTable, paths: list[str], root: Path) -> list[str]:
    """Return the group of each image by a rule, which is applied to each split on its own."""
    splits = table.splits or [""] * len(paths)
    groups: list[str | None] = [None] * len(paths)
    for split in {*splits}:
        rows = [row for row, own in enumerate(splits) if own == split]
        found = groups_by_rule(rule, [paths[row] for row in rows], [table.labels[row] for row in rows], str(root))
        for row, group in zip(rows, found, strict=True):
            # Blocks are counted anew in each split: block 3 of one is not that of another.
            groups[row] = f"{split} {group}" if group is not None and rule.startswith(BLOCKS) else group
    missing = [path for path, group in zip(relative(paths, str(root)), groups, strict=True) if group is None]
    if missing:
        many = "none" if len(missing) == len(paths) else f"{len(paths) - len(missing)}"
        raise DataError(
            f"groups: {rule!r} finds a group for {many} of {len(paths)} images, and not for {missing[0]}; give a rule "
            f"that fits the path of every image, relative to the data folder"
        )
    return [group for group in groups if group is not None]


def _read_groups(rule: str, root: Path, paths: list[str]) -> list[str]:
    """Return the group of each image from a table with the columns path and group."""
    file = next((place for place in (root / rule, Path(rule).expanduser()) if place.is_file()), None)
    if file is None:
        raise DataError(f"groups: there is no table {rule}, neither here nor in {root}")
    listed, groups = read_columns(file, "path", "group")
    group_of = dict(zip(relative(listed, str(root)), groups, strict=True))
    named = relative(paths, str(root))
    missing = [path for path in named if not group_of.get(path)]
    if missing:
        raise DataError(
            f"groups: {file} has no group for {len(missing)} of {len(paths)} images, such as {missing[0]}; list every "
            f"image by its path relative to {root}"
        )
    return [group_of[path] for path in named]
