"""Measure how fast images are decoded, by Pillow as this toolkit uses it and by TorchCodec, and read from the cache.

    pip install torchcodec
    python -m experiments.measure_decoding --data DIR/SET

Large JPEGs (4000 x 3000 px, quality 90, with noise) are made of twelve images of the set. Both decoders reduce them to
a shorter side of 256 px, and the set's own images to 128 px. Then a reading process crops, resizes and augments decoded
images from the cache, at 128 and 224 px. CPU time on one thread; both decoders take turns, five times.
"""

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from finetune.data import Pixels, decode, load_images, paths_of
from finetune.data.augmentation import Key
from finetune.data.batches import VariedImages
from finetune.decide.plan import AugmentationPlan
from finetune.decide.preprocessing import Preprocessing
from finetune.progress import no_progress

LARGE, SMALL = 12, 300
"""Number of large images, and of images as they are stored."""

REPETITIONS, READ = 5, 512
"""Number of measurements, and of images that are read from the cache in each."""

USUAL = AugmentationPlan(
    horizontal_flip=True, vertical_flip=False, smallest_crop=0.5, color_jitter=0.1, policy="none", mixing="none"
)
"""The default augmentation of photographs."""


def enlarge(path: str, number: int, folder: Path) -> str:
    """Write a large JPEG of an image, with noise like a camera's, and return its path."""
    with Image.open(path) as image:
        pixels = np.asarray(image.convert("RGB").resize((4000, 3000), Image.Resampling.BICUBIC)).astype(np.int16)
    noise = np.random.default_rng(number).normal(0, 6, pixels.shape).astype(np.int16)
    target = folder / f"{number}.jpg"
    Image.fromarray((pixels + noise).clip(0, 255).astype(np.uint8)).save(target, quality=90)
    return str(target)


def with_pillow(paths: Sequence[str], side: int) -> None:
    """Decode images as a run does."""
    for path in paths:
        np.asarray(decode(path, side, path))


def with_torchcodec(paths: Sequence[str], side: int) -> None:
    """Decode JPEGs by TorchCodec and resize them."""
    from torchcodec.decoders import decode_jpeg
    from torchvision.transforms.v2 import functional

    for path in paths:
        image = decode_jpeg(torch.from_numpy(np.fromfile(path, np.uint8)))
        functional.resize(image, [side], antialias=True)


def rate(work: Callable[[], None], count: int) -> float:
    """Return images per second of CPU time."""
    start = time.process_time()
    work()
    return count / (time.process_time() - start)


def compare(paths: Sequence[str], side: int) -> None:
    """Print the rates of both decoders, and the ratio of TorchCodec's time to ours."""
    pairs = []
    for _ in range(1 + REPETITIONS):  # the first is not counted
        own = rate(lambda: with_pillow(paths, side), len(paths))
        pairs.append((own, rate(lambda: with_torchcodec(paths, side), len(paths))))
    ratios = [own / other for own, other in pairs[1:]]
    own, other = (statistics.median(each) for each in zip(*pairs[1:], strict=True))
    print(
        f"{len(paths)} images to {side} px: Pillow {own:.0f} images/s, TorchCodec {other:.0f}; TorchCodec's time over "
        f"Pillow's {statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})"
    )


def read(images: VariedImages, keys: Sequence[Key]) -> None:
    """Read augmented images."""
    images.__getitems__(keys)


def read_from_cache(data: Path, side: int) -> None:
    """Print how many augmented images a process reads from the cache in a second."""
    about = Preprocessing(
        image_size=side, crop_fraction=0.875, interpolation="bicubic", mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5)
    )
    pixels = Pixels(load_images(str(data)).train, about.shorter_side)
    pixels.cache(no_progress)
    images = VariedImages(pixels, about, USUAL, seed=0)
    count = min(READ, len(images))
    rates = []
    for view in range(1 + REPETITIONS):
        keys = [Key(number, view) for number in range(count)]
        rates.append(rate(partial(read, images, keys), count))
    print(f"from the cache, augmented, {side} px: {statistics.median(rates[1:]):.0f} images/s")


def main() -> None:
    """Measure both."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="an image set of JPEGs, a folder for each class")
    data = parser.parse_args().data
    torch.set_num_threads(1)
    paths = paths_of(load_images(str(data)).train)
    with tempfile.TemporaryDirectory() as folder:
        compare([enlarge(path, number, Path(folder)) for number, path in enumerate(paths[:LARGE])], 256)
    compare(paths[:SMALL], 128)
    for side in (128, 224):
        read_from_cache(data, side)


if __name__ == "__main__":
    main()
