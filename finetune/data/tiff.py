"""Read a TIFF that Pillow does not read whole: several pages or channels, deep colours, OME, rare compressions."""

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from finetune.data.raster import Raster
from finetune.reading import Reading

if TYPE_CHECKING:
    import tifffile

BITS, SAMPLES, EXTRA_SAMPLES, ORIENTATION = 258, 277, 338, 274
"""Numbers of TIFF's tags."""

ALPHA = {1, 2}
"""Kinds of extra samples that are transparency."""

COLOURS = {2, 6}
"""Photometric interpretations of red, green and blue, and of luma and chroma, which the decoder turns into them."""

IN_A_PAGE = "YXSC"
"""Axes that belong to one page of an image; all others number its pages."""


def is_for_pillow(image: Image.Image, reading: Reading) -> bool:
    """Return whether Pillow reads all of a TIFF: one page of 8-bit grey or colour, or of deep grey."""
    tags: Any = getattr(image, "tag_v2", {})
    samples, extra = int(tags.get(SAMPLES, 1)), tags.get(EXTRA_SAMPLES, ())
    is_deep_colour = samples > 1 and max(tags.get(BITS, (1,))) > 8
    # Pillow takes the second of two channels for transparency, whatever the file says.
    has_more = samples > 3 or (samples == 2 and not reading.is_rgb)
    is_mapped = reading.channels is not None and has_more and not ALPHA & set(extra)
    return getattr(image, "n_frames", 1) == 1 and not is_deep_colour and not is_mapped


def read_tiff(file: Any) -> Raster:  # noqa: ANN401  (a path or an open file)
    """Return the first series of images of a TIFF.

    Args:
        file: a path, or the bytes of the file as `BytesIO`.

    Raises:
        ImportError: tifffile is not installed.
        ValueError: the axes of the file are not those of an image.
    """
    import tifffile

    with tifffile.TiffFile(file) as opened:
        series, page = opened.series[0], opened.series[0].keyframe
        sizes = dict(zip(series.axes, series.shape, strict=True))
        if not {"X", "Y"} <= sizes.keys():
            raise ValueError(f"its axes are {series.axes}, but an image has Y and X")
        has_palette = _palette(page) is not None
        num_samples = 3 if has_palette else sizes.get("S", 1)
        num_alpha = sum(int(kind) in ALPHA for kind in page.extrasamples)
        num_colours = num_samples - num_alpha if num_samples > num_alpha else num_samples
        orientation = page.tags.get(ORIENTATION)
        return Raster(
            load=lambda pages: _load(file, pages),
            size=(sizes["X"], sizes["Y"]),
            dtype=np.dtype(np.uint8) if has_palette else np.dtype(series.dtype),
            num_pages=_num_pages(series),
            num_channels=sizes.get("C", 1) * num_colours,
            names=_channel_names(opened, sizes.get("C", 1)),
            is_rgb=num_colours >= 3 and "C" not in sizes and (has_palette or page.photometric in COLOURS),
            is_inverted=page.photometric == 0,  # white is zero
            orientation=1 if orientation is None else int(orientation.value),
        )


def _load(file: Any, pages: Sequence[int]) -> NDArray[np.generic]:  # noqa: ANN401  (a path or an open file)
    """Return some pages (n_pages, n_channels, height, width) of the first series of a file."""
    import tifffile

    if hasattr(file, "seek"):
        file.seek(0)
    with tifffile.TiffFile(file) as opened:
        series: Any = opened.series[0]
        axes, outer = series.axes, _outer(series.axes)
        # Pages of a plain stack are pages of the file, so that only those are read that are needed.
        is_plain = "C" not in axes and axes.startswith(outer) and len(series.pages) == _num_pages(series)
        if is_plain:
            stored = np.stack([series.pages[page].asarray() for page in pages])
            axes = "Q" + axes[len(outer) :]
        else:
            stored = series.asarray()
        # All axes in the order: pages, channels, samples, height, width.
        moved = stored.transpose([axes.index(axis) for axis in (*_outer(axes), *"CSYX") if axis in axes])
        values = moved.reshape(len(pages) if is_plain else _num_pages(series), -1, *moved.shape[-2:])
        values = values if is_plain else values[list(pages)]
        palette = _palette(series.keyframe)
        return values if palette is None else np.moveaxis(palette[:, values[:, 0]], 0, 1)


def _palette(page: Any) -> NDArray[np.uint8] | None:  # noqa: ANN401  (tifffile's own type)
    """Return the colours (3, n_colours) of a page that has a palette, or None."""
    is_used = page.photometric == 3 and page.colormap is not None  # 3: TIFF's palette colour
    return (page.colormap >> 8).astype(np.uint8) if is_used else None


def _num_pages(series: Any) -> int:  # noqa: ANN401  (tifffile's own type)
    """Return the number of pages: the product of the sizes of all axes that are not within a page."""
    sizes = [size for axis, size in zip(series.axes, series.shape, strict=True) if axis not in IN_A_PAGE]
    return math.prod(sizes)


def _outer(axes: str) -> str:
    """Return the axes that number the pages, in their order."""
    return "".join(axis for axis in axes if axis not in IN_A_PAGE)


def _channel_names(opened: "tifffile.TiffFile", count: int) -> tuple[str, ...]:
    """Return the names of the channels in the metadata of an OME-TIFF; () if it does not name each of them."""
    import tifffile

    if not opened.ome_metadata or count < 2:
        return ()
    images: Any = tifffile.xml2dict(opened.ome_metadata)["OME"]["Image"]
    image = images[0] if isinstance(images, list) else images
    listed: Any = image["Pixels"].get("Channel", [])
    names = [str(channel["Name"]) for channel in listed if "Name" in channel] if isinstance(listed, list) else []
    return tuple(names) if len(names) == count == len(set(names)) else ()
