"""Identify the images of a run, so that a run is not continued on other data, and say what has changed."""

import hashlib
import os
from collections import Counter, defaultdict
from pathlib import Path
from typing import Any, NamedTuple

from pydantic import Field

from finetune.data.decoding import in_threads
from finetune.data.image_splits import ImageSplits, labels_of, paths_of
from finetune.data.label_sets import class_texts
from finetune.value import FrozenModel

HASHED = 16 * 1024
"""Number of bytes that are hashed at the beginning, in the middle and at the end of a larger file. Compressed images
that differ do so nearly everywhere, and reading all of each file would take longer."""

NAMED = 3
"""Largest number of images that are named in a difference."""


class Content(NamedTuple):
    """What identifies the content of an encoded image."""

    size: int
    """Size in bytes; -1 if the file cannot be read."""
    digest: str
    """Digest of its bytes, or of a part of them."""

    @property
    def text(self) -> str:
        """Size and digest as text, by which contents are compared and kept."""
        return f"{self.size} {self.digest}"


class DataIdentity(FrozenModel):
    """What identifies the images of a run."""

    digest: str
    """Digest of each image's split, path, size in bytes and class."""
    counts: dict[str, int]
    """Number of images of each class in each split: `train/cat`."""
    images: dict[str, str] = Field(default_factory=dict)
    """Each image by its path: split, class, size in bytes and digest of its content, separated by tabs. Files of
    earlier versions have none."""
    all_decoded: bool = False
    """Whether all images were decoded, and those that cannot be were left out."""
    copies: tuple[tuple[str, ...], ...] = ()
    """Changed copies of one picture that no split divides: size in bytes and digest of their images, as text."""
    accepted: tuple[str, ...] = ()
    """Changes of the images since the run began that were accepted (`--accept-changes`), in words."""

    def difference(self, other: "DataIdentity") -> str:
        """Return how other images differ from these, in words; "" if they are the same."""
        if self.images and other.images:
            return _compare(self.images, other.images)
        if self.digest == other.digest:
            return ""
        names = sorted({*self.counts} | {*other.counts})
        changes = [
            f"{name} had {self.counts.get(name, 0)} images and has {other.counts.get(name, 0)}"
            for name in names
            if self.counts.get(name, 0) != other.counts.get(name, 0)
        ]
        further = f"; and {len(changes) - 5} more differences" if len(changes) > 5 else ""
        return "; ".join(changes[:5]) + further if changes else "files were replaced, renamed or moved"

    def difference_from_part(self, part: "DataIdentity") -> str:
        """Return how the images of an evaluation differ from those at the same places here, in words; "" if not.

        Args:
            part: the images of the test split, or of all splits, all listed as one split.
        """
        contents = {path: row.split("\t")[1:] for path, row in part.images.items()}
        tested = {
            path.removeprefix("test: "): row.split("\t")[1:]
            for path, row in self.images.items()
            if row.startswith("test\t")
        }
        everything = {path: row.split("\t")[1:] for path, row in self.images.items()}
        # Images without a path of their own are numbered in another way here.
        if _counted(contents) in (_counted(tested), _counted(everything)):
            return ""
        # The data has a test split of its own if more of its images are in ours than among all.
        whole, folder, votes = max(
            ((own, *_place_of(contents, own)) for own in (tested, everything)), key=lambda found: found[2]
        )
        if not votes:
            return f"none of the {len(contents)} images is one of the run"
        before = {path: "\t".join(["", *row]) for path, row in whole.items()}
        return _compare(before, {folder + path: "\t".join(["", *row]) for path, row in contents.items()})

    def contents(self, *splits: str) -> set[str]:
        """Return the size and the digest of each image of some splits, as text."""
        rows = (row.split("\t") for row in self.images.values())
        return {Content(int(size), digest).text for split, _, size, digest in rows if split in splits}


def _counted(contents: dict[str, list[str]]) -> "Counter[tuple[str, ...]]":
    """Return how many images have each class, size and digest."""
    return Counter(map(tuple, contents.values()))


def identify(splits: ImageSplits) -> DataIdentity:
    """Return what identifies the images of a run. Paths count relative to the folder that holds all of them."""
    parts = {"train": splits.train, "validation": splits.validation, "test": splits.test}
    rows: list[tuple[str, str, Content, str]] = []
    for split, part in parts.items():
        if part is not None:
            names = class_texts(labels_of(part), splits.class_names)
            rows += zip([split] * len(names), paths_of(part), contents_of(part), names, strict=True)
    folders = {os.path.dirname(path) for _, path, _, _ in rows}  # noqa: PTH120  (called for each image)
    root = os.path.commonpath(folders) if len({os.path.isabs(folder) for folder in folders}) == 1 else ""  # noqa: PTH117
    places = [path.removeprefix(root).lstrip(os.sep) for _, path, _, _ in rows]
    texts = sorted(
        f"{split}\0{path.removeprefix(root)}\0{content.size}\0{name}\0" for split, path, content, name in rows
    )
    listed: dict[str, str] = {}
    for place, (split, _, content, name) in zip(places, rows, strict=True):
        # Images without a path have the same names in each split.
        key = f"{split}: {place}" if place in listed else place
        listed[key] = "\t".join([split, name.replace("\t", " "), str(content.size), content.digest])
    return DataIdentity(
        digest=hashlib.blake2b("\n".join(texts).encode("utf-8", "surrogateescape"), digest_size=16).hexdigest(),
        counts=dict(sorted(Counter(f"{split}/{name}" for split, _, _, name in rows).items())),
        images=listed,
        all_decoded=splits.all_decoded,
        copies=splits.copies,
    )


def contents_of(part: Any) -> list[Content]:  # noqa: ANN401  (a data set)
    """Return what identifies the content of each image of a split."""
    return in_threads(_content_of, part["image"])


def _content_of(source: dict[str, Any]) -> Content:
    if source.get("bytes") is not None:
        content: bytes = source["bytes"]
        return Content(len(content), _digest(content if len(content) <= 3 * HASHED else _sampled(content)))
    try:
        with Path(source["path"]).open("rb", buffering=0) as file:
            size = os.fstat(file.fileno()).st_size
            if size <= 3 * HASHED:
                return Content(size, _digest(file.read()))
            parts = []
            for start in _starts(size):
                file.seek(start)
                parts.append(file.read(HASHED))
            return Content(size, _digest(b"".join(parts)))
    except OSError:  # the file was removed: it differs from every image
        return Content(-1, "")


def _sampled(content: bytes) -> bytes:
    return b"".join(content[start : start + HASHED] for start in _starts(len(content)))


def _starts(size: int) -> tuple[int, int, int]:
    """Return where the parts of a file begin that are hashed."""
    return 0, (size - HASHED) // 2, size - HASHED


def _digest(content: bytes) -> str:
    return hashlib.blake2b(content, digest_size=8).hexdigest()


def _compare(before: dict[str, str], after: dict[str, str]) -> str:
    """Return what changed between two lists of images, in words; "" if nothing did."""
    found: dict[str, list[str]] = defaultdict(list)
    for path in sorted({*before} | {*after}):
        old, new = before.get(path, "").split("\t"), after.get(path, "").split("\t")
        if old == new:
            continue
        if len(old) < 4 or len(new) < 4:
            found["added" if len(old) < 4 else "removed"].append(path)
        elif old[2:] != new[2:]:
            found["changed"].append(path)
        elif old[1] != new[1]:
            found["relabelled"].append(path)
        else:
            found["moved to another split"].append(path)
    return "; ".join(f"{len(paths)} {kind} ({_named(paths)})" for kind, paths in found.items())


def _place_of(part: dict[str, list[str]], whole: dict[str, list[str]]) -> tuple[str, int]:
    """Return the folder of `whole`, "" or ending with "/", below which the images of `part` are, and how many of these
    have the same content there.

    Args:
        part: class, size and digest of each image by its path.
        whole: the same of all images.
    """
    by_content: dict[tuple[str, ...], list[str]] = defaultdict(list)
    for path, row in whole.items():
        by_content[tuple(row[1:])].append(path)
    votes = Counter(
        known.removesuffix(path)
        for path, row in part.items()
        for known in by_content[tuple(row[1:])]
        if known == path or known.endswith(f"/{path}")
    )
    return votes.most_common(1)[0] if votes else ("", 0)


def _named(paths: list[str]) -> str:
    more = f" and {len(paths) - NAMED} more" if len(paths) > NAMED else ""
    return ", ".join(paths[:NAMED]) + more
