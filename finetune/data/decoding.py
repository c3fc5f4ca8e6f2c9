"""Decode an image file to upright RGB, at a reduced size if that is enough."""

import hashlib
import io
import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from PIL import ExifTags, Image, ImageOps, UnidentifiedImageError

from finetune.data.formats import File, open_image
from finetune.data.kinds import Kind, kind_of
from finetune.data.raster import Raster, choose_channels, to_rgb
from finetune.errors import DataError
from finetune.reading import AS_STORED, Reading

Given = TypeVar("Given")
Done = TypeVar("Done")

CHUNK = 16
"""Number of images that a thread takes at once, because switching threads takes longer than reading a small file."""

JPEG_END = b"\xff\xd9"
"""Marker that ends a JPEG stream."""

JPEG_END_WITHIN = 64
"""Number of bytes at the end of a file that must contain the end marker; some cameras pad their files."""

ImageSource = str | Path | bytes | dict[str, Any]
"""Source of an image: a path, the bytes of an encoded file, or a row of `datasets` with `path` and `bytes`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Unreadable:
    """A file that was left out because it cannot be read, and the reason."""

    path: str
    """Path of the file, or `image N` if it has none."""
    reason: str
    """Reason why the file cannot be read."""


def read_image(source: ImageSource, shorter_side: int | None = None, reading: Reading = AS_STORED) -> Image.Image:
    """Return an upright RGB image with a shorter side of at least `shorter_side` pixels, unless the file has fewer.

    The EXIF orientation is applied, transparent pixels are blended with white, and the first frame of an animation is
    read. Images of more than 8 bits, several pages or other channels than grey or colour become RGB as `reading` says;
    by default, such an image is scaled from its smallest to its largest value. A file at least twice as large as
    needed is decoded at a reduced size (JPEG: in the frequency domain), which takes a fraction of the time.

    Raises:
        OSError, ValueError, SyntaxError, Image.DecompressionBombError: the file is not a readable image.
    """
    with opened(source, reading) as image:
        if isinstance(image, Raster):
            rgb = to_rgb(image, reading)
        else:
            if shorter_side is not None:
                # JPEG is decoded at 1/2, 1/4 or 1/8 of its size, as long as both sides stay at least as large as
                # requested.
                image.draft(None, _draft_size(image.size, shorter_side))
            rgb = _with_channels(_to_rgb(ImageOps.exif_transpose(image)), kind_of(image), reading)
    if shorter_side is not None and (factor := min(rgb.size) // shorter_side) >= 2:
        rgb = rgb.reduce(factor)  # means of factor x factor pixels
    return rgb


def opened(source: ImageSource, reading: Reading = AS_STORED) -> AbstractContextManager[Image.Image | Raster]:
    """Return the context of an image that is opened, but not decoded yet, as `open_image` does."""
    return open_image(_open(source), reading)


def decode(source: ImageSource, shorter_side: int, name: str, reading: Reading = AS_STORED) -> Image.Image:
    """Return the image that `read_image` decodes.

    Args:
        source: the image.
        shorter_side: smallest shorter side to decode, in pixels.
        name: name of the image, for the error.
        reading: how its values become 8-bit RGB.

    Raises:
        DataError: the image cannot be decoded.
    """
    try:
        return read_image(source, shorter_side, reading)
    except Exception as error:  # decoders raise exceptions of any type
        reason = " ".join(str(error).split()) or type(error).__name__
        raise DataError(f"{name} cannot be decoded ({reason}); remove it from the data and start again") from None


def native_size(source: ImageSource) -> tuple[int, int]:
    """Return the width and height in the header of the file, in pixels."""
    with opened(source) as image:
        return image.size


def read_exif(path: str, kind: str) -> str | None:
    """Return what the camera stored in a file: its name (`camera`), the day (`date`) or the place to about 1 km
    (`place`); None if the file does not say it."""
    try:
        with Image.open(path) as image:
            exif = image.getexif()
            if kind == "camera":
                found = f"{exif.get(ExifTags.Base.Make, '')} {exif.get(ExifTags.Base.Model, '')}".strip()
            elif kind == "date":
                original = exif.get_ifd(ExifTags.IFD.Exif).get(ExifTags.Base.DateTimeOriginal)
                found = str(original or exif.get(ExifTags.Base.DateTime, ""))[:10]
            else:
                # 1 and 3: N or S, E or W; 2 and 4: degrees, minutes, seconds.
                place = exif.get_ifd(ExifTags.IFD.GPSInfo)
                found = " ".join(
                    f"{place[key]}{float(place[key + 1][0] + place[key + 1][1] / 60):.2f}" for key in (1, 3)
                )
    except Exception:  # damaged metadata raise exceptions of any type
        return None
    return found or None


def why_unreadable(sources: Sequence[ImageSource], reading: Reading = AS_STORED) -> list[str | None]:
    """Return, for each image, the reason why it cannot be read, or None if it can be read, as `examine` finds."""
    return [found if isinstance(found, str) else None for found in examine(sources, reading)]


def examine(sources: Sequence[ImageSource], reading: Reading = AS_STORED) -> list[Kind | str]:
    """Return, for each image, its kind, or the reason why it cannot be read.

    A JPEG file with the end marker and a PNG file with correct checksums count as readable. They are not decoded, which
    would take a hundred times as long. All other files are decoded.
    """
    return _attempt(lambda source: _examine(source, reading), sources)


def why_undecodable(
    sources: Sequence[ImageSource], shorter_side: int, reading: Reading = AS_STORED
) -> list[str | None]:
    """Return, for each image, the reason why it cannot be decoded, or None. All images are decoded, as for a network.

    This finds the files that pass `why_unreadable` because their pixels are damaged.

    Args:
        sources: the images.
        shorter_side: smallest shorter side to decode, in pixels.
        reading: how the values of the images become 8-bit RGB.
    """
    found = _attempt(lambda source: read_image(source, shorter_side, reading) and None, sources)
    return [reason if isinstance(reason, str) else None for reason in found]


def _attempt(check: Callable[[ImageSource], Done], sources: Sequence[ImageSource]) -> list[Done | str]:
    """Return, for each image, the result of a check, or the reason why it failed."""

    def attempt(source: ImageSource | None) -> Done | str:
        if source is None or (isinstance(source, dict) and source.get("bytes") is None and not source.get("path")):
            return "there is no image in this row"
        try:
            return check(source)
        except UnidentifiedImageError:  # its message repeats the path
            return "not an image of a known format"
        except Exception as error:  # decoders raise exceptions of any type (AVIF: RuntimeError)
            return " ".join(str(error).split()) or type(error).__name__

    return in_threads(attempt, sources)


def in_threads(work: Callable[[Given], Done], given: Sequence[Given]) -> list[Done]:
    """Return `work` of each given item, computed in threads.

    Threads help because reading, decoding and hashing release Python's global lock.
    """

    def chunk(start: int) -> list[Done]:
        return [work(item) for item in given[start : start + CHUNK]]

    starts = range(0, len(given), CHUNK)
    if len(starts) <= 1:
        return [done for start in starts for done in chunk(start)]
    with ThreadPoolExecutor(max_workers=os.cpu_count()) as threads:
        return [done for part in threads.map(chunk, starts) for done in part]


def encoded_bytes(source: ImageSource) -> bytes:
    """Return the encoded bytes of an image."""
    if isinstance(source, dict):
        return encoded_bytes(source["bytes"] if source.get("bytes") is not None else source["path"])
    return source if isinstance(source, bytes) else Path(str(source)).read_bytes()


def digest_of(encoded: bytes) -> bytes:
    """Return a digest of an encoded image, 16 bytes."""
    return hashlib.blake2b(encoded, digest_size=16).digest()


def _examine(source: ImageSource, reading: Reading) -> Kind:
    """Return the kind of an image; it is decoded unless it is certainly readable.

    Raises:
        Exception: the image cannot be read; of any type.
    """
    found = _look(source, reading)
    if found is not None:
        return found
    with opened(source, reading) as image:
        kind = kind_of(image)
    read_image(source, 32, reading)
    return kind


def _look(source: ImageSource, reading: Reading) -> Kind | None:
    """Return the kind of an image that is certainly readable, without decoding it; None means that it is uncertain."""
    given = _open(source)
    with given if isinstance(given, io.BytesIO) else Path(given).open("rb") as file:
        try:
            with Image.open(file) as image:
                if image.format not in {"JPEG", "PNG"}:
                    return None
                kind = kind_of(image)
                _choose(kind, reading)
                # Pillow checks the checksum of every chunk of a PNG.
                if image.format == "PNG" and image.mode in {"1", "L", "P", "RGB", "RGBA"}:
                    image.verify()
                    return kind
                is_jpeg = image.format == "JPEG"
        except UnidentifiedImageError:  # Pillow does not know the format, or not without another library
            return None
        if not is_jpeg or file.closed:
            return None
        size = file.seek(0, io.SEEK_END)
        file.seek(max(0, size - JPEG_END_WITHIN))
        return kind if JPEG_END in file.read() else None


def _open(source: ImageSource) -> File:
    """Return the path or the bytes of an image as Pillow opens them."""
    if isinstance(source, dict):
        return _open(source["bytes"] if source.get("bytes") is not None else source["path"])
    return io.BytesIO(source) if isinstance(source, bytes) else source


def _draft_size(size: tuple[int, int], shorter_side: int) -> tuple[int, int]:
    """Return (width, height) with the given shorter side and the same aspect ratio, in pixels."""
    scale = shorter_side / min(size)
    return max(1, int(size[0] * scale)), max(1, int(size[1] * scale))


def _to_rgb(image: Image.Image) -> Image.Image:
    """Return an 8-bit image of any mode in RGB, transparent pixels blended with white."""
    if image.mode in {"RGBA", "LA", "PA", "RGBa", "La"} or "transparency" in image.info:
        rgba = image.convert("RGBA")
        background = Image.new("RGBA", rgba.size, "white")
        return Image.alpha_composite(background, rgba).convert("RGB")
    return image.convert("RGB")


def _choose(kind: Kind, reading: Reading) -> list[int]:
    """Return the numbers of the channels that are read of a kind of image."""
    return choose_channels(kind.num_channels, kind.names, kind.is_rgb, reading)


def _with_channels(rgb: Image.Image, kind: Kind, reading: Reading) -> Image.Image:
    """Return an RGB image with its channels in the order that a reading asks for.

    Raises:
        ValueError: the image has not all of the channels.
    """
    if reading.channels is None:
        return rgb
    bands = [rgb.getchannel(number) for number in _choose(kind, reading)]
    return Image.merge("RGB", bands if len(bands) == 3 else bands * 3)
