"""Define how the values in an image file become 8-bit channels, mostly red, green and blue: range, channels, pages."""

import math
from typing import Annotated, Literal, Self

from pydantic import BeforeValidator, model_validator

from finetune.value import FrozenModel


def _parse_range(given: object) -> object:
    """Return one pair of numbers as a tuple with it, several as they are, and `per_image` and None unchanged.

    >>> _parse_range([100, 4000])
    ((100.0, 4000.0),)
    >>> _parse_range([[0, 1], [0, 2]])
    ((0.0, 1.0), (0.0, 2.0))
    """
    if given is None or given == "per_image":
        return given
    sentence = "expected per_image, [low, high], or such a pair for each channel"
    if not isinstance(given, (list, tuple)) or not given:
        raise ValueError(sentence)
    pairs = given if all(isinstance(pair, (list, tuple)) for pair in given) else [given]
    try:
        ranges = tuple((float(low), float(high)) for low, high in pairs)
    except (TypeError, ValueError):
        raise ValueError(sentence) from None
    if not all(-math.inf < low < high < math.inf for low, high in ranges):
        raise ValueError("expected two finite numbers, the lower one first, such as [100, 4000]")
    return ranges


def _parse_channels(given: object) -> object:
    """Return one or more channels as a tuple, and `all` and None unchanged."""
    if given is None or given == "all":
        return given
    if not isinstance(given, (list, tuple)) or not given or not all(map(_is_channel, given)):
        raise ValueError("expected all, or a list of channels, such as [2, 0, 1]: numbers from 0, or names")
    return tuple(given)


def _is_channel(given: object) -> bool:
    """Return whether an entry of a list is a channel: a number from 0, or a name."""
    return given != "" if isinstance(given, str) else _is_number(given)


def _is_number(given: object) -> bool:
    """Return whether a value is a whole number from 0."""
    return isinstance(given, int) and not isinstance(given, bool) and given >= 0


def _parse_pages(given: object) -> object:
    """Return a rule for pages unchanged."""
    if given is not None and given not in ("first", "middle", "max", "channels") and not _is_number(given):
        raise ValueError("expected first, middle, max, channels, or the number of a page, counted from 0")
    return given


class Reading(FrozenModel):
    """How the values in an image file become 8-bit channels, as a rule red, green and blue. Images of 8 bits keep their
    values."""

    range: Annotated[Literal["per_image"] | tuple[tuple[float, float], ...] | None, BeforeValidator(_parse_range)] = (
        None
    )
    """Values that become 0 and 255 in images deeper than 8 bits: `[low, high]`, such a pair for each channel (three for
    red, green and blue), or `per_image` (the smallest and the largest value of each image). By default the range of the
    training images (percentiles over at most 200 of them), or `per_image` if none of them is deeper than 8 bits."""
    window: bool | None = None
    """Whether the window that a DICOM file names is its range; by default true if `range` is left out."""
    channels: Annotated[Literal["all"] | tuple[int | str, ...] | None, BeforeValidator(_parse_channels)] = None
    """Channels that are read: numbers from 0, or names from the metadata of an OME-TIFF. Three become red, green and
    blue, such as `[2, 0, 1]`; one makes a grey image; of any other number, or of `all` (as many as the training images
    have), each is a channel of the network's input. By default red, green and blue, or the only channel; images with
    other channels are left out."""
    pages: Annotated[Literal["first", "middle", "max", "channels"] | int | None, BeforeValidator(_parse_pages)] = None
    """Page of a stack that is read: `first`, `middle`, a number from 0, or `max` (the maximum over all pages, value by
    value); `channels`: the channels of all pages are those of the image, page after page. By default first."""

    @model_validator(mode="after")
    def _channels_differ_from_ranges(self) -> Self:
        given = len(self.ranges)
        if given < 2 or self.channels == "all":
            return self
        if self.channels is not None and len(self.channels) == 1:
            count = "three" if given == 3 else str(given)
            raise ValueError(f"image.range: one channel has one range, but {count} were given; give [low, high]")
        if given != self.num_channels:
            pairs = "three such pairs for red, green and blue" if self.is_rgb else f"{self.num_channels} such pairs"
            raise ValueError(f"image.range: {given} ranges were given; expected [low, high], or {pairs}")
        return self

    @property
    def is_rgb(self) -> bool:
        """Whether images become red, green and blue; a single channel is repeated."""
        return self.channels is None or (self.channels != "all" and len(self.channels) in {1, 3})

    @property
    def num_channels(self) -> int:
        """The number of channels of the network's input; that of `all` is not known before the data is opened."""
        assert self.channels != "all"
        return 3 if self.channels is None or len(self.channels) == 1 else len(self.channels)

    @property
    def ranges(self) -> tuple[tuple[float, float], ...]:
        """The fixed ranges: one, or that of each channel; none if each image has its own."""
        return self.range if isinstance(self.range, tuple) else ()

    @property
    def uses_windows(self) -> bool:
        """Whether the window of a DICOM file is its range."""
        return self.range is None if self.window is None else self.window

    def describe_ranges(self) -> str:
        """Return the fixed ranges in words."""
        ends = [f"{low:,.6g} to {high:,.6g}" for low, high in self.ranges]
        if len(ends) == 1:
            return ends[0]
        names = ("red", "green", "blue") if self.is_rgb else tuple(map(_channel_text, self.channels or ()))
        return ", ".join(f"{end} ({name})" for end, name in zip(ends, names, strict=True))

    def describe(self) -> str:
        """Return the settings in words; "" if everything is left to the images."""
        parts = []
        if self.ranges:
            parts.append(
                f"values from {self.describe_ranges()} become 0 to 255 in images deeper than 8 bits (image.range)"
            )
        if self.range == "per_image":
            parts.append("each image deeper than 8 bits is scaled by itself (image.range: per_image)")
        if self.channels is not None:
            listed = self.channels if self.channels == "all" else ", ".join(map(str, self.channels))
            parts.append(f"the channels {listed} are read (image.channels)")
        if self.pages == "channels":
            parts.append("the pages of a stack are its channels (image.pages)")
        elif self.pages is not None:
            parts.append(f"of a stack, {describe_pages(self.pages)} is read (image.pages)")
        return "; ".join(parts)


def describe_pages(pages: str | int | None) -> str:
    """Return a rule for pages in words.

    >>> describe_pages("max")
    'the maximum over its pages'
    """
    if isinstance(pages, int):
        return f"page {pages} (counted from 0)"
    return {"middle": "its middle page", "max": "the maximum over its pages"}.get(pages or "", "its first page")


def _channel_text(channel: int | str) -> str:
    """Return a channel in words."""
    return f"channel {channel}" if isinstance(channel, int) else channel


AS_STORED = Reading()
"""Reading that leaves everything to the image."""
