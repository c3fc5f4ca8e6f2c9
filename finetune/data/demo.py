"""Write the embedded demo, scikit-learn's handwritten digits, as a folder of images."""

import atexit
import os
import shutil
import tempfile
from functools import cache
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

    If that cannot be written to, it is a temporary folder that is removed when the process ends.

    Raises:
        DataError: there is no demo of this name.
        OSError: there is no room for it, neither there nor in the temporary folder.
    """
    refuse_other_demos(name)
    root = cache_folder() / name
    if root.exists():
        return root
    try:
        return _write_digits(root)
    except OSError:
        return _temporary_digits()


@cache
def _temporary_digits() -> Path:
    """Return a folder with the digits that is removed when this process ends."""
    temporary = Path(tempfile.mkdtemp(prefix="finetune-"))
    atexit.register(shutil.rmtree, temporary, ignore_errors=True)
    return _write_digits(temporary / "digits")


def _write_digits(root: Path) -> Path:
    """Write the digits as a folder `root`, which appears whole or not at all, and return it."""
    from PIL import Image
    from sklearn.datasets import load_digits

    digits = load_digits()
    partial = root.with_name(f"digits-{os.getpid()}")
    try:
        for number, (pixels, label) in enumerate(zip(digits.images, digits.target, strict=True)):
            folder = partial / str(label)
            folder.mkdir(parents=True, exist_ok=True)
            Image.fromarray((pixels * (255 / GREY_LEVELS)).round().astype(np.uint8)).save(folder / f"{number:04d}.png")
        partial.rename(root)
    except OSError:
        shutil.rmtree(partial, ignore_errors=True)
        if not root.exists():  # if it does, another process was faster and wrote the same files
            raise
    return root
