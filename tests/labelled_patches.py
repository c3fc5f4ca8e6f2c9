"""Small pictures that show any number of three colours, as tables of each form."""

import numpy as np
import pandas as pd
from PIL import Image

COLOURS = {"blue": (50, 60, 210), "green": (40, 190, 60), "red": (200, 40, 40)}


def write_patches(root, count=60, seed=0):
    """Write `count` pictures with patches of colours below `root`; return their paths and tuples of labels."""
    generator = np.random.default_rng(seed)
    root.mkdir(parents=True, exist_ok=True)
    rows = []
    for number in range(count):
        image = np.full((40, 56, 3), 128) + generator.integers(-20, 21, (40, 56, 3))
        names = tuple(name for name in COLOURS if generator.random() < 0.45)
        for name in names:
            top, left = generator.integers(0, 20), generator.integers(0, 36)
            image[top : top + 20, left : left + 20] = COLOURS[name]
        path = root / f"{number:03d}.png"
        Image.fromarray(np.clip(image, 0, 255).astype(np.uint8)).save(path)
        rows.append((str(path), names))
    return pd.DataFrame(rows, columns=["path", "labels"])


def write_table(patches, path, delimiter=";"):
    """Write a CSV table whose label column has a delimiter."""
    patches.assign(labels=[delimiter.join(names) for names in patches["labels"]]).to_csv(path, index=False)
    return path
