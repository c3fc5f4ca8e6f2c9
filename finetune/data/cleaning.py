"""Leave out what must not count: images without a label, files that cannot be read, and copies of the same picture."""

import os
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Any

from finetune.data.all_channels import resolve_channels
from finetune.data.decoding import ImageSource, Unreadable, digest_of, encoded_bytes, in_threads
from finetune.data.kinds import Kind, describe_kinds
from finetune.data.labels import describe_merged, label_text
from finetune.data.scanning import Scan, scan
from finetune.data.table import LabelledTable
from finetune.errors import DataError, quoted_names
from finetune.reading import AS_STORED, Reading

RANKS = {"test": 0, "validation": 1, "train": 2}
"""Which of two copies stays: that of the test, so that a published test split is not changed for a training image."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Cleaned:
    """The rows of a table that count, and what was left out."""

    table: LabelledTable
    """The rows that count."""
    unreadable: tuple[Unreadable, ...]
    """Files that cannot be read as images."""
    left_out: tuple[Unreadable, ...]
    """Images without a label, and copies."""
    notes: tuple[str, ...]
    """Sentences about what was changed or left out, except for single unreadable files."""
    kinds: frozenset[Kind]
    """Kinds of the images that can be read."""
    pictures: tuple[tuple[int, ...], ...]
    """Rows of the table that show one picture, for each picture that is in several classes."""
    reading: Reading
    """How the images are read; it lists all channels if it was to read all of them."""


def clean(table: LabelledTable, data: str, copies: bool = True, reading: Reading = AS_STORED) -> Cleaned:
    """Return the rows of a table that count.

    Args:
        table: labelled images.
        data: name of the data in errors.
        copies: whether to compare the images' contents.
        reading: how the values of the images become 8-bit channels.

    Raises:
        DataError: no row is left, or no training image that is not also one of the test.
    """
    if not table.labels:
        raise DataError(f"{data} has no rows; give at least two labelled images of each class")
    notes = [*table.notes, *describe_merged(dict.fromkeys(table.labels))]
    labels = [label_text(label) for label in table.labels]
    named = labels if table.sets is None else table.names()
    names = None if table.class_names is None else list(dict.fromkeys(map(label_text, table.class_names)))
    notes += _describe_unused(names or (), named)
    table = replace(table, labels=labels, class_names=names)
    labelled, unlabelled = _without_unlabelled(table, data)
    reading, refused, said = resolve_channels(labelled, reading)
    readable, unreadable, scanned = without_unreadable(labelled, data, reading, refused)
    kinds = [each.kind for each in scanned if each.kind is not None]
    pictures = same_content(readable.sources) if copies else []
    stay, doubled = _without_copies(readable, pictures, data)
    notes += _describe_unlabelled(unlabelled)
    notes += _describe_lost(labelled, readable)
    if num_broken := sum(each.has_broken_metadata for each in scanned):
        notes.append(
            f"metadata of {_counted(num_broken, 'file')} cannot be read: the pixels are used as they are stored"
        )
    notes += [*said, *describe_kinds(kinds, reading)]
    notes += _describe_copies(doubled)
    notes += _describe_contradictions(readable, pictures)
    left_out = [*unlabelled, *(Unreadable(path=copy.path, reason=copy.reason) for copy in doubled)]
    return Cleaned(
        table=readable if not doubled else readable.select(stay),
        unreadable=unreadable,
        left_out=tuple(left_out),
        notes=tuple(notes),
        kinds=frozenset(kinds),
        pictures=_pictures_left(pictures, stay),
        reading=reading,
    )


def without_unreadable(
    table: LabelledTable, data: str, reading: Reading = AS_STORED, refused: Mapping[int, str] = MappingProxyType({})
) -> tuple[LabelledTable, tuple[Unreadable, ...], list[Scan]]:
    """Return the readable rows of a table, the files that cannot be read, and what a scan found of those that can.

    Args:
        table: labelled images.
        data: name of the data in errors.
        reading: how the values of the images become 8-bit channels.
        refused: reason why a row cannot be used, whatever the scan finds.

    Raises:
        DataError: no image can be read.
    """
    found = [Scan(refused[row]) if row in refused else each for row, each in enumerate(scan(table.sources, reading))]
    unreadable = tuple(
        Unreadable(path=table.name(row), reason=each.reason)
        for row, each in enumerate(found)
        if each.reason is not None
    )
    scanned = [each for each in found if each.reason is None]
    if not unreadable:
        return table, unreadable, scanned
    if not scanned:
        raise DataError(
            f"none of the {len(found)} files of {data} can be read as an image; the first is {unreadable[0].path}: "
            f"{unreadable[0].reason}"
        )
    return table.select([row for row, each in enumerate(found) if each.reason is None]), unreadable, scanned


def _without_unlabelled(table: LabelledTable, data: str) -> tuple[LabelledTable, tuple[Unreadable, ...]]:
    missing = [row for row, label in enumerate(table.labels) if not label]
    if not missing:
        return table, ()
    if len(missing) == len(table.labels):
        raise DataError(f"none of the {len(missing)} images of {data} has a label; fill in the labels")
    kept = table.select([row for row, label in enumerate(table.labels) if label])
    return kept, tuple(Unreadable(path=table.name(row), reason="it has no label") for row in missing)


def _describe_unlabelled(unlabelled: Sequence[Unreadable]) -> list[str]:
    count = len(unlabelled)
    if not count:
        return []
    verbs = "has no label and is" if count == 1 else "have no label and are"
    return [f"{_counted(count, 'image')} {verbs} left out; the first is {unlabelled[0].path}"]


def _describe_unused(names: Sequence[str], labels: Sequence[str]) -> list[str]:
    """Return a sentence about the classes that a data set names and has no image of."""
    unused = sorted({*names} - {*labels})
    if not unused:
        return []
    names_them = "a class" if len(unused) == 1 else f"{len(unused)} classes"
    return [f"the data set names {names_them} without images, which the model will not know: {quoted_names(unused)}"]


def _describe_lost(before: LabelledTable, after: LabelledTable) -> list[str]:
    """Return a sentence about the classes of which no file can be read."""
    lost = sorted({*before.names()} - {*after.names()})
    if not lost:
        return []
    counts = Counter(before.names())
    return [
        f"no file of {'class' if len(lost) == 1 else 'the classes'} {quoted_names(lost)} can be read "
        f"({sum(counts[name] for name in lost)} files): the model will not know "
        f"{'this class' if len(lost) == 1 else 'these classes'}"
    ]


@dataclass(frozen=True, slots=True)
class _Copy:
    """An image that was left out because the same picture stays in another row."""

    path: str
    split: str
    kept: str
    kept_split: str

    @property
    def reason(self) -> str:
        """What it is a copy of."""
        where = f" of the {self.kept_split} split" if self.split != self.kept_split else ""
        return "its row is repeated" if self.path == self.kept and not where else f"a copy of {self.kept}{where}"


def _without_copies(
    table: LabelledTable, pictures: Sequence[Sequence[int]], data: str
) -> tuple[list[int], tuple[_Copy, ...]]:
    """Return the rows with which a picture counts once and is in one split, and the rows that were left out.

    Of a picture under several classes in one split, one of each class stays: which is right cannot be known.
    """
    splits = table.splits or ["train"] * len(table.labels)
    left: dict[int, _Copy] = {}
    for rows in pictures:
        first, *others = sorted(rows, key=lambda row: (RANKS[splits[row]], row))
        kept = {table.labels[first]: first}
        for row in others:
            label = table.labels[row]
            if splits[row] == splits[first] and label not in kept:
                kept[label] = row
            else:
                stays = kept.get(label, first)
                left[row] = _Copy(table.name(row), splits[row], table.name(stays), splits[stays])
    rows = [row for row in range(len(table.labels)) if row not in left]
    if left and all(splits[row] != "train" for row in rows) and "train" in splits:
        raise DataError(
            f"every training image of {data} is also an image of its test or validation split; give other images to "
            f"train on"
        )
    return rows, tuple(left[row] for row in sorted(left))


def _pictures_left(pictures: Sequence[Sequence[int]], stay: Sequence[int]) -> tuple[tuple[int, ...], ...]:
    """Return the rows of each picture that has several, counted among the rows that stay."""
    place = {row: number for number, row in enumerate(stay)}
    left = (tuple(place[row] for row in rows if row in place) for rows in pictures)
    return tuple(rows for rows in left if len(rows) > 1)


def same_content(sources: Sequence[ImageSource]) -> list[list[int]]:
    """Return the rows of each picture that has several rows. Files are read only where their sizes are equal."""
    by_size: dict[object, list[int]] = defaultdict(list)
    for row, size in enumerate(in_threads(size_of, sources)):
        by_size[size].append(row)
    rows = sorted(row for same in by_size.values() if len(same) > 1 for row in same)
    by_content: dict[bytes, list[int]] = defaultdict(list)
    for row, digest in zip(rows, in_threads(lambda row: digest_of(encoded_bytes(sources[row])), rows), strict=True):
        by_content[digest].append(row)
    return [same for same in by_content.values() if len(same) > 1]


def size_of(source: Any) -> int:  # noqa: ANN401  (a source, or a row of a data set)
    """Return the size of an encoded image, in bytes."""
    if isinstance(source, dict):
        return size_of(source["bytes"] if source.get("bytes") is not None else source["path"])
    return len(source) if isinstance(source, bytes) else os.stat(source).st_size  # noqa: PTH116  (called for each file)


def _describe_copies(copies: Sequence[_Copy]) -> list[str]:
    sentences = []
    repeated = [copy for copy in copies if copy.path == copy.kept and copy.split == copy.kept_split]
    if repeated:
        verb = "repeats" if len(repeated) == 1 else "repeat"
        sentences.append(f"{_counted(len(repeated), 'row')} {verb} the file of another row: each file counts once")
    within = [copy for copy in copies if copy.path != copy.kept and copy.split == copy.kept_split]
    if within:
        verbs = "is a copy" if len(within) == 1 else "are copies"
        sentences.append(
            f"{_counted(len(within), 'image')} {verbs} of another image of the same class, and the picture counts "
            f"once; the first is {within[0].path}, a copy of {within[0].kept}"
        )
    for split, kept in sorted({(copy.split, copy.kept_split) for copy in copies if copy.split != copy.kept_split}):
        crossing = [copy for copy in copies if (copy.split, copy.kept_split) == (split, kept)]
        several = len(crossing) > 1
        sentences.append(
            f"{_counted(len(crossing), f'{split} image')} {'are copies of images' if several else 'is a copy of one'} "
            f"of the {kept} split and {'are' if several else 'is'} left out of the {split} split; the first is "
            f"{crossing[0].path}, a copy of {crossing[0].kept}"
        )
    return sentences


def _describe_contradictions(table: LabelledTable, pictures: Sequence[Sequence[int]]) -> list[str]:
    """Return a sentence about pictures that are in several classes."""
    in_classes = [{table.labels[row]: row for row in reversed(rows)} for rows in pictures]
    twice = [rows for rows in in_classes if len(rows) > 1]
    if not twice:
        return []
    first = " and ".join(f"{table.name(row)} ('{label}')" for label, row in sorted(twice[0].items())[:2])
    if table.sets is not None:
        count = _counted(len(twice), "picture")
        return [f"{count} {'has' if len(twice) == 1 else 'have'} other labels in other rows: {first}"]
    return [
        f"{_counted(len(twice), 'picture')} {'is' if len(twice) == 1 else 'are'} in several classes, of which at most "
        f"one is right: {first}{' and others' if len(twice) > 1 else ''}"
    ]


def _counted(count: int, noun: str) -> str:
    return f"{count:,} {noun}{'' if count == 1 else 's'}"
