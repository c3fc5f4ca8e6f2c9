"""Measure what more channels than three are worth on tiles of 13 bands, whose first three tell nothing.

    python -m experiments.measure_channels --runs FOLDER
    python -m experiments.measure_channels --runs FOLDER --means 0 1 2 3 4 5 [--noise 0.5]

Two kinds of ground have the same red, green and blue, and mix the later bands in other proportions: a run on three
channels can only guess. Both runs are linear probes. The table of accuracies on the test images is printed.

With --means, the cross-validated probes of all 13 bands are compared for tiles of each seed: with each channel
normalised by its mean over the training images, as always, and by the average of the pretraining's means.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path
from unittest.mock import patch

import numpy as np
import tifffile
import timm
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter

from finetune.data import load_images
from finetune.decide.preprocessing import make_normalisation
from finetune.measure import measure_evidence, network
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


def compare_means(runs: Path, seeds: Sequence[int], noise: float) -> list[str]:
    """Return the lines of a table with the accuracy of probes on channels normalised by either mean, and the mean of
    the differences with its standard error."""
    config = timm.get_pretrained_cfg(NETWORK)
    assert config is not None
    mean, _ = make_normalisation(config.mean, config.std, BANDS)
    lines = ["| seed | own means, % | average of the pretraining's means, % |", "|---|---|---|"]
    found = []
    for seed in seeds:
        tiles = runs / f"tiles-{seed}"
        if not tiles.exists():
            write_tiles(tiles, seed, noise)
        recipe = load_recipe(data=str(tiles), image__channels="all", **FIXED)
        splits = load_images(str(tiles), reading=recipe.image)
        own = measure_evidence(recipe, splits).probe_accuracy
        with patch.object(network, "channel_means", return_value=mean):
            other = measure_evidence(recipe, splits).probe_accuracy
        found.append((100 * own, 100 * other))
        lines.append(f"| {seed} | {100 * own:.1f} | {100 * other:.1f} |")
    gains = np.subtract(*np.transpose(found))
    error = gains.std(ddof=1) / len(gains) ** 0.5
    return [*lines, f"own means gain {gains.mean():+.1f} points, standard error {error:.1f}"]


def main() -> None:
    """Measure both runs, or compare the means, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=Path, required=True, help="folder of the tiles and the runs")
    parser.add_argument("--seed", type=int, default=0, help="seed of the tiles and of the runs")
    parser.add_argument("--means", type=int, nargs="+", help="seeds of tiles on which two normalisations are compared")
    parser.add_argument("--noise", type=float, default=0.2, help="standard deviation of the noise of the tiles")
    arguments = parser.parse_args()
    runs, seeds, noise = arguments.runs, arguments.means, arguments.noise
    print("\n".join(compare_means(runs, seeds, noise) if seeds else measure(runs, arguments.seed, noise)))


if __name__ == "__main__":
    main()
