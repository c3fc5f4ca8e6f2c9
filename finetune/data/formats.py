"""Open an image file of any format, by its content: one door for Pillow and for the libraries that are extras."""

import io
import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

import numpy as np
from PIL import ExifTags, Image, UnidentifiedImageError, features

from finetune.data.raster import TURNS, Raster, pages_as_channels
from finetune.reading import AS_STORED, Reading

Opened = TypeVar("Opened")

# Pillow reports each TIFF of more than six channels as an error, before tifffile reads it.
logging.getLogger("PIL.TiffImagePlugin").addFilter(lambda record: "More samples per pixel" not in record.msg)

HEADER = 132
"""Number of bytes at the start of a file that show its format."""

TIFF_MARKS = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
"""First bytes of a TIFF and of a BigTIFF, in either byte order."""

HEIF_BRANDS = {b"heic", b"heix", b"hevc", b"hevx", b"heim", b"heis", b"mif1", b"msf1"}
"""Brands of HEIF files (ISO/IEC 23008-12); an AVIF has other ones."""

AVIF_BRANDS = {b"avif", b"avis"}
"""Brands of AVIF files."""

File = str | Path | io.BytesIO
"""A path, or the bytes of a file."""


@contextmanager
def open_image(file: File, reading: Reading = AS_STORED) -> Iterator[Image.Image | Raster]:
    """Open an image: as one of Pillow if it is 8 bits deep and has one page of grey or colour, else as a raster.

    Raises:
        OSError, ValueError, SyntaxError: the file is not an image, or a library that its format needs is missing; the
            text names the command that installs it.
    """
    with _open(file, reading) as opened:
        if isinstance(opened, Raster) and reading.pages == "channels":
            opened = pages_as_channels(opened)
        yield opened


@contextmanager
def _open(file: File, reading: Reading) -> Iterator[Image.Image | Raster]:
    """Open an image as it is stored, with its pages."""
    opened: Image.Image | Raster
    try:
        opened = Image.open(file)
    except UnidentifiedImageError:
        other = _open_other(file)
        if other is None:
            raise
        opened = other
    if isinstance(opened, Raster):
        yield opened
        return
    with opened:
        if opened.format == "TIFF" and not _is_for_pillow(opened, reading):
            yield _read_tiff(file)
        elif is_deep_grey(opened):
            yield _deep_grey(opened)
        else:
            yield opened


def turned_upright(image: Image.Image) -> Image.Image:
    """Return an image turned as the orientation in its metadata says; as it is stored if that cannot be read."""
    image.load()  # before the metadata is read: Pillow turns TIFF images itself while it loads them
    change = TURNS.get(orientation_of(image) or 1)
    return image if change is None else image.transpose(change)


def orientation_of(image: Image.Image) -> int | None:
    """Return the orientation in an image's metadata, 1 if there is none; None if it cannot be read."""
    try:
        found = image.getexif().get(ExifTags.Base.Orientation, 1)
    except Exception:  # damaged metadata raise exceptions of any type
        return None
    return found if isinstance(found, int) else None


def is_deep_grey(image: Image.Image) -> bool:
    """Return whether an image of Pillow is grey of more than 8 bits: 16 bits, 32 bits or floating-point."""
    return image.mode in {"I", "F"} or image.mode.startswith("I;16")


def _deep_grey(image: Image.Image) -> Raster:
    """Return the raster of deep grey that Pillow reads."""
    kind = np.uint16 if image.mode.startswith("I;16") else np.int32 if image.mode == "I" else np.float32
    return Raster(
        load=lambda _pages: np.asarray(turned_upright(image))[None, None],
        size=image.size,
        dtype=np.dtype(kind),
    )


def _is_for_pillow(image: Image.Image, reading: Reading) -> bool:
    from finetune.data.tiff import is_for_pillow

    return is_for_pillow(image, reading)


def _read_tiff(file: File) -> Raster:
    """Return the raster of a TIFF that Pillow does not read whole."""
    from finetune.data.tiff import read_tiff

    return _with_library(read_tiff, _at_start(file), "this kind of TIFF", "tifffile imagecodecs")


def _open_other(file: File) -> Image.Image | Raster | None:
    """Return an image that Pillow alone does not know, or None if nothing is known about its format."""
    header = _header(file)
    if header.startswith(TIFF_MARKS):
        return _read_tiff(file)
    if header[128:132] == b"DICM":
        from finetune.data.dicom import read_dicom

        return _with_library(read_dicom, _at_start(file), "DICOM", "pydicom")
    brand = header[8:12] if header[4:8] == b"ftyp" else b""
    if brand in AVIF_BRANDS and not features.check("avif"):
        raise ValueError("AVIF needs Pillow 11.3 or later: pip install --upgrade pillow")
    if brand in HEIF_BRANDS:
        return _with_library(_open_heif, _at_start(file), "HEIC", "pillow-heif")
    return None


def _open_heif(file: File) -> Image.Image:
    """Return a HEIC image; from then on Pillow reads all of them."""
    import pillow_heif

    pillow_heif.register_heif_opener()
    return Image.open(file)


def _with_library(read: Callable[[File], Opened], file: File, what: str, packages: str) -> Opened:
    """Return what a function reads from a file, or name the command that installs what it needs."""
    try:
        return read(file)
    except ImportError as error:
        raise ValueError(f"{what} needs {packages.replace(' ', ' and ')}: pip install {packages}") from error


def _at_start(file: File) -> File:
    if isinstance(file, io.BytesIO):
        file.seek(0)
    return file


def _header(file: File) -> bytes:
    """Return the first bytes of a file."""
    if isinstance(file, io.BytesIO):
        return file.getvalue()[:HEADER]
    with Path(file).open("rb") as opened:
        return opened.read(HEADER)
