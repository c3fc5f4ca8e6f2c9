"""Group images by their paths: apply the rules that a recipe may give, and list the rules that are worth checking.

A rule of paths is one of these:

* `folder`: the first folder of the path that is not the class; it reads CLASS/SUBJECT/image.jpg and
  SUBJECT/CLASS/image.jpg.
* a regular expression with one capture group, searched for in the path.
* `blocks:` and a regular expression that captures a number: blocks of neighbouring numbers.
"""

import re
from collections import defaultdict
from collections.abc import Hashable, Sequence
from itertools import takewhile

import numpy as np

BLOCKS = "blocks:"
"""Beginning of a rule that groups neighbouring numbers."""

EXIF = "exif:"
"""Beginning of a rule that groups by what the camera stored: `exif:camera`, `exif:date` or `exif:place`."""

MOST_BLOCKS = 10
"""Largest number of blocks of a sequence: enough to divide them into folds, and few ends that divide neighbours."""

LEAST_BLOCK = 4
"""Smallest number of images in a block."""

UNREPEATED = 0.95
"""Least share of distinct numbers in a sequence."""

POSITIONS = 3
"""Number of parts, and of numbers, of a file name that are tried as groups, from the first one."""


def group_by_path(rule: str, paths: Sequence[str], labels: Sequence[str]) -> list[str | None]:
    """Return the group of each image, or None where the rule finds none.

    Args:
        rule: `folder`, a regular expression with one capture group, or one after `blocks:`.
        paths: path of each image with `/` between folders, relative to the data folder.
        labels: name of each image's class.
    """
    if rule == "folder":
        return _folders(paths, labels)
    pattern = re.compile(rule.removeprefix(BLOCKS))
    found = [pattern.search(path) for path in paths]
    values = [match[1] if match else None for match in found]
    if not rule.startswith(BLOCKS):
        return values
    numbers = [int(value) for value in values if value is not None and value.isdecimal()]
    if len(numbers) < len(paths):
        return [None] * len(paths)
    # Numbers of one sequence have the same text before them in the file name.
    before = [path[: match.start(1)].rpartition("/")[2] for path, match in zip(paths, found, strict=True) if match]
    return _blocks(numbers, before, labels)


def candidate_rules(paths: Sequence[str]) -> list[str]:
    """Return the rules that are worth checking, from the plainest to the most indirect."""
    # The first match that reaches the end of the path without a slash begins in the file name.
    word, next_word, next_number = r"([^/ _.-]+)", r"[^/ _.-]+[ _.-]+", r"\d+[^\d/]+"
    words = [next_word * position + word + "[^/]*$" for position in range(POSITIONS)]
    numbers = [next_number * position + r"(\d+)[^/]*$" for position in range(POSITIONS)]
    return [
        "folder",
        *(_named(pattern, paths) or pattern for pattern in words),
        *numbers,
        *(BLOCKS + pattern for pattern in numbers),
        *(EXIF + kind for kind in ("camera", "date", "place")),
    ]


def describe_rule(rule: str) -> str:
    """Return in words where a rule finds the groups."""
    if rule == "column":
        return "the given groups"
    if rule == "folder":
        return "folders"
    if rule.startswith(EXIF):
        return f"{rule.removeprefix(EXIF)} in EXIF"
    if rule.startswith(BLOCKS):
        return f"neighbouring numbers in the file names: `{rule}`"
    return rule if is_table(rule) else f"file names: `{rule}`"


def is_table(rule: str) -> bool:
    """Return whether a rule is the path of a table."""
    return rule.lower().endswith((".csv", ".tsv", ".parquet"))


def _named(pattern: str, paths: Sequence[str]) -> str:
    r"""Return a short pattern such as `(speaker\d+)` that captures the same texts, or "" if there is none."""
    values = [match[1] if (match := re.search(pattern, path)) else "" for path in paths]
    names = {re.sub(r"\d+$", "", value) for value in values}
    if len(names) != 1 or not (name := names.pop()).isalpha():
        return ""
    short = rf"({name}\d+)"
    found = [match[1] if (match := re.search(short, path)) else "" for path in paths]
    return short if found == values else ""


def _folders(paths: Sequence[str], labels: Sequence[str]) -> list[str | None]:
    """Return the first folder of each path, below those that all paths share, that is not the class."""
    folders = [path.split("/")[:-1] for path in paths]
    shared = len([*takewhile(lambda parts: len({*parts}) == 1, zip(*folders, strict=False))])
    return [
        next((part for part in parts[shared:] if part != label), None)
        for parts, label in zip(folders, labels, strict=True)
    ]


def _blocks(numbers: Sequence[int], before: Sequence[str], labels: Sequence[str]) -> list[str | None]:
    """Return the block of each image, neighbouring numbers of one sequence; None if numbers repeat, as names do.

    If the numbers run through the classes (one writer after the other), images of all classes are one sequence; else
    each class has sequences of its own.
    """
    by_class = [*zip(before, labels, strict=True)]
    if len({*zip(by_class, numbers, strict=True)}) < UNREPEATED * len(numbers):
        return [None] * len(numbers)
    blocks = _cut(numbers, before)
    counts: dict[str, int] = defaultdict(int)
    seen: dict[str, set[str]] = defaultdict(set)
    for block, label in zip(blocks, labels, strict=True):
        counts[label] += 1
        seen[label].add(block)
    # Images of a class that are spread over b blocks at random are in most of min(images, b) blocks.
    mixed = all(len(seen[label]) >= min(counts[label], len({*blocks})) / 2 for label in counts)
    if mixed and len({*zip(before, numbers, strict=True)}) >= UNREPEATED * len(numbers):
        return [*blocks]
    return [*_cut(numbers, by_class)]


def _cut(numbers: Sequence[int], sequences: Sequence[Hashable]) -> list[str]:
    """Return the block of each image: each sequence is cut into at most `MOST_BLOCKS` blocks of about equal size."""
    blocks = [""] * len(numbers)
    members: dict[Hashable, list[int]] = defaultdict(list)
    for row, sequence in enumerate(sequences):
        members[sequence].append(row)
    for sequence, rows in members.items():
        own = np.asarray([numbers[row] for row in rows])
        count = max(1, min(MOST_BLOCKS, len(own) // LEAST_BLOCK))
        # Equal numbers have one rank, so that they are in one block.
        ranks = np.searchsorted(np.sort(own), own)
        for row, rank in zip(rows, ranks.tolist(), strict=True):
            blocks[row] = f"{sequence} {rank * count // len(own)}"
    return blocks
