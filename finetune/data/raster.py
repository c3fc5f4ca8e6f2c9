"""Turn the values of an image with any depth, channels and pages into 8-bit RGB, or into any number of channels."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from finetune.reading import AS_STORED, Reading

TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
"""What turns an image upright, by its orientation (EXIF 2.3, tag 274)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Raster:
    """An image file as arrays of values: the header, and a function that reads the values."""

    load: Callable[[Sequence[int]], NDArray[np.generic]]
    """Function that reads some pages (n_pages, n_channels, height, width)."""
    size: tuple[int, int]
    """Width and height as stored, in pixels."""
    dtype: np.dtype[np.generic]
    """Type of the stored values."""
    num_pages: int = 1
    """Number of pages: slices, points in time, ..."""
    num_channels: int = 1
    """Number of channels, without transparency."""
    names: tuple[str, ...] = ()
    """Names of the channels, in their order; empty: the file names none."""
    is_rgb: bool = False
    """Whether the first three channels are red, green and blue."""
    window: tuple[float, float] | None = None
    """Values that the file says to show as black and white."""
    is_inverted: bool = False
    """Whether the smallest value is white."""
    orientation: int = 1
    """Orientation as in EXIF; 1: upright."""

    @property
    def is_deep(self) -> bool:
        """Whether the values have more than 8 bits."""
        return self.dtype not in {np.dtype(np.uint8), np.dtype(np.bool_)}

    def has_joint_range(self, reading: Reading) -> bool:
        """Return whether all channels share a range: red, green and blue do, and a single channel; others do not."""
        chosen = reading.channels or ()
        return len(chosen) == 1 or (not chosen and (self.is_rgb or self.num_channels == 1))


def to_rgb(raster: Raster, reading: Reading = AS_STORED) -> Image.Image:
    """Return an image as upright 8-bit RGB.

    Raises:
        ValueError: the image has other channels or fewer pages than the reading asks for.
    """
    levels = _levels(raster, reading)
    # One channel is repeated.
    is_grey = len(levels) == 1
    image = Image.fromarray(levels[0]).convert("RGB") if is_grey else Image.fromarray(np.moveaxis(levels, 0, -1))
    return _upright(image, raster)


def to_bands(raster: Raster, reading: Reading) -> list[Image.Image]:
    """Return each channel that a reading asks for as an upright 8-bit grey image.

    Raises:
        ValueError: the image has other channels or fewer pages than the reading asks for.
    """
    return [_upright(Image.fromarray(level), raster) for level in _levels(raster, reading)]


def _upright(image: Image.Image, raster: Raster) -> Image.Image:
    """Return an image of a raster's values turned as the raster's orientation says."""
    turn = TURNS.get(raster.orientation)
    return image if turn is None else image.transpose(turn)


def _levels(raster: Raster, reading: Reading) -> NDArray[np.uint8]:
    """Return the chosen values (n_channels, height, width) as 0 to 255."""
    values = read_values(raster, reading)
    if not raster.is_deep:
        levels: NDArray[np.uint8] = values.astype(np.uint8) * np.uint8(255 if values.dtype == np.bool_ else 1)
    elif raster.window is not None and reading.uses_windows:
        levels = np.stack([scale(channel, *raster.window) for channel in values])
    elif reading.ranges:
        ranges = reading.ranges if len(reading.ranges) == len(values) else reading.ranges[:1] * len(values)
        levels = np.stack([scale(channel, *ends) for channel, ends in zip(values, ranges, strict=True)])
    elif raster.has_joint_range(reading):
        levels = stretch(values)
    else:
        levels = np.stack([stretch(channel) for channel in values])
    return 255 - levels if raster.is_inverted else levels


def read_values(raster: Raster, reading: Reading) -> NDArray[np.generic]:
    """Return the values (n_channels, height, width) of the channels and the page that a reading chooses.

    Raises:
        ValueError: the image has other channels or fewer pages than the reading asks for.
    """
    channels = choose_channels(raster.num_channels, raster.names, raster.is_rgb, reading)
    pages = raster.load(choose_pages(raster.num_pages, reading))
    chosen: NDArray[np.generic] = pages.max(axis=0) if len(pages) > 1 else pages[0]
    return chosen[channels]


def pages_as_channels(raster: Raster) -> Raster:
    """Return the raster of one page that has the channels of all pages, page after page."""
    if raster.num_pages == 1:
        return raster

    def load(_pages: Sequence[int]) -> NDArray[np.generic]:
        values = raster.load(range(raster.num_pages))
        return values.reshape(1, -1, *values.shape[-2:])

    return replace(
        raster, load=load, num_pages=1, num_channels=raster.num_pages * raster.num_channels, names=(), is_rgb=False
    )


def choose_pages(count: int, reading: Reading) -> list[int]:
    """Return the numbers of the pages to read; of several the maximum is taken.

    Raises:
        ValueError: there are fewer pages than the reading asks for.
    """
    if count == 1 or reading.pages in {None, "first"}:
        return [0]
    if reading.pages == "max":
        return list(range(count))
    if reading.pages == "middle":
        return [count // 2]
    page = int(reading.pages or 0)
    if page >= count:
        raise ValueError(f"it has {count} pages, but image.pages asks for page {page} (counted from 0)")
    return [page]


def choose_channels(count: int, names: Sequence[str], is_rgb: bool, reading: Reading) -> list[int]:
    """Return the numbers of the channels to read: those that the reading lists, else one, or red, green and blue.

    Args:
        count: number of channels.
        names: names of the channels; empty: they have none.
        is_rgb: whether the first three channels are red, green and blue.
        reading: how images are read.

    Raises:
        ValueError: the reading asks for other channels, or none are given and there are neither one nor three.
    """
    if reading.channels is None:
        if count == 1:
            return [0]
        if count == 3 or is_rgb:
            return [0, 1, 2]
        listed = f" ({', '.join(names)})" if names else ""
        example = ", ".join(names[:3]) if len(names) >= 3 else "0, 1, 2" if count > 3 else "0, 1, 1"
        raise ValueError(
            f"it has {count} channels{listed}; say which become red, green and blue: --set "
            f"'image.channels=[{example}]', or read all of them: --set image.channels=all"
        )
    chosen = []
    assert reading.channels != "all"  # their number is known when the data is opened
    for wanted in reading.channels:
        number = names.index(wanted) if wanted in names else wanted
        if isinstance(number, str) or number >= count:
            numbers = "channel 0" if count == 1 else f"channels 0 to {count - 1}"
            known = ", ".join(names) if names else numbers
            raise ValueError(f"image.channels asks for channel {wanted}, but it has {known}")
        chosen.append(number)
    return chosen


def scale(values: NDArray[np.generic], low: float, high: float) -> NDArray[np.uint8]:
    """Return values as 0 to 255: `low` becomes 0 and `high` 255; values beyond them are limited, NaN becomes 0."""
    finite = np.nan_to_num(values.astype(np.float32), nan=low, posinf=high, neginf=low)
    levels = (finite - low) * (255.0 / max(high - low, 1e-12))  # floating-point ranges may be tiny
    limited: NDArray[np.uint8] = np.clip(levels, 0.0, 255.0).round().astype(np.uint8)
    return limited


def stretch(values: NDArray[np.generic]) -> NDArray[np.uint8]:
    """Return values as 0 to 255, from their smallest to their largest; constant values are kept, up to 255."""
    numbers = values.astype(np.float32)
    # Floating-point images may have holes.
    finite = numbers[np.isfinite(numbers)]
    low, high = (float(finite.min()), float(finite.max())) if finite.size else (0.0, 0.0)
    if high > low:
        return scale(values, low, high)
    kept = np.nan_to_num(numbers, nan=low, posinf=high, neginf=low)
    return np.clip(kept, 0.0, 255.0).round().astype(np.uint8)
