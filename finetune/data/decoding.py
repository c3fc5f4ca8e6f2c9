"""Decode an image file to upright RGB, at a reduced size if that is enough."""

import hashlib
import io
import os
import warnings
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import numpy as np
from numpy.typing import NDArray
from PIL import ExifTags, Image, UnidentifiedImageError

from finetune.errors import DataError

Given = TypeVar("Given")
Done = TypeVar("Done")

CHUNK = 16
"""Number of images that a thread takes at once, because switching threads takes longer than reading a small file."""

JPEG_END = b"\xff\xd9"
"""Marker that ends a JPEG stream."""

JPEG_END_WITHIN = 64
"""Number of bytes at the end of a file that must contain the end marker; some cameras pad their files."""

UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
"""Change that turns an image upright, by the orientation in its metadata (EXIF 2.3, tag 274)."""

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


def read_image(source: ImageSource, shorter_side: int | None = None) -> Image.Image:
    """Return an upright RGB image with a shorter side of at least `shorter_side` pixels, unless the file has fewer.

    The EXIF orientation is applied if it can be read, transparent pixels are blended with white, 16-bit and
    floating-point grey is scaled from its smallest to its largest value, and the first frame of an animation is read. A
    file at least twice as large as needed is decoded at a reduced size (JPEG: in the frequency domain), which takes a
    fraction of the time.

    Raises:
        OSError, ValueError, SyntaxError, Image.DecompressionBombError: the file is not a readable image.
    """
    with Image.open(_open(source)) as image:
        if shorter_side is not None:
            # JPEG is decoded at 1/2, 1/4 or 1/8 of its size, as long as both sides stay at least as large as requested.
            image.draft(None, _draft_size(image.size, shorter_side))
        rgb = _to_rgb(_turned_upright(image))
    if shorter_side is not None and (factor := min(rgb.size) // shorter_side) >= 2:
        rgb = rgb.reduce(factor)  # means of factor x factor pixels
    return rgb


def decode(source: ImageSource, shorter_side: int, name: str) -> Image.Image:
    """Return the image that `read_image` decodes.

    Args:
        source: the image.
        shorter_side: smallest shorter side to decode, in pixels.
        name: name of the image, for the error.

    Raises:
        UndecodableError: the image cannot be decoded.
    """
    try:
        return read_image(source, shorter_side)
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


def read_or_explain(path: str, shorter_side: int) -> NDArray[np.uint8] | str:
    """Return the image that `read_image` decodes, (height, width, 3), or the reason why the file cannot be used.

    A file that `why_unreadable` refuses is refused here, too, although its pixels may be whole. It is read once.

    Args:
        path: image file.
        shorter_side: smallest shorter side to decode, in pixels.
    """

    def read(source: ImageSource) -> NDArray[np.uint8]:
        encoded = encoded_bytes(source)
        _is_whole(encoded)
        return np.array(read_image(encoded, shorter_side))

    reason, found = _attempt(read, path)
    return found if found is not None else str(reason)


def native_size(source: ImageSource) -> tuple[int, int]:
    """Return the width and height in the header of the file, in pixels."""
    with Image.open(_open(source)) as image:
        return image.size


def read_header(source: ImageSource) -> tuple[tuple[int, int], str]:
    """Return the width and height in pixels, and Pillow's colour mode, in the header of the file."""
    with Image.open(_open(source)) as image:
        return image.size, image.mode


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


class Scan(NamedTuple):
    """What a scan of a file found."""

    reason: str | None
    """Reason why the file cannot be read; None if it can be read, as far as a scan can say."""
    has_broken_metadata: bool = False
    """Whether the orientation in the metadata cannot be read, so that the pixels are used as they are stored."""


def scan(sources: Sequence[ImageSource]) -> list[Scan]:
    """Return what a scan of each image finds.

    A JPEG file with the end marker and a PNG file with correct checksums count as readable. They are not decoded, which
    would take a hundred times as long. All other files are decoded.
    """

    def check(source: ImageSource) -> bool:
        is_whole, has_broken_metadata = _is_whole(source)
        if not is_whole:
            read_image(source, shorter_side=32)
        return has_broken_metadata

    return [Scan(reason, bool(found)) for reason, found in _attempts(check, sources)]


def why_unreadable(sources: Sequence[ImageSource]) -> list[str | None]:
    """Return, for each image, the reason why it cannot be read, or None, as `scan` finds it."""
    return [each.reason for each in scan(sources)]


def why_undecodable(sources: Sequence[ImageSource], shorter_side: int) -> list[str | None]:
    """Return, for each image, the reason why it cannot be decoded, or None. All images are decoded, as for a network.

    This finds the files that pass `scan` because their pixels are damaged.

    Args:
        sources: the images.
        shorter_side: smallest shorter side to decode, in pixels.
    """
    return [reason for reason, _ in _attempts(lambda source: read_image(source, shorter_side) and None, sources)]


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


def _is_whole(source: ImageSource) -> tuple[bool, bool]:
    """Return whether an image is certainly readable, without decoding it, and whether its metadata are broken.

    The first False means that it is uncertain.
    """
    opened = _open(source)
    with opened if isinstance(opened, io.BytesIO) else Path(opened).open("rb") as file:
        with Image.open(file) as image:
            is_broken = {"exif", "xmp"} & image.info.keys() and _orientation(image) is None
            # Pillow checks the checksum of every chunk of a PNG.
            if image.format == "PNG" and image.mode in {"1", "L", "P", "RGB", "RGBA"}:
                image.verify()
                return True, bool(is_broken)
            is_jpeg = image.format == "JPEG"
        if not is_jpeg or file.closed:
            return False, bool(is_broken)
        size = file.seek(0, io.SEEK_END)
        file.seek(max(0, size - JPEG_END_WITHIN))
        return JPEG_END in file.read(), bool(is_broken)


def _open(source: ImageSource) -> str | Path | io.BytesIO:
    """Return the path or the bytes of an image as Pillow opens them."""
    if isinstance(source, dict):
        return _open(source["bytes"] if source.get("bytes") is not None else source["path"])
    return io.BytesIO(source) if isinstance(source, bytes) else source


def _turned_upright(image: Image.Image) -> Image.Image:
    """Return an image turned as the orientation in its metadata says; as it is stored if that cannot be read."""
    image.load()  # before the metadata is read: Pillow turns TIFF images itself while it loads them
    change = UPRIGHT.get(_orientation(image) or 1)
    return image if change is None else image.transpose(change)


def _orientation(image: Image.Image) -> int | None:
    """Return the orientation in an image's metadata, 1 if there is none; None if it cannot be read."""
    try:
        found = image.getexif().get(ExifTags.Base.Orientation, 1)
    except Exception:  # damaged metadata raise exceptions of any type
        return None
    return found if isinstance(found, int) else None


def _draft_size(size: tuple[int, int], shorter_side: int) -> tuple[int, int]:
    """Return (width, height) with the given shorter side and the same aspect ratio, in pixels."""
    scale = shorter_side / min(size)
    return max(1, int(size[0] * scale)), max(1, int(size[1] * scale))


def _to_rgb(image: Image.Image) -> Image.Image:
    """Return an image of any mode in RGB, transparent pixels blended with white."""
    # I, I;16 and F are 32-bit, 16-bit and floating-point grey.
    if image.mode in {"I", "F"} or image.mode.startswith("I;16"):
        return _stretched(image)
    if image.mode in {"RGBA", "LA", "PA", "RGBa", "La"} or "transparency" in image.info:
        rgba = image.convert("RGBA")
        background = Image.new("RGBA", rgba.size, "white")
        return Image.alpha_composite(background, rgba).convert("RGB")
    return image.convert("RGB")


def _stretched(image: Image.Image) -> Image.Image:
    """Return an image of deep grey as 8-bit RGB, scaled from its smallest to its largest value.

    Cameras use 10 to 16 bits, so a fixed divisor does not suit them all. A constant image keeps its value, limited to
    255.
    """
    values = np.asarray(image, dtype=np.float32)
    # 255 (value - low) / (high - low), over finite values; floating-point images may have holes.
    finite = values[np.isfinite(values)]
    low, high = (float(finite.min()), float(finite.max())) if finite.size else (0.0, 0.0)
    values = np.nan_to_num(values, nan=low, posinf=high, neginf=low)
    scaled = (values - low) * (255.0 / max(high - low, 1e-12)) if high > low else np.clip(values, 0.0, 255.0)
    return Image.fromarray(scaled.round().astype(np.uint8)).convert("RGB")
