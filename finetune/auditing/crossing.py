"""Look quickly for pictures that are on both sides of a split, in every run; a whole audit finds more.

Small grey images are compared by their correlation, which sees re-encoded, resized and mirrored copies but no cropped
ones; the few pairs that correlate are verified by their pixels (`matching`).
"""

import shlex
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from finetune.auditing.copies import verified
from finetune.auditing.matching import small_details
from finetune.data import ImageSplits, Pixels, in_threads, paths_of
from finetune.errors import DataError
from finetune.progress import no_progress

SIDE = 24
"""Side of the small images, in pixels."""

SIMILAR = 0.93
"""Least correlation of two small images whose pixels are compared."""

MOST = 5000
"""Largest number of training images, and of other images, that are compared."""

BLOCK = 256
"""Number of images that are read at once."""


@dataclass(frozen=True, slots=True)
class Crossing:
    """An image of the validation or test split that shows the picture of a training image."""

    path: str
    """Path of the image."""
    split: str
    """Its split."""
    original: str
    """Path of the training image."""


def find_crossing(splits: ImageSplits, shorter_side: int) -> list[Crossing]:
    """Return the validation and test images that show the picture of a training image.

    Nothing is compared if there are more than `MOST` images, or if the decoded images do not fit into the cache.

    Args:
        splits: the images.
        shorter_side: shorter side at which the training images are in the cache, in pixels.
    """
    held = [(name, table) for name, table in (("validation", splits.validation), ("test", splits.test)) if table]
    count = len(splits.train)
    if splits.stream is not None or not held or max(count, sum(len(table) for _, table in held)) > MOST:
        return []
    pixels = Pixels([splits.train, *(table for _, table in held)], shorter_side, splits.reading)
    try:
        pixels.cache(no_progress)
    except DataError:  # the evaluation reports it
        return []
    if not pixels.is_cached:
        return []
    places = [("train", path) for path in paths_of(splits.train)]
    places += [(name, path) for name, table in held for path in paths_of(table)]
    pairs = verified(_similar(_thumbnails(pixels), count), pixels, no_progress)
    originals = {pair.second: pair.first for pair in reversed(pairs)}
    return [Crossing(places[own][1], places[own][0], places[first][1]) for own, first in sorted(originals.items())]


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
    """Return small grey images without slow changes of brightness, (n_images, SIDE, SIDE), each of length 1.

    An image smaller than `SIDE` is all zeros: with so few details, different images look the same.
    """

    def details(image: NDArray[np.uint8]) -> NDArray[np.float32]:
        return small_details(image, SIDE) if min(image.shape[:2]) >= SIDE else np.zeros((SIDE, SIDE), np.float32)

    parts = [
        in_threads(details, pixels.read(range(start, min(start + BLOCK, len(pixels)))))
        for start in range(0, len(pixels), BLOCK)
    ]
    small = np.stack([image for part in parts for image in part])
    length = np.sqrt((small**2).sum(axis=(1, 2), keepdims=True))
    unit: NDArray[np.float32] = small / np.maximum(length, SIDE)
    return unit


def _similar(small: NDArray[np.float32], count: int) -> list[tuple[int, int]]:
    """Return pairs of one of the first `count` images and one of the others: the most similar one, if it is similar."""
    train = small[:count].reshape(count, -1)
    pairs = set()
    for others in (small[count:], small[count:, :, ::-1]):
        similarity = others.reshape(len(others), -1) @ train.T
        best = similarity.argmax(axis=1)
        for row in np.flatnonzero(similarity[np.arange(len(best)), best] >= SIMILAR):
            pairs.add((int(best[row]), count + int(row)))
    return sorted(pairs)
