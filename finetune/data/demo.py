"""Write the embedded demo, scikit-learn's handwritten digits, as a folder of images."""

import os
from pathlib import Path

import numpy as np

from finetune.cache import cache_folder
from finetune.errors import DataError

GREY_LEVELS = 16
"""Largest value of a pixel in the scans, where high values are ink."""


def refuse_other_demos(name: str) -> None:
    """Refuse a name that no demo has.

    Raises:
        DataError: there is no demo of this name.
    """
    if name != "digits":
        raise DataError(f"there is no demo '{name}'; the embedded demo is demo:digits")


def demo_folder(name: str) -> Path:
    """Return the folder of the demo `name`, which is written into the cache's folder on first use.

    Raises:
        DataError: there is no demo of this name.
    """
    refuse_other_demos(name)
    from PIL import Image
    from sklearn.datasets import load_digits

    root = cache_folder() / name
    if root.exists():
        return root
    digits = load_digits()
    partial = root.with_name(f"digits-{os.getpid()}")
    for number, (pixels, label) in enumerate(zip(digits.images, digits.target, strict=True)):
        folder = partial / str(label)
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray((pixels * (255 / GREY_LEVELS)).round().astype(np.uint8)).save(folder / f"{number:04d}.png")
    try:
        partial.rename(root)
    except OSError:  # another process was faster and wrote the same files
        if not root.exists():
            raise
    return root
