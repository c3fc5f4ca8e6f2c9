"""Scan image files: which of them can be read, of what kind they are, and why the others cannot be used."""

import io
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

from finetune.data.decoding import Done, ImageSource, as_file, encoded_bytes, in_threads, opened, read_pixels, reason_of
from finetune.data.formats import orientation_of
from finetune.data.kinds import Kind, kind_of
from finetune.data.raster import choose_channels
from finetune.reading import AS_STORED, Reading

JPEG_END = b"\xff\xd9"
"""Marker that ends a JPEG stream."""

JPEG_END_WITHIN = 64
"""Number of bytes at the end of a file that must contain the end marker; some cameras pad their files."""


class Scan(NamedTuple):
    """What a scan of a file found."""

    reason: str | None
    """Reason why the file cannot be read; None if it can be read, as far as a scan can say."""
    has_broken_metadata: bool = False
    """Whether the orientation in the metadata cannot be read, so that the pixels are used as they are stored."""
    kind: Kind | None = None
    """Kind of the image; None if it cannot be read."""


def scan(sources: Sequence[ImageSource], reading: Reading = AS_STORED) -> list[Scan]:
    """Return what a scan of each image finds.

    A JPEG file with the end marker and a PNG file with correct checksums count as readable. They are not decoded, which
    would take a hundred times as long. All other files are decoded.
    """

    def check(source: ImageSource) -> Scan:
        kind, has_broken_metadata = _look(source, reading)
        if kind is None:
            kind = _kind(source, reading)
            read_pixels(source, 32, reading)
        return Scan(None, has_broken_metadata, kind)

    return [Scan(reason) if found is None else found for reason, found in _attempts(check, sources)]


def why_unreadable(sources: Sequence[ImageSource], reading: Reading = AS_STORED) -> list[str | None]:
    """Return, for each image, the reason why it cannot be read, or None, as `scan` finds it."""
    return [each.reason for each in scan(sources, reading)]


def why_undecodable(
    sources: Sequence[ImageSource], shorter_side: int, reading: Reading = AS_STORED
) -> list[str | None]:
    """Return, for each image, the reason why it cannot be decoded, or None. All images are decoded, as for a network.

    This finds the files that pass `scan` because their pixels are damaged.

    Args:
        sources: the images.
        shorter_side: smallest shorter side to decode, in pixels.
        reading: how the values of the images become 8-bit channels.
    """

    def check(source: ImageSource) -> None:
        read_pixels(source, shorter_side, reading)

    return [reason for reason, _ in _attempts(check, sources)]


def read_or_explain(path: str, shorter_side: int, reading: Reading = AS_STORED) -> tuple[NDArray[np.uint8], Kind] | str:
    """Return the pixels that `read_pixels` decodes, (height, width, n_channels), and their kind; or why the file cannot
    be used.

    A file that `why_unreadable` refuses is refused here, too, although its pixels may be whole. It is read once.

    Args:
        path: image file.
        shorter_side: smallest shorter side to decode, in pixels.
        reading: how the values of the image become 8-bit channels.
    """

    def read(source: ImageSource) -> tuple[NDArray[np.uint8], Kind]:
        encoded = encoded_bytes(source)
        kind, _ = _look(encoded, reading)
        return read_pixels(encoded, shorter_side, reading), kind or _kind(encoded, reading)

    reason, found = _attempt(read, path)
    return found if found is not None else str(reason)


def _attempts(
    check: Callable[[ImageSource], Done], sources: Sequence[ImageSource]
) -> list[tuple[str | None, Done | None]]:
    """Return, for each image, the reason why a check failed, or None, and what the check returned."""
    return in_threads(lambda source: _attempt(check, source), sources)


def _attempt(check: Callable[[ImageSource], Done], source: ImageSource | None) -> tuple[str | None, Done | None]:
    """Return the reason why a check of an image failed, or None, and what the check returned."""
    if source is None or (isinstance(source, dict) and source.get("bytes") is None and not source.get("path")):
        return "there is no image in this row", None
    try:
        return None, check(source)
    except Exception as error:  # decoders raise exceptions of any type (AVIF: RuntimeError)
        return reason_of(error), None


def _kind(source: ImageSource, reading: Reading) -> Kind:
    with opened(source, reading) as image:
        return kind_of(image)


def _look(source: ImageSource, reading: Reading) -> tuple[Kind | None, bool]:
    """Return the kind of an image that is certainly readable, without decoding it, and whether its metadata are broken.

    Without a kind, it is uncertain whether the image is readable.
    """
    given = as_file(source)
    with given if isinstance(given, io.BytesIO) else Path(given).open("rb") as file:
        try:
            with Image.open(file) as image:
                is_broken = bool({"exif", "xmp"} & image.info.keys()) and orientation_of(image) is None
                if image.format not in {"JPEG", "PNG"}:
                    return None, is_broken
                kind = kind_of(image)
                choose_channels(kind.num_channels, kind.names, kind.is_rgb, reading)
                # Pillow checks the checksum of every chunk of a PNG.
                if image.format == "PNG" and image.mode in {"1", "L", "P", "RGB", "RGBA"}:
                    image.verify()
                    return kind, is_broken
                is_jpeg = image.format == "JPEG"
        except UnidentifiedImageError:  # Pillow does not know the format, or not without another library
            return None, False
        if not is_jpeg or file.closed:
            return None, is_broken
        size = file.seek(0, io.SEEK_END)
        file.seek(max(0, size - JPEG_END_WITHIN))
        return (kind if JPEG_END in file.read() else None), is_broken
