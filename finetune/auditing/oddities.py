"""Find images that are hardly of use: blank, dark, tiny, or in another colour mode than the others."""

from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from finetune.data import Pixels, in_threads, read_header

BLANK = 2.0
"""Largest standard deviation of the grey values of a blank image, of 255."""

DARK, BRIGHT = 30.0, 60.0
"""The brightest twentieth of a dark image's pixels begins below the first value, that of the usual image of the set
above the second one; grey values of 255."""

TINY, SMALL_SHARE = 16, 0.25
"""A tiny image has a shorter side below the first value, in pixels, or below this share of the set's median."""

RARE = 0.02
"""Largest share of the images with a colour mode that is reported."""

SAMPLED = 4096
"""Approximate number of pixels of each image by which it is rated."""


def find_oddities(sources: Sequence[Any], pixels: Pixels) -> Iterator[tuple[int, str]]:
    """Yield the index of each odd image, and what is odd about it.

    Args:
        sources: undecoded images.
        pixels: their pixels.
    """
    headers = in_threads(read_header, sources)
    sides = np.asarray([min(size) for size, _ in headers])
    modes = Counter(mode for _, mode in headers)
    tones = np.asarray([_tones(image) for start in range(0, len(sides), 256) for image in _block(pixels, start)])
    usual_side, usual_bright = float(np.median(sides)), float(np.median(tones[:, 1]))
    for index, ((size, mode), (spread, bright)) in enumerate(zip(headers, tones, strict=True)):
        if spread <= BLANK:
            yield index, f"blank: its grey values vary by {spread:.1f} of 255"
        elif bright < DARK and usual_bright >= BRIGHT:
            yield index, f"dark: 95 % of its pixels are below {bright:.0f} of 255"
        if sides[index] < max(TINY, SMALL_SHARE * usual_side):
            yield index, f"tiny: {size[0]} x {size[1]} pixels; the median shorter side of the set is {usual_side:.0f}"
        if modes[mode] <= RARE * len(headers):
            yield index, f"colour mode {mode}; {modes.most_common(1)[0][1]} images have {modes.most_common(1)[0][0]}"


def _block(pixels: Pixels, start: int) -> list[NDArray[np.uint8]]:
    return pixels.read(range(start, min(start + 256, len(pixels))))


def _tones(image: NDArray[np.uint8]) -> tuple[float, float]:
    """Return the standard deviation of an image's grey values, and the value that 95 % of them do not exceed."""
    step = max(1, int(np.sqrt(image.shape[0] * image.shape[1] / SAMPLED)))
    grey = image[::step, ::step].mean(axis=2)
    return float(grey.std()), float(np.quantile(grey, 0.95))
