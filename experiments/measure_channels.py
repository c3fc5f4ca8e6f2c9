"""Measure what more channels than three are worth on tiles of 13 bands, whose first three tell nothing.

    python -m experiments.measure_channels --runs FOLDER

Two kinds of ground have the same red, green and blue, and mix the later bands in other proportions: a run on three
channels can only guess. Both runs are linear probes. The table of accuracies on the test images is printed.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import tifffile
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter

from finetune.recipe import load_recipe
from finetune.runs.folder import RunFolder
from finetune.runs.pipeline import run

BANDS, VISIBLE = 13, 3
"""Number of bands of a tile, and of those that are equal in both classes."""

COUNTS = {"train": 90, "test": 100}
"""Tiles of each class in each split."""

SIDE = 64
"""Side of a tile, in pixels."""

NETWORK = "tf_efficientnet_lite0"
"""Network of the probes."""

FIXED = {"model": NETWORK, "strategy": "linear_probe", "image_size": SIDE}
"""Keys of both recipes."""

FINENESS = (1.0, 3.0, 8.0)
"""Widths of the structures of the three fields that are mixed, in pixels."""

READ: Sequence[tuple[str, object]] = (("red, green and blue alone", [0, 1, 2]), ("all 13", "all"))
"""Channels of each run, in words and as `image.channels`."""


def write_tiles(root: Path, seed: int, noise: float) -> None:
    """Write 16-bit TIFFs of two classes: the bands are mixtures of three smooth fields, and noise of this deviation."""
    generator = np.random.default_rng(seed)
    level = generator.uniform(300.0, 4000.0, BANDS)
    shared = generator.uniform(0.0, 1.0, (BANDS, len(FINENESS)))
    mixtures = {"dry": shared.copy(), "wet": shared.copy()}
    mixtures["dry"][VISIBLE:] *= (1.0, 0.7, 0.4)  # finer later bands than those of wet ground
    mixtures["wet"][VISIBLE:] *= (0.4, 0.7, 1.0)
    for split, count in COUNTS.items():
        for name, mixture in mixtures.items():
            (root / split / name).mkdir(parents=True)
            for number in range(count):
                values = level[:, None, None] * _tile(mixture, noise, generator)
                path = root / split / name / f"{number:03d}.tif"
                tifffile.imwrite(path, values.astype(np.uint16), photometric="minisblack", planarconfig="separate")


def _tile(mixture: NDArray[np.float64], noise: float, generator: np.random.Generator) -> NDArray[np.float64]:
    """Return the bands (13, side, side) of a tile, about 1: fields that differ in their fineness, and noise."""
    fields = [gaussian_filter(generator.normal(size=(SIDE, SIDE)), fineness) * fineness for fineness in FINENESS]
    mixed = np.tensordot(mixture, np.stack(fields), axes=1)
    gain = generator.uniform(0.8, 1.2)
    noisy: NDArray[np.float64] = gain * (1.0 + 0.3 * mixed) + generator.normal(0.0, noise, mixed.shape)
    return noisy.clip(0.0)


def measure(runs: Path, seed: int, noise: float) -> list[str]:
    """Return the lines of a table with the accuracy of each run on the test images."""
    tiles = runs / "tiles"
    if not tiles.exists():
        write_tiles(tiles, seed, noise)
    lines = ["| channels | accuracy, % | 95 % interval |", "|---|---|---|"]
    for name, channels in READ:
        folder = runs / ("all" if channels == "all" else "three")
        if not (folder / "metrics.json").exists():
            run(load_recipe(data=str(tiles), image__channels=channels, seed=seed, **FIXED), folder)
        test = RunFolder(folder).read_metrics().test
        assert test is not None
        low, high = (100 * end for end in test.top1_interval)
        lines.append(f"| {name} | {100 * test.top1:.1f} | {low:.1f} to {high:.1f} |")
    return lines


def main() -> None:
    """Measure both runs, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=Path, required=True, help="folder of the tiles and the runs")
    parser.add_argument("--seed", type=int, default=0, help="seed of the tiles and of the runs")
    parser.add_argument("--noise", type=float, default=0.2, help="standard deviation of the noise of the tiles")
    arguments = parser.parse_args()
    print("\n".join(measure(arguments.runs, arguments.seed, arguments.noise)))


if __name__ == "__main__":
    main()
