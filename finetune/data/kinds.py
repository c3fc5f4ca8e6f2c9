"""Tell which kinds of images there are: their depth, pages and channels; and say in words how each kind is read."""

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from PIL import Image

from finetune.data.raster import Raster
from finetune.reading import Reading, describe_pages

ANIMATED = {"GIF": "GIF", "WEBP": "WebP", "PNG": "APNG", "AVIF": "AVIF"}
"""Formats of animations, by Pillow's name."""

SAMPLES = 277
"""TIFF's tag with the number of values of a pixel."""

GREY_MODES = {"1", "L", "LA", "La"}
"""Pillow's modes with one channel; all others become red, green and blue."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Kind:
    """What the header of an image file says about its depth, pages and channels."""

    depth: str = ""
    """Depth of values of more than 8 bits, such as `16 bits`; empty: 8 bits or fewer."""
    num_pages: int = 1
    """Number of pages."""
    num_channels: int = 3
    """Number of channels, without transparency."""
    names: tuple[str, ...] = ()
    """Names of the channels; empty: they have none."""
    is_rgb: bool = True
    """Whether the first three channels are red, green and blue."""
    has_window: bool = False
    """Whether the file says which values to show as black and white."""
    animation: str = ""
    """Format of an animation; empty: it is none."""
    is_cut: bool = False
    """Whether Pillow reads only the upper 8 bits of its 16-bit colours."""

    def needs_range(self, reading: Reading) -> bool:
        """Return whether images of this kind are scaled by a range: they are deep, and not by a window of their own."""
        return bool(self.depth) and not (self.has_window and reading.uses_windows)


PLAIN = Kind()
"""Colour of 8 bits."""

GREY = Kind(num_channels=1, is_rgb=False)
"""Grey of 8 bits."""


def kind_of(image: Image.Image | Raster) -> Kind:
    """Return the kind of an image that is opened, but not decoded yet."""
    if isinstance(image, Raster):
        return Kind(
            depth=_depth(image) if image.is_deep else "",
            num_pages=image.num_pages,
            num_channels=image.num_channels,
            names=image.names,
            is_rgb=image.is_rgb,
            has_window=image.window is not None,
        )
    is_animated = image.format in ANIMATED and getattr(image, "is_animated", False)
    is_cut = (
        image.format == "PNG" and image.mode in {"RGB", "RGBA", "LA"} and "16" in str(getattr(image, "tile", "")[:1])
    )
    tags = getattr(image, "tag_v2", {})
    if image.mode == "RGB" and tags.get(SAMPLES, 3) > 3:
        return Kind(num_channels=int(tags[SAMPLES]))
    if not is_animated and not is_cut:
        return GREY if image.mode in GREY_MODES else PLAIN
    return Kind(
        num_channels=1 if image.mode in GREY_MODES else 3,
        is_rgb=image.mode not in GREY_MODES,
        animation=ANIMATED[image.format or ""] if is_animated else "",
        is_cut=is_cut,
    )


def _depth(raster: Raster) -> str:
    """Return the depth of the values in words."""
    return "floating-point" if raster.dtype.kind == "f" else f"{8 * raster.dtype.itemsize} bits"


def describe_kinds(kinds: Sequence[Kind], reading: Reading) -> list[str]:
    """Return a sentence about each decision that the kinds of images need; none for 8-bit grey and colour.

    The range of deep images is described where it is found.
    """
    counts = Counter(kind for kind in kinds if kind not in {PLAIN, GREY})
    if not counts:
        return []
    return [
        *_about_windows(counts, reading),
        *_about_channels(counts, reading),
        *_about_pages(counts, reading),
        *_about_animations(counts),
        *_about_cut_colours(counts),
    ]


def describe_depth(kinds: Iterable[Kind], reading: Reading) -> list[str]:
    """Return a sentence if the images of a trained model have another depth than its range is for."""
    found, given = [], {*kinds}
    if reading.range is None and any(kind.needs_range(reading) for kind in given):
        found.append(
            "the model has no range for images deeper than 8 bits, so each of them is scaled from its own smallest to "
            "its largest value"
        )
    if reading.ranges and not all(kind.depth for kind in given):
        found.append("the range of the model is for images deeper than 8 bits; 8-bit images keep their values")
    return found


def _count(counts: Counter[Kind], belongs: Callable[[Kind], bool]) -> int:
    """Return the number of images of some kinds."""
    return sum(count for kind, count in counts.items() if belongs(kind))


def _about_windows(counts: Counter[Kind], reading: Reading) -> list[str]:
    count = _count(counts, lambda kind: kind.has_window)
    if not count or not reading.uses_windows:
        return []
    return [
        f"{_images(count, 'is', 'are')} scaled by the window that each file names; --set image.window=false scales all "
        f"of them with one range"
    ]


def _about_channels(counts: Counter[Kind], reading: Reading) -> list[str]:
    if not reading.is_rgb:
        return _about_unread_channels(counts, reading)
    if reading.channels is not None:
        return []
    found = []
    count = _count(counts, lambda kind: kind.num_channels == 3 and not kind.is_rgb)
    if count:
        names = next((kind.names for kind in counts if kind.num_channels == 3 and kind.names), ())
        listed = f" ({', '.join(names)})" if names else ""
        found.append(
            f"{_images(count, 'has', 'have')} 3 channels{listed}, which become red, green and blue in this order; "
            f"--set 'image.channels=[2, 0, 1]' changes it"
        )
    count = _count(counts, lambda kind: kind.num_channels > 3 and kind.is_rgb)
    if count:
        found.append(
            f"{_images(count, 'has', 'have')} more channels than red, green and blue, which alone are read; "
            f"--set 'image.channels=[3, 0, 1]' reads others, --set image.channels=all all of them"
        )
    return found


def _about_unread_channels(counts: Counter[Kind], reading: Reading) -> list[str]:
    """Return a sentence about images with more channels than a reading of other than red, green and blue lists."""
    read = len({*(reading.channels or ())})
    more = {kind.num_channels for kind in counts if kind.num_channels > read}
    if not more:
        return []
    count = _count(counts, lambda kind: kind.num_channels > read)
    channels = f"{min(more)}" if len(more) == 1 else f"{min(more)} to {max(more)}"
    return [
        f"{_images(count, 'has', 'have')} {channels} channels, of which {read} are read "
        f"({', '.join(map(str, reading.channels or ()))}); --set image.channels=all reads all of them"
    ]


def _about_pages(counts: Counter[Kind], reading: Reading) -> list[str]:
    numbers = sorted({kind.num_pages for kind in counts if kind.num_pages > 1})
    if not numbers:
        return []
    count = _count(counts, lambda kind: kind.num_pages > 1)
    other = "first" if reading.pages not in {None, "first"} else "max (or middle, a number, or channels)"
    pages = f"{numbers[0]}" if len(numbers) == 1 else f"{numbers[0]} to {numbers[-1]}"
    return [
        f"{_images(count, 'has', 'have')} {pages} pages: of each, {describe_pages(reading.pages)} is read; "
        f"--set image.pages={other} changes it"
    ]


def _about_animations(counts: Counter[Kind]) -> list[str]:
    names = sorted({kind.animation for kind in counts if kind.animation})
    if not names:
        return []
    count = _count(counts, lambda kind: bool(kind.animation))
    return [f"{_images(count, 'is', 'are')} animated ({', '.join(names)}): the first frame is read"]


def _about_cut_colours(counts: Counter[Kind]) -> list[str]:
    count = _count(counts, lambda kind: kind.is_cut)
    if not count:
        return []
    return [
        f"{_images(count, 'has', 'have')} colours of 16 bits in a PNG, of which the upper 8 are read (values from 0 to "
        f"65,535 become 0 to 255); a TIFF is read with one range"
    ]


def _images(count: int, one: str, several: str) -> str:
    """Return a number of images with a verb."""
    return f"{count:,} image{'' if count == 1 else 's'} {one if count == 1 else several}"
