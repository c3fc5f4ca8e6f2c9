"""Find images that show the same picture: files with the same content, and copies whose pixels were changed.

Changed copies are looked for among each image's nearest neighbours by the features of the frozen network, and are
verified by their pixels (`matching`). Whitened features are used as well, because most of the features' variance says
what an image shows and not which image it is ("Negative evidences and co-occurrences in image retrieval", Jégou and
Chum 2012).
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
from numpy.typing import NDArray

from finetune.auditing.matching import Match, Pattern
from finetune.data import Pixels, in_threads
from finetune.progress import Progress

NEIGHBOURS = 10
"""Number of nearest neighbours of each image that are compared with it, by centred and by whitened features each."""

COMPONENTS = 256
"""Number of principal components of the features by which neighbours are found."""

BLOCK = 1000
"""Number of images whose neighbours are looked for, or whose pixels are compared, at once."""


@dataclass(frozen=True, slots=True)
class Pair:
    """Two images that show the same picture."""

    first: int
    """Index of the image that stays."""
    second: int
    """Index of its copy."""
    match: Match
    """How well the pixels agree."""


def find_near_copies(
    features: NDArray[np.float32], chosen: NDArray[np.intp], pixels: Pixels, progress: Progress
) -> list[Pair]:
    """Return the pairs of images that show the same picture.

    Args:
        features: features of all images (n_images, width).
        chosen: indices of the images to compare, in ascending order.
        pixels: pixels of all images.
        progress: called with the number of pairs done.
    """
    own = features[chosen]
    near = {
        pair
        for vectors in (_unit(own - own.mean(axis=0)), whitened(own))
        for pair in nearest_pairs(vectors, NEIGHBOURS)
    }
    return verified([(int(chosen[first]), int(chosen[second])) for first, second in sorted(near)], pixels, progress)


def verified(pairs: Sequence[tuple[int, int]], pixels: Pixels, progress: Progress) -> list[Pair]:
    """Return those of some pairs of images, sorted by their first image, whose pixels agree."""
    found: list[Pair] = []
    patterns: dict[int, Pattern] = {}
    for start in range(0, len(pairs), BLOCK):
        block = pairs[start : start + BLOCK]
        needed = sorted({index for pair in block for index in pair})
        fresh = [index for index in needed if index not in patterns]
        made = in_threads(Pattern, pixels.read(fresh))
        # Only patterns of this block stay in memory.
        patterns = {index: patterns[index] for index in needed if index in patterns} | dict(
            zip(fresh, made, strict=True)
        )
        matches = in_threads(partial(_compare, patterns), block)
        found += [Pair(*pair, match) for pair, match in zip(block, matches, strict=True) if match.is_same]
        progress("comparing images", min(start + BLOCK, len(pairs)), len(pairs))
    return found


def _compare(patterns: dict[int, Pattern], pair: tuple[int, int]) -> Match:
    return patterns[pair[0]].compare(patterns[pair[1]])


def whitened(features: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return the first principal components of features with equal variances, each row of length 1."""
    centred = features - features.mean(axis=0)
    # Eigenvalues of the covariance, the largest last; x -> V^T x / sqrt(lambda).
    values, vectors = np.linalg.eigh((centred.T @ centred).astype(np.float64) / len(features))
    kept = min(COMPONENTS, max(1, len(features) // 2), int((values > 1e-6 * values[-1]).sum()) or 1)
    scale = np.sqrt(np.maximum(values[-kept:], 1e-12))
    return _unit((centred @ vectors[:, -kept:].astype(np.float32)) / scale.astype(np.float32))


def _unit(vectors: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return vectors (n, width) with length 1."""
    unit: NDArray[np.float32] = vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-12)
    return unit


def nearest_pairs(vectors: NDArray[np.float32], count: int) -> list[tuple[int, int]]:
    """Return each image with its nearest neighbours by cosine similarity, as sorted pairs of indices.

    Args:
        vectors: one row of length 1 for each image, (n_images, width).
        count: number of neighbours.
    """
    count = min(count, len(vectors) - 1)
    pairs: set[tuple[int, int]] = set()
    if count < 1:
        return []
    for start in range(0, len(vectors), BLOCK):
        rows = np.arange(start, min(start + BLOCK, len(vectors)))
        similarity = vectors[rows] @ vectors.T
        similarity[np.arange(len(rows)), rows] = -np.inf
        nearest = np.argpartition(-similarity, count - 1, axis=1)[:, :count]
        pairs |= {(min(a, b), max(a, b)) for a, own in zip(rows.tolist(), nearest.tolist(), strict=True) for b in own}
    return sorted(pairs)


def clusters(count: int, pairs: Iterable[tuple[int, int]]) -> NDArray[np.intp]:
    """Return for each of `count` images the smallest index of the images that show the same picture, (count,)."""
    root = list(range(count))

    def find(index: int) -> int:
        while root[index] != index:
            root[index] = root[root[index]]
            index = root[index]
        return index

    for first, second in pairs:
        low, high = sorted((find(first), find(second)))
        root[high] = low
    return np.asarray([find(index) for index in range(count)], dtype=np.intp)
