"""Measure how the time and memory of each part of a run grow with the number of images.

    python -m experiments.measure_scale [--sizes 1000 10000 100000] [--folder FOLDER] [--image-size 128]

The parts are the index, the evidence, the linear probe and a few training steps. Images of 20 classes are made once:
1,000 different ones (JPEG, 213 x 160 px), and links to them for larger sets. Each size runs in a process of its own
with an empty cache; its peak resident memory is reported.
"""

import argparse
import json
import os
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

CLASSES = 20
"""Number of classes."""

DIFFERENT = 1_000
"""Number of different images."""

STEPS = 20
"""Number of training steps of all layers."""


def make_images(folder: Path, count: int) -> Path:
    """Return a class-per-folder tree of `count` images."""
    import numpy as np
    from PIL import Image

    tree = folder / f"images-{count}"
    if tree.exists():
        return tree
    originals = folder / "originals"
    originals.mkdir(parents=True, exist_ok=True)
    partial = folder / f"images-{count}.partial"
    shutil.rmtree(partial, ignore_errors=True)
    for label in range(CLASSES):
        (partial / f"class-{label:02d}").mkdir(parents=True)
    for number in range(DIFFERENT):
        original = originals / f"{number}.jpg"
        if not original.exists():
            generator = np.random.default_rng(number)
            colour = np.random.default_rng(number % CLASSES).integers(40, 216, 3)
            coarse = generator.normal(colour, 40, (20, 27, 3)).clip(0, 255).astype(np.uint8)
            Image.fromarray(coarse).resize((213, 160)).save(original, quality=90)
    for number in range(count):
        label = number % CLASSES
        os.link(originals / f"{number % DIFFERENT}.jpg", partial / f"class-{label:02d}" / f"{number}.jpg")
    partial.rename(tree)
    return tree


def measure(tree: Path, image_size: int) -> dict[str, float]:
    """Return the seconds of each part of a run, and the peak resident memory (MB) after it."""
    import finetune
    from finetune.data import load_images
    from finetune.measure import measure_evidence
    from finetune.training import train

    figures: dict[str, float] = {}
    clock = time.perf_counter()

    def mark(name: str) -> None:
        nonlocal clock
        now = time.perf_counter()
        figures[f"{name}, s"] = round(now - clock, 2)
        figures[f"{name}, MB"] = round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)
        clock = time.perf_counter()

    recipe = finetune.load_recipe(data=str(tree), strategy="linear_probe", image_size=image_size)
    splits = load_images(recipe.data)
    mark("index")
    evidence = measure_evidence(recipe, splits)
    mark("evidence")
    train(finetune.make_plan(recipe, evidence, finetune.choose_strategy(evidence, recipe)), splits)
    mark("linear probe")
    recipe = recipe.changed(strategy="full", steps=STEPS)
    train(finetune.make_plan(recipe, evidence, finetune.choose_strategy(evidence, recipe)), splits)
    mark(f"{STEPS} steps of all layers and their evaluations")
    return figures


def main() -> None:
    """Measure each size in its own process, then print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", nargs="+", type=int, default=[1_000, 10_000, 100_000], help="numbers of images")
    parser.add_argument("--folder", type=Path, help="folder of the images; by default a temporary one")
    parser.add_argument("--image-size", type=int, default=128, help="side of the square images, in pixels")
    parser.add_argument("--measure", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.measure is not None:
        print(json.dumps(measure(arguments.measure, arguments.image_size)))
        return
    with tempfile.TemporaryDirectory() as temporary:
        folder = arguments.folder or Path(temporary)
        columns = {}
        for size in arguments.sizes:
            tree = make_images(folder, size)
            with tempfile.TemporaryDirectory() as cache:
                command = [sys.executable, "-m", "experiments.measure_scale", "--measure", str(tree)]
                command += ["--image-size", str(arguments.image_size)]
                environment = os.environ | {"FINETUNE_CACHE": cache}
                done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True, env=environment)
            columns[size] = json.loads(done.stdout.splitlines()[-1])
            print(size, columns[size], flush=True)
    print("\n| what | " + " | ".join(f"{size:,} images" for size in columns) + " |")
    print("|---|" + "---|" * len(columns))
    for name in next(iter(columns.values())):
        print(f"| {name} | " + " | ".join(f"{figures[name]:g}" for figures in columns.values()) + " |")


if __name__ == "__main__":
    main()
