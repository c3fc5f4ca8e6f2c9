"""From a file, upright and in RGB, whatever its orientation tag and its mode; small where small is enough."""

import hashlib
import io
import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from finetune.errors import DataError

Given = TypeVar("Given")
Done = TypeVar("Done")

CHUNK = 16
"""Images that a thread takes at once: small files are read faster than threads take turns."""

JPEG_END = b"\xff\xd9"
"""The marker that ends a JPEG stream."""

JPEG_END_WITHIN = 64
"""Bytes of the file's end in which the marker must lie: some cameras pad their files."""

ImageSource = str | Path | bytes | dict[str, Any]
"""A path, an encoded file's bytes, or a row of `datasets` with `path` and `bytes`."""


def read_image(source: ImageSource, shorter_side: int | None = None) -> Image.Image:
    """Return an upright RGB image whose shorter side is at least `shorter_side`, unless the file's is smaller.

    The EXIF orientation is applied, transparency is laid on white, 16-bit and floating-point grey is stretched from its
    least to its greatest value, and of an animation the first frame is read. Where the file is at least twice as
    large as asked for, it is decoded smaller (JPEG: in the frequency domain), which costs a fraction of the time.

    Raises:
        OSError, ValueError, SyntaxError, Image.DecompressionBombError: the file is no readable image.
    """
    with Image.open(_open(source)) as image:
        if shorter_side is not None:
            image.draft(None, _draft_size(image.size, shorter_side))
        upright = ImageOps.exif_transpose(image)
        rgb = _to_rgb(upright)
    if shorter_side is not None and (factor := min(rgb.size) // shorter_side) >= 2:
        rgb = rgb.reduce(factor)
    return rgb


def decode(source: ImageSource, shorter_side: int, name: str) -> Image.Image:
    """Return `read_image` of an image that is called `name`.

    Raises:
        DataError: it can not be decoded.
    """
    try:
        return read_image(source, shorter_side)
    except Exception as error:  # decoders raise whatever they like
        reason = " ".join(str(error).split()) or type(error).__name__
        raise DataError(f"{name} can not be decoded ({reason}); take it out of the data and start again") from None


def native_size(source: ImageSource) -> tuple[int, int]:
    """Return (width, height) as stored, read from the header alone."""
    with Image.open(_open(source)) as image:
        return image.size


def why_unreadable(sources: Sequence[ImageSource]) -> list[str | None]:
    """Return the reason for each image that can not be read, else None.

    A JPEG file that ends as it should and a PNG file with the right checksums are not decoded: that costs a hundred
    times as much. Everything else is.
    """

    def attempt(source: ImageSource | None) -> str | None:
        if source is None or (isinstance(source, dict) and source.get("bytes") is None and not source.get("path")):
            return "there is no image in this row"
        try:
            if not _is_whole(source):
                read_image(source, shorter_side=32)
        except UnidentifiedImageError:  # its message repeats the path
            return "no image of a known format"
        except Exception as error:  # decoders raise whatever they like (AVIF: RuntimeError)
            return " ".join(str(error).split()) or type(error).__name__
        return None

    return in_threads(attempt, sources)


def in_threads(work: Callable[[Given], Done], given: Sequence[Given]) -> list[Done]:
    """Return `work` of each; reading, decoding and hashing let other threads run meanwhile."""

    def chunk(start: int) -> list[Done]:
        return [work(item) for item in given[start : start + CHUNK]]

    starts = range(0, len(given), CHUNK)
    if len(starts) <= 1:
        return [done for start in starts for done in chunk(start)]
    with ThreadPoolExecutor(max_workers=os.cpu_count()) as threads:
        return [done for part in threads.map(chunk, starts) for done in part]


def encoded_bytes(source: ImageSource) -> bytes:
    """Return an image as it is encoded in its file."""
    if isinstance(source, dict):
        return encoded_bytes(source["bytes"] if source.get("bytes") is not None else source["path"])
    return source if isinstance(source, bytes) else Path(str(source)).read_bytes()


def digest_of(encoded: bytes) -> bytes:
    """Return what tells encoded images apart."""
    return hashlib.blake2b(encoded, digest_size=16).digest()


def _is_whole(source: ImageSource) -> bool:
    """Return whether an image is sure to be readable without decoding it; False says nothing."""
    opened = _open(source)
    with opened if isinstance(opened, io.BytesIO) else Path(opened).open("rb") as file:
        with Image.open(file) as image:
            if image.format == "PNG" and image.mode in {"1", "L", "P", "RGB", "RGBA"}:
                image.verify()
                return True
            is_jpeg = image.format == "JPEG"
        if not is_jpeg or file.closed:
            return False
        size = file.seek(0, io.SEEK_END)
        file.seek(max(0, size - JPEG_END_WITHIN))
        return JPEG_END in file.read()


def _open(source: ImageSource) -> str | Path | io.BytesIO:
    if isinstance(source, dict):
        return _open(source["bytes"] if source.get("bytes") is not None else source["path"])
    return io.BytesIO(source) if isinstance(source, bytes) else source


def _draft_size(size: tuple[int, int], shorter_side: int) -> tuple[int, int]:
    scale = shorter_side / min(size)
    return max(1, int(size[0] * scale)), max(1, int(size[1] * scale))


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode in {"I", "F"} or image.mode.startswith("I;16"):
        return _stretched(image)
    if image.mode in {"RGBA", "LA", "PA", "RGBa", "La"} or "transparency" in image.info:
        rgba = image.convert("RGBA")
        background = Image.new("RGBA", rgba.size, "white")
        return Image.alpha_composite(background, rgba).convert("RGB")
    return image.convert("RGB")


def _stretched(image: Image.Image) -> Image.Image:
    """Return deep grey as 8-bit RGB: cameras fill 10 to 16 bits, so no fixed divisor suits them all."""
    values = np.asarray(image, dtype=np.float32)
    finite = values[np.isfinite(values)]
    low, high = (float(finite.min()), float(finite.max())) if finite.size else (0.0, 0.0)
    values = np.nan_to_num(values, nan=low, posinf=high, neginf=low)
    scaled = (values - low) * (255.0 / max(high - low, 1e-12)) if high > low else np.clip(values, 0.0, 255.0)
    return Image.fromarray(scaled.round().astype(np.uint8)).convert("RGB")
