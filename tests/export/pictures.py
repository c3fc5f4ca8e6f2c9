"""Pictures of several shapes for the tests of exported models."""

from pathlib import Path

import numpy as np
from PIL import Image

SHAPES = ((300, 200), (97, 40), (40, 97), (32, 32), (37, 250), (3, 5))
"""Heights and widths: larger and smaller than the square, and elongated ones."""


def smooth_image(height: int, width: int, seed: int = 0) -> np.ndarray:
    """An image (height, width, 3) with structure at several scales."""
    generator = np.random.default_rng([seed, height, width])
    coarse = generator.integers(0, 256, (max(2, height // 4), max(2, width // 4), 3), dtype=np.uint8)
    return np.array(Image.fromarray(coarse).resize((width, height)))


def write_pictures(folder: Path, count: int, size: tuple[int, int] = (70, 50)) -> Path:
    """Write `count` different PNG files of one (width, height), and return the folder."""
    folder.mkdir(parents=True, exist_ok=True)
    for number in range(count):
        Image.fromarray(smooth_image(size[1], size[0], number)).save(folder / f"{number}.png")
    return folder
