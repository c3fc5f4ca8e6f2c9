"""Decode an image file to upright RGB or to channels of any number, at a reduced size if that is enough."""

import hashlib
import io
import os
import warnings
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray
from PIL import ExifTags, Image, UnidentifiedImageError

from finetune.data.formats import File, open_image, turned_upright
from finetune.data.kinds import Kind, kind_of
from finetune.data.raster import Raster, choose_channels, to_bands, to_rgb
from finetune.errors import DataError
from finetune.reading import AS_STORED, Reading

Given = TypeVar("Given")
Done = TypeVar("Done")

CHUNK = 16
"""Number of images that a thread takes at once, because switching threads takes longer than reading a small file."""

# The number of files with broken metadata is printed, instead of a warning for each.
warnings.filterwarnings("ignore", message="Corrupt EXIF data", category=UserWarning)

ImageSource = str | Path | bytes | dict[str, Any]
"""Source of an image: a path, the bytes of an encoded file, or a row of `datasets` with `path` and `bytes`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Unreadable:
    """A file that was left out because it cannot be read, and the reason."""

    path: str
    """Path of the file, or `image N` if it has none."""
    reason: str
    """Reason why the file cannot be read."""


class UndecodableError(DataError):
    """An image that passed the scan of the data cannot be decoded."""


def read_image(source: ImageSource, shorter_side: int | None = None, reading: Reading = AS_STORED) -> Image.Image:
    """Return an upright RGB image with a shorter side of at least `shorter_side` pixels, unless the file has fewer.

    The EXIF orientation is applied if it can be read, transparent pixels are blended with white, and the first frame of
    an animation is read. Images of more than 8 bits, several pages or other channels than grey or colour become RGB as
    `reading` says; by default, such an image is scaled from its smallest to its largest value. A file at least twice as
    large as needed is decoded at a reduced size (JPEG: in the frequency domain), which takes a fraction of the time.

    Raises:
        OSError, ValueError, SyntaxError, Image.DecompressionBombError: the file is not a readable image.
    """
    with opened(source, reading) as image:
        rgb = to_rgb(image, reading) if isinstance(image, Raster) else _pillow_rgb(image, shorter_side, reading)
    return _reduced(rgb, shorter_side)


def read_pixels(
    source: ImageSource, shorter_side: int | None = None, reading: Reading = AS_STORED
) -> NDArray[np.uint8]:
    """Return the pixels (height, width, n_channels) of an image, read as `read_image` does; of other channels than red,
    green and blue each is scaled and reduced by itself.

    Raises:
        OSError, ValueError, SyntaxError, Image.DecompressionBombError: the file is not a readable image.
    """
    if reading.is_rgb:
        return np.array(read_image(source, shorter_side, reading))
    with opened(source, reading) as image:
        if isinstance(image, Raster):
            bands = to_bands(image, reading)
        else:
            bands = _bands(_decoded(image, shorter_side), kind_of(image), reading)
    return np.stack([np.asarray(_reduced(band, shorter_side)) for band in bands], axis=-1)


def opened(source: ImageSource, reading: Reading = AS_STORED) -> AbstractContextManager[Image.Image | Raster]:
    """Return the context of an image that is opened, but not decoded yet, as `open_image` does."""
    return open_image(as_file(source), reading)


def decode(source: ImageSource, shorter_side: int, name: str, reading: Reading = AS_STORED) -> NDArray[np.uint8]:
    """Return the pixels (height, width, n_channels) that `read_pixels` decodes.

    Args:
        source: the image.
        shorter_side: smallest shorter side to decode, in pixels.
        name: name of the image, for the error.
        reading: how its values become 8-bit channels.

    Raises:
        UndecodableError: the image cannot be decoded.
    """
    try:
        return read_pixels(source, shorter_side, reading)
    except Exception as error:  # decoders raise exceptions of any type
        raise undecodable(name, error) from None


def undecodable(name: str, error: Exception) -> UndecodableError:
    """Return the error of an image that cannot be decoded.

    Args:
        name: name of the image.
        error: the error of the decoder.
    """
    return UndecodableError(f"{name} cannot be decoded ({reason_of(error)}); remove it from the data and start again")


def reason_of(error: Exception) -> str:
    """Return in words why an image cannot be read, from the exception that its decoder raised."""
    if isinstance(error, UnidentifiedImageError):  # its message repeats the path
        return "not an image of a known format"
    return " ".join(str(error).split()) or type(error).__name__


def native_size(source: ImageSource) -> tuple[int, int]:
    """Return the width and height in the header of the file, in pixels."""
    with opened(source) as image:
        return image.size


def read_header(source: ImageSource) -> tuple[tuple[int, int], str]:
    """Return the width and height in pixels, and the colour mode, in the header of the file: that of Pillow, or the
    type of the values and the number of channels of a raster."""
    with opened(source) as image:
        if isinstance(image, Image.Image):
            return image.size, image.mode
        return image.size, f"{image.dtype} x {image.num_channels}"


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


def as_file(source: ImageSource) -> File:
    """Return the path or the bytes of an image as Pillow opens them."""
    if isinstance(source, dict):
        return as_file(source["bytes"] if source.get("bytes") is not None else source["path"])
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


def _decoded(image: Image.Image, shorter_side: int | None) -> Image.Image:
    """Return an 8-bit image that Pillow opened in upright RGB, decoded at a reduced size if that is possible."""
    if shorter_side is not None:
        # JPEG is decoded at 1/2, 1/4 or 1/8 of its size, as long as both sides stay at least as large as requested.
        image.draft(None, _draft_size(image.size, shorter_side))
    return _to_rgb(turned_upright(image))


def _pillow_rgb(image: Image.Image, shorter_side: int | None, reading: Reading) -> Image.Image:
    """Return an image that Pillow opened in RGB, with its channels in the order that a reading asks for.

    Raises:
        ValueError: the image has not all of the channels.
    """
    rgb = _decoded(image, shorter_side)
    if reading.channels is None:
        return rgb
    bands = _bands(rgb, kind_of(image), reading)
    return Image.merge("RGB", bands if len(bands) == 3 else bands * 3)


def _bands(rgb: Image.Image, kind: Kind, reading: Reading) -> list[Image.Image]:
    """Return the channels of an RGB image that a reading asks for.

    Raises:
        ValueError: the image has not all of the channels.
    """
    return [rgb.getchannel(number) for number in choose_channels(kind.num_channels, kind.names, kind.is_rgb, reading)]


def _reduced(image: Image.Image, shorter_side: int | None) -> Image.Image:
    """Return an image at a fraction of its size, if its shorter side stays at least as long as asked."""
    if shorter_side is None or (factor := min(image.size) // shorter_side) < 2:
        return image
    return image.reduce(factor)  # means of factor x factor pixels
