"""Look quickly for copies of one picture, in every run; a whole audit finds more.

Small grey images are compared by their correlation, which sees re-encoded, resized and mirrored copies but no cropped
ones; the few pairs that correlate are verified by their pixels (`matching`).
"""

import shlex
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from datasets import Dataset
from numpy.typing import NDArray

from finetune.auditing.copies import Pair, clusters, verified
from finetune.auditing.matching import LEAST_SIDE, small_details
from finetune.data import ImageSplits, Pixels, in_threads, paths_of
from finetune.data.identity import contents_of
from finetune.errors import DataError
from finetune.progress import no_progress

SIMILAR = 0.93
"""Least correlation of two small images whose pixels are compared."""

NEAREST = 3
"""Largest number of similar images that are compared with an image, as they are and mirrored each: the copies of one
picture are found from one to the next."""

MOST = 5000
"""Largest number of training images, and of other images, that are compared."""

BLOCK = 256
"""Number of images that are read, or compared with all others, at once."""


@dataclass(frozen=True, slots=True)
class Crossing:
    """An image of the validation or test split that shows the picture of a training image."""

    path: str
    """Path of the image."""
    split: str
    """Its split."""
    original: str
    """Path of the training image."""


@dataclass(frozen=True, slots=True, kw_only=True)
class QuickCopies:
    """The images of all splits, and which of them show one picture."""

    tables: tuple[Dataset, ...]
    """The splits, the training images first."""
    names: tuple[str, ...]
    """Name of each split."""
    pairs: tuple[Pair, ...]
    """Pairs of images that show one picture, by their index in all splits one after another."""

    def crossing(self) -> list[Crossing]:
        """Return the validation and test images that show the picture of a training image."""
        count = len(self.tables[0])
        originals: dict[int, int] = {}
        for pair in self.pairs:
            if pair.first < count <= pair.second:
                originals.setdefault(pair.second, pair.first)
        places = self._places() if originals else []
        return [Crossing(*places[own], places[first][0]) for own, first in sorted(originals.items())]

    def pictures(self) -> tuple[tuple[str, ...], ...]:
        """Return the contents (size and digest, as text) of the images of each picture that several images show."""
        rows = sorted({index for pair in self.pairs for index in (pair.first, pair.second)})
        place = {index: number for number, index in enumerate(rows)}
        own = clusters(len(rows), [(place[pair.first], place[pair.second]) for pair in self.pairs])
        found: dict[int, list[str]] = defaultdict(list)
        for number, content in zip(own.tolist(), self._contents(rows), strict=True):
            found[number].append(content)
        return tuple(tuple(dict.fromkeys(contents)) for contents in found.values())

    def path(self, index: int) -> str:
        """Return the path of an image, given by its index in all splits."""
        return self._places()[index][0]

    def _places(self) -> list[tuple[str, str]]:
        """Return the path and the split of each image."""
        named = zip(self.names, self.tables, strict=True)
        return [(path, name) for name, table in named for path in paths_of(table)]

    def _contents(self, rows: Sequence[int]) -> list[str]:
        """Return the contents of some images, given by their index in ascending order."""
        texts, start = [], 0
        for table in self.tables:
            own = [row - start for row in rows if start <= row < start + len(table)]
            texts += [content.text for content in contents_of(table.select(own))] if own else []
            start += len(table)
        return texts


def find_quick_copies(splits: ImageSplits, shorter_side: int) -> QuickCopies | None:
    """Return which images show one picture; of given splits, copies between validation and test are not looked for.

    None: nothing is compared, because the images are a stream, there are more than `MOST`, or the decoded images do not
    fit into the cache.

    Args:
        splits: the images.
        shorter_side: shorter side at which the training images are in the cache, in pixels.
    """
    others = [(name, table) for name, table in (("validation", splits.validation), ("test", splits.test)) if table]
    count = len(splits.train)
    if splits.stream is not None or max(count, sum(len(table) for _, table in others)) > MOST:
        return None
    tables = (splits.train, *(table for _, table in others))
    pixels = Pixels(tables, shorter_side, splits.reading)
    try:
        pixels.cache(no_progress)
    except DataError:  # the evaluation reports it
        return None
    if not pixels.is_cached:
        return None
    similar = _similar(_thumbnails(pixels), len(pixels) if splits.test_was_made else count)
    pairs = verified(similar, pixels, no_progress)
    return QuickCopies(tables=tables, names=("train", *(name for name, _ in others)), pairs=tuple(pairs))


def describe_crossing(found: Sequence[Crossing], data: str) -> str:
    """Return a sentence about one or more images that are on both sides of a split of the data."""
    first, several = found[0], len(found) > 1
    return (
        f"{len(found)} validation or test image{'s show pictures' if several else ' shows a picture'} of the training "
        f"split, so that the accuracy on {'them' if several else 'it'} says nothing about new images; the first is "
        f"{first.path} ({first.split}), a copy of {first.original}; leave the copies out: "
        f"finetune audit {shlex.quote(data)} --clean clean.csv, then --data clean.csv"
    )


def _thumbnails(pixels: Pixels) -> NDArray[np.float32]:
    """Return small grey images without slow changes of brightness, each of length 1, (n_images, side, side).

    The side is `LEAST_SIDE`. An image that is too small to be compared is all zeros.
    """

    def details(image: NDArray[np.uint8]) -> NDArray[np.float32]:
        if min(image.shape[:2]) < LEAST_SIDE:
            return np.zeros((LEAST_SIDE, LEAST_SIDE), np.float32)
        return small_details(image, LEAST_SIDE)

    parts = [
        in_threads(details, pixels.read(range(start, min(start + BLOCK, len(pixels)))))
        for start in range(0, len(pixels), BLOCK)
    ]
    small = np.stack([image for part in parts for image in part])
    length = np.sqrt((small**2).sum(axis=(1, 2), keepdims=True))
    unit: NDArray[np.float32] = small / np.maximum(length, LEAST_SIDE)
    return unit


def _similar(small: NDArray[np.float32], count: int) -> list[tuple[int, int]]:
    """Return pairs of one of the first `count` images and another one: the most similar ones, if they are similar."""
    flat = small.reshape(len(small), -1)
    mirrored = small[:, :, ::-1].reshape(len(small), -1)
    pairs = set()
    for start in range(0, len(flat), BLOCK):
        rows = np.arange(start, min(start + BLOCK, len(flat)))
        for own in (flat[rows], mirrored[rows]):
            similarity = own @ flat[:count].T
            similarity[rows[rows < count] - start, rows[rows < count]] = -1.0  # itself
            nearest = np.argpartition(-similarity, min(NEAREST, count) - 1, axis=1)[:, :NEAREST]
            for row, columns in zip(rows.tolist(), nearest, strict=True):
                found = columns[similarity[row - start, columns] >= SIMILAR]
                pairs |= {(min(row, int(column)), max(row, int(column))) for column in found}
    return sorted(pairs)
