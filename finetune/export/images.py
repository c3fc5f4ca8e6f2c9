"""Choose the images on which an exported model is compared with its run."""

import csv
import io
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from datasets import Dataset, Features
from datasets import Image as ImageFeature
from numpy.typing import NDArray
from PIL import Image

from finetune.data import ImageSource, files_below, native_size, read_pixels, why_unreadable
from finetune.errors import DataError, ExportError, missing_libraries
from finetune.reading import AS_STORED, Reading

LEAST_IMAGES = 200
"""Number of images to compare at least."""

LEAST_SHAPES = 20
"""Number of different heights and widths to compare at least."""

DERIVED_SHAPES = 40
"""Number of derived images that are added to images of fewer shapes than `LEAST_SHAPES`."""

SIDES = (48, 400)
"""Shortest and longest side of a derived image, in pixels."""


@dataclass(frozen=True, slots=True)
class CheckImages:
    """Images to compare an exported model on, and a description of where they come from."""

    sources: tuple[ImageSource, ...]
    """Sources of the images: paths, or the bytes of 8-bit PNG or TIFF files."""
    num_shapes: int
    """Number of different heights and widths."""
    origin: str
    """Description of the images, such as `200 of 372 test images`."""

    def table(self) -> Dataset:
        """Return a table of the images, as predictions read it."""
        rows = [
            {"path": None, "bytes": source} if isinstance(source, bytes) else {"path": str(source), "bytes": None}
            for source in self.sources
        ]
        return Dataset.from_dict({"image": rows}, features=Features({"image": ImageFeature(decode=False)}))


def choose_images(run: Path, given: Path | None, reading: Reading = AS_STORED) -> CheckImages:
    """Return at least 200 images of at least 20 shapes: given ones, or the run's own test and held-out images.

    If there are fewer images or shapes, images are derived from the real ones: random parts, resized to random shapes.
    Without any real image, smooth noise takes their place.

    Args:
        run: a run folder.
        given: an image or a folder of images, or None.
        reading: how the values of the images become 8-bit channels, in which they are compared.

    Raises:
        DataError: nothing that was given can be read as an image.
    """
    if given is not None:
        found, name = _given_images(given, reading), "given images"
    else:
        found, name = _own_images(run, reading)
    count = min(len(found), LEAST_IMAGES)
    # Evenly over the list, in which one class follows another.
    paths = [found[number * len(found) // count] for number in range(count)]
    real = paths if reading == AS_STORED else [_encoded(read_pixels(path, reading=reading)) for path in paths]
    shapes = {native_size(path) for path in real}
    origin = f"{len(real)} of {len(found)} {name}" if real else f"no image ({name})"
    missing = max(LEAST_IMAGES - len(real), DERIVED_SHAPES if len(shapes) < LEAST_SHAPES else 0)
    derived = derive_images(real, missing, reading_of_decoded(reading))
    if derived:
        shapes |= {native_size(image) for image in derived}
        kind = "parts of them, resized" if real else "images of smooth noise"
        origin += f", and {len(derived)} {kind}"
    return CheckImages(sources=(*real, *derived), num_shapes=len(shapes), origin=origin)


def reading_of_decoded(reading: Reading) -> Reading:
    """Return how the images are read that `choose_images` decodes and writes again."""
    return AS_STORED if reading.is_rgb else Reading(channels=tuple(range(reading.num_channels)))


def derive_images(real: Sequence[str | bytes], count: int, reading: Reading = AS_STORED) -> list[bytes]:
    """Return `count` files of different shapes: random parts of real images, resized; without any, smooth noise."""
    generator = np.random.default_rng(0)
    derived = []
    for number in range(count):
        width, height = np.exp(generator.uniform(math.log(SIDES[0]), math.log(SIDES[1]), size=2)).astype(int).tolist()
        if real:
            pixels = read_pixels(real[number % len(real)], reading=reading)
            # The part has between half and all of each side.
            wide, tall = (max(1, round(side * generator.uniform(0.5, 1.0))) for side in pixels.shape[1::-1])
            left = int(generator.integers(pixels.shape[1] - wide + 1))
            top = int(generator.integers(pixels.shape[0] - tall + 1))
            pixels = pixels[top : top + tall, left : left + wide]
        else:
            pixels = generator.integers(0, 256, (6, 6, reading.num_channels), dtype=np.uint8)
        derived.append(_encoded(_resized(pixels, (width, height))))
    return derived


def _resized(pixels: NDArray[np.uint8], size: tuple[int, int]) -> NDArray[np.uint8]:
    """Return pixels (height, width, channels) in another size (width, height)."""
    bands = [Image.fromarray(np.ascontiguousarray(band)) for band in np.moveaxis(pixels, -1, 0)]
    return np.stack([np.asarray(band.resize(size, Image.Resampling.BICUBIC)) for band in bands], axis=-1)


def _encoded(pixels: NDArray[np.uint8]) -> bytes:
    """Return pixels (height, width, channels) as a PNG file, or as a TIFF if they are not red, green and blue."""
    encoded = io.BytesIO()
    if pixels.shape[-1] == 3:
        Image.fromarray(pixels).save(encoded, "PNG", compress_level=1)
        return encoded.getvalue()
    try:
        import tifffile
    except ImportError:
        raise ExportError(missing_libraries("an export of a model of several channels", ["tifffile"])) from None
    tifffile.imwrite(encoded, pixels, photometric="minisblack", planarconfig="contig")
    return encoded.getvalue()


def _given_images(given: Path, reading: Reading) -> list[str]:
    """Return the readable image files of a path."""
    if not given.exists():
        raise DataError(f"there is no image or folder {given}")
    paths = _readable(files_below(given) if given.is_dir() else [str(given)], reading)
    if not paths:
        raise DataError(f"nothing in {given} can be read as an image; give a folder of images like those of the run")
    return paths


def _own_images(run: Path, reading: Reading) -> tuple[list[str], str]:
    """Return the run's test images that still exist, with its held-out ones if these are few, and their name."""
    try:
        with (run / "splits.csv").open(encoding="utf-8", newline="") as file:
            rows = list(csv.DictReader(file))
    except FileNotFoundError:
        return [], "the run has no splits.csv"
    parts = {"test": _readable([row["path"] for row in rows if row["split"] == "test"], reading)}
    if len(parts["test"]) < LEAST_IMAGES:
        held_out = [row["path"] for row in rows if row["held_out_by"] or row["split"] == "validation"]
        parts["held-out"] = _readable(held_out, reading)
    names = [name for name, paths in parts.items() if paths]
    found = [path for paths in parts.values() for path in paths]
    return found, f"{' and '.join(names)} images" if names else "the run's images are gone"


def _readable(paths: Sequence[str], reading: Reading) -> list[str]:
    """Return the paths of existing files that can be read as images."""
    there = [path for path in paths if Path(path).is_file()]
    return [path for path, reason in zip(there, why_unreadable(there, reading), strict=True) if not reason]
