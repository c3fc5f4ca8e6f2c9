"""Find the range of values of a data set, with which all of its images deeper than 8 bits become 8-bit."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from finetune.data.decoding import ImageSource, in_threads, opened
from finetune.data.label_sets import rarest_class
from finetune.data.raster import Raster, read_values
from finetune.data.splitting import even_sample
from finetune.reading import Reading

if TYPE_CHECKING:
    from numpy.typing import NDArray

SAMPLED = 200
"""Largest number of training images whose values are read."""

WITHIN = (0.1, 50.0, 99.9)
"""Percentiles of the values of an image: its low end, its middle and its high end. A thousandth at either end may be
dead or hot pixels."""

ACROSS = (1.0, 99.0)
"""Percentiles, over the images, of the low ends and of the high ends, so that no single image sets the range."""

MOST_PER_SIDE = 512
"""Largest number of rows and columns of an image that are read for its percentiles."""

TELLING = 0.95
"""Balanced accuracy from which the values' range alone counts as telling the classes apart."""

LEAST_PER_CLASS = 5
"""Smallest number of images of a class with which it is checked whether the range tells the classes apart."""


def find_range(
    sources: Sequence[ImageSource], labels: "NDArray[np.int64]", reading: Reading, seed: int
) -> tuple[Reading, list[str]]:
    """Return how the images of a data set are read, with one range for those deeper than 8 bits, and what to say of it.

    The range goes from the first percentile of the images' low ends to the 99th of their high ends, in three digits:
    one for grey and for red, green and blue together, or one for each of other channels.

    Args:
        sources: training images.
        labels: class of each image, (n,).
        reading: how images are read; its range may be given.
        seed: seed of the sample.
    """
    deep = np.flatnonzero(in_threads(lambda source: _has_range(source, reading), sources))
    if not len(deep):
        return reading, [
            "validation or test images are deeper than 8 bits, but no training image is: each is scaled from its own "
            "smallest to its largest value"
        ]
    chosen = deep[even_sample(labels[deep], SAMPLED, seed)]
    # (n_sampled, 1 or n_channels, 3 percentiles)
    ends = _stacked(in_threads(lambda row: _percentiles(sources[row], reading), chosen.tolist()))
    lows = np.percentile(ends[..., 0], ACROSS[0], axis=0)
    highs = np.percentile(ends[..., 2], ACROSS[1], axis=0)
    found = tuple((_rounded(low), _rounded(high)) for low, high in zip(lows, highs, strict=True))
    if not reading.is_rgb:  # one constant channel among many does not decide for the others
        found = tuple((low, high if low < high else low + max(1.0, abs(low))) for low, high in found)
    is_flat = any(low >= high for low, high in found)
    if reading.range is None:
        reading = reading.changed(range=None if is_flat else found, window=reading.uses_windows)
    warning = _about_classes(ends, rarest_class(labels[chosen]), reading, None if is_flat else found)
    return reading, [_about_range(len(deep), len(labels), len(chosen), reading, reading.range == found), *warning]


def _has_range(source: ImageSource, reading: Reading) -> bool:
    """Return whether an image is scaled by a range: it is deep, and no window of its own is used."""
    with opened(source, reading) as image:
        return isinstance(image, Raster) and image.is_deep and not (image.window and reading.uses_windows)


def _percentiles(source: ImageSource, reading: Reading) -> "NDArray[np.float64]":
    """Return the percentiles `WITHIN` of an image's values: (1 or n_channels, 3)."""
    with opened(source, reading) as image:
        assert isinstance(image, Raster)
        values, is_joint = read_values(image, reading), image.has_joint_range(reading)
    rows, columns = (max(1, side // MOST_PER_SIDE) for side in values.shape[1:])
    thinned = values[:, ::rows, ::columns].astype(np.float64)
    channels = thinned.reshape(1 if is_joint else len(thinned), -1)
    finite = [channel[np.isfinite(channel)] for channel in channels]
    return np.stack([np.percentile(channel if channel.size else [0.0], WITHIN) for channel in finite])


def _stacked(ends: Sequence["NDArray[np.float64]"]) -> "NDArray[np.float64]":
    """Return the percentiles of all images; if some have one range for all channels, the others get one, too."""
    if len({len(own) for own in ends}) == 1:
        return np.stack(ends)
    joint = [np.array([[own[:, 0].min(), np.median(own[:, 1]), own[:, 2].max()]]) for own in ends]
    return np.stack(joint)


def _rounded(value: float) -> float:
    """Return a number with three digits."""
    return float(f"{value:.3g}")


def _about_range(count: int, total: int, sampled: int, reading: Reading, is_found: bool) -> str:
    """Return how the deep images are scaled, in one sentence."""
    of_all = f" of {total:,}" if count < total else ""
    images = f"{count:,}{of_all} training image{' is' if total == 1 else 's are'} deeper than 8 bits"
    if not reading.ranges:
        return f"{images}: each is scaled from its own smallest to its largest value"
    drawn = "their range" if sampled == count else f"the range of {sampled} of them"
    origin = f", {drawn} (--set 'image.range=[LOW, HIGH]' sets another)" if is_found else ""
    others = "; 8-bit images keep their values" if count < total else ""
    return f"{images}: values from {reading.describe_ranges()} become 0 to 255{origin}{others}"


def _about_classes(
    ends: "NDArray[np.float64]",
    labels: "NDArray[np.int64]",
    reading: Reading,
    found: tuple[tuple[float, float], ...] | None,
) -> list[str]:
    """Return a warning where the range of an image's values alone tells its class, which is what its exposure sets."""
    _, numbers, counts = np.unique(labels, return_inverse=True, return_counts=True)
    if len(counts) < 2 or counts.min() < LEAST_PER_CLASS or found is None:
        return []
    from sklearn.model_selection import StratifiedKFold, cross_val_predict
    from sklearn.tree import DecisionTreeClassifier

    folds = StratifiedKFold(LEAST_PER_CLASS, shuffle=True, random_state=0)
    tree = DecisionTreeClassifier(min_samples_leaf=2, random_state=0)
    right = cross_val_predict(tree, ends.reshape(len(ends), -1), numbers, cv=folds) == numbers
    recall = float(np.mean([right[numbers == number].mean() for number in range(len(counts))]))
    if recall < TELLING:
        return []
    told = (
        f"the smallest, middle and largest value of an image alone tell its class in {100 * recall:.0f} % of "
        f"{len(labels)} images"
    )
    if reading.ranges:
        return [f"{told}: if that is the exposure and not the subject, --set image.range=per_image removes it"]
    return [f"{told}, and scaling each image by itself removes that; --set 'image.range={list(found[0])}' keeps it"]
