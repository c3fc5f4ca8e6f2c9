"""From a file, upright and in RGB, whatever its orientation tag and its mode; small where small is enough."""

import io
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

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


def native_size(source: ImageSource) -> tuple[int, int]:
    """Return (width, height) as stored, read from the header alone."""
    with Image.open(_open(source)) as image:
        return image.size


def why_unreadable(sources: Sequence[ImageSource]) -> list[str | None]:
    """Decode every image once, in threads, and return the reason for each that can not be read, else None."""

    def attempt(source: ImageSource | None) -> str | None:
        if source is None or (isinstance(source, dict) and source.get("bytes") is None and not source.get("path")):
            return "there is no image in this row"
        try:
            read_image(source, shorter_side=32)
        except UnidentifiedImageError:  # its message repeats the path
            return "no image of a known format"
        except Exception as error:  # decoders raise whatever they like (AVIF: RuntimeError)
            return " ".join(str(error).split()) or type(error).__name__
        return None

    with ThreadPoolExecutor(max_workers=min(32, (os.cpu_count() or 1) + 2)) as threads:
        return list(threads.map(attempt, sources, chunksize=16))


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
