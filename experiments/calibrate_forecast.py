"""Refit and check the assumptions of the forecast for more images, by hiding images and adding them again.

    python -m experiments.calibrate_forecast --data DIR [--cache experiments/results/forecast_curves.jsonl]

DIR holds image sets, each with train and test. A linear probe learns from 5, 20, 80 and all images of each class; its
learning curve at one size, measured on training images alone, forecasts the test accuracy at the larger sizes. The
assumptions of finetune/decide/forecast.py are the triple whose intervals cover 93 % of the gains with the least width;
they are evaluated by leaving one set out. Curves that are already in the cache file are not measured again.
"""

import argparse
import itertools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from experiments.paths import RESULTS
from experiments.rows import Row, append_row, read_rows
from experiments.strategy_grid import SETS, few_of_each_class
from finetune.data import ImageSplits, Pixels, labels_of, load_images
from finetune.data.batches import PlainImages
from finetune.decide.evidence import ForwardSettings
from finetune.decide.forecast import NINETY_PERCENT, Assumptions, likely_slope
from finetune.network.backbone import create_network, native_preprocessing
from finetune.network.head import find_head
from finetune.network.outputs import digest_weights, frozen_features
from finetune.predict.linear_probe import cross_validate, fit_head
from finetune.predict.probe_curve import CURVE_SHARES, error_slope, learning_curve

IMAGE_SIZE = 128
"""Side of the square images, in pixels."""

SEEDS = {"5": 5, "20": 3, "80": 2, "all": 1}
"""Number of subsets for each size; a size is a number of images per class, or `all`."""

FORECASTS = (("5", "20"), ("20", "80"), ("20", "all"), ("80", "all"))
"""Pairs of sizes: the size whose curve forecasts, and the size that is forecast."""

FORWARD = ForwardSettings(
    precision="float32", layout="channels_last", batch_size=16, parallel_parts=1, num_threads=1, loader_workers=0
)
"""Settings of the forward passes that compute the features."""

GRID = tuple(
    Assumptions(usual_slope=slope, spread=spread, bend=bend)
    for slope, spread, bend in itertools.product(
        (0.2, 0.25, 0.3, 0.35), (0.08, 0.12, 0.16, 0.2), (0.08, 0.1, 0.12, 0.14, 0.16)
    )
)
"""Triples of assumptions to choose from."""

COVERED = 0.93
"""Share of the gains that the intervals must cover on the fitted sets; on a set that is left out they cover fewer."""


@dataclass(frozen=True, slots=True)
class Case:
    """A forecast that can be checked."""

    set: str
    """Name of the image set."""
    images: int
    """Number of training images."""
    more: int
    """Number of images that are added."""
    slope: float
    """Measured exponent b of the power law error ~ images ** -b."""
    slope_error: float
    """Standard error of `slope`."""
    error_now: float
    """Test error after training on `images` images, in 0 .. 1."""
    error_then: float
    """Test error after training on `images + more` images, in 0 .. 1."""

    def gain(self, slope: float) -> float:
        """Return the fall of the test error that a power law with this slope forecasts."""
        # error(n) = error(n0) (n / n0)^-slope
        return self.error_now * -math.expm1(-slope * math.log((self.images + self.more) / self.images))


def measure(name: str, data: Path) -> Iterator[Row]:
    """Yield a row for each size and subset of a set: the slope of a probe's learning curve, and its test error."""
    splits = load_images(str(data / name))
    features, tested = (features_of(splits, part) for part in ("train", "test"))
    labels, test_labels = labels_of(splits.train), labels_of(splits.test)
    num_classes = len(splits.class_names)
    for size, seeds in SEEDS.items():
        for seed in range(seeds):
            kept = np.arange(len(labels)) if size == "all" else few_of_each_class(labels, int(size), seed)
            if size != "all" and len(kept) > 0.75 * len(labels):
                continue
            some, own = features[kept], labels[kept]
            folds = cross_validate(some, own, num_classes, seed)
            fewer = learning_curve(some, own, num_classes, seed, folds.inverse_regularization)
            wrong = (folds.logits.argmax(axis=1) != own).astype(float)
            slope, error = error_slope(fewer[0], wrong, 1.0 / CURVE_SHARES[0])
            predicted = fit_head(some, own, num_classes, folds.inverse_regularization).logits(tested).argmax(axis=1)
            yield {
                "set": name, "size": size, "seed": seed, "images": len(kept), "slope": slope, "slope_error": error,
                "test_error": float((predicted != test_labels).mean()),
            }  # fmt: skip


def features_of(splits: ImageSplits, part: str) -> Any:  # noqa: ANN401
    """Return the features (n_images, width) of the split `train` or `test`."""
    network, _ = create_network("tf_efficientnet_lite0", "pretrained", len(splits.class_names), IMAGE_SIZE)
    preprocessing = native_preprocessing(network.eval(), IMAGE_SIZE)
    pixels = Pixels(splits.train if part == "train" else splits.test, preprocessing.shorter_side)
    weights = digest_weights(network, leave_out=find_head(network).names)
    return frozen_features(network, PlainImages(pixels, preprocessing), preprocessing, FORWARD, weights).numpy()


def cases(rows: Sequence[Row]) -> list[Case]:
    """Return every forecast; its target is the mean test error over the subsets of the larger size."""
    made = []
    for name in {row["set"] for row in rows}:
        own = [row for row in rows if row["set"] == name]
        for before, after in FORECASTS:
            later = [row for row in own if row["size"] == after]
            if not later:
                continue
            images, error = (float(np.mean([row[key] for row in later])) for key in ("images", "test_error"))
            made += [
                Case(
                    name, row["images"], round(images) - row["images"], row["slope"], row["slope_error"],
                    row["test_error"], error,
                )
                for row in own
                if row["size"] == before
            ]  # fmt: skip
    return made


def evaluate(some: Sequence[Case], assumed: Assumptions) -> tuple[float, float, float, float]:
    """Return the coverage, mean absolute error, mean error and median width of the 90 % intervals of forecast gains.

    Errors and widths are differences in test error, in 0 .. 1.
    """
    covered, errors, widths = [], [], []
    for case in some:
        slope, deviation = likely_slope(case.slope, case.slope_error, assumed)
        likely, low, high = (case.gain(slope + sign * NINETY_PERCENT * deviation) for sign in (0, -1, 1))
        actual = case.error_now - case.error_then
        covered.append(low <= actual <= high)
        errors.append(likely - actual)
        widths.append(high - low)
    return (
        float(np.mean(covered)),
        float(np.mean(np.abs(errors))),
        float(np.mean(errors)),
        float(np.median(widths)),
    )


def fit(some: Sequence[Case]) -> Assumptions:
    """Return the assumptions whose intervals cover `COVERED` of the gains with the least width and error."""

    def cost(assumed: Assumptions) -> float:
        coverage, error, _, width = evaluate(some, assumed)
        return width + error + 10.0 * max(0.0, COVERED - coverage)

    return min(GRID, key=cost)


def main() -> None:
    """Measure the curves that are missing, fit the assumptions, and evaluate them by leaving one set out."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder of the image sets")
    parser.add_argument("--cache", type=Path, default=RESULTS / "forecast_curves.jsonl", help="file of the curves")
    arguments = parser.parse_args()
    rows = read_rows(arguments.cache)
    for name in SETS:
        if any(row["set"] == name for row in rows):
            continue
        found = list(measure(name, arguments.data))
        rows += found
        for row in found:
            append_row(arguments.cache, row)
    made = cases(rows)
    gains = [case.error_now - case.error_then for case in made]
    print(f"{len(made)} forecasts; fitted: {fit(made)}; mean gain {np.mean(gains):.3f}")
    names = sorted({case.set for case in made})
    held = []
    for name in names:
        left_out = fit([case for case in made if case.set != name])
        result = evaluate([case for case in made if case.set == name], left_out)
        held.append((len([case for case in made if case.set == name]), *result))
        print(f"{name:15} {left_out} coverage {result[0]:.2f}, error {result[1]:.3f}, width {result[3]:.3f}")
    counts = np.array([row[0] for row in held])
    means = [float(np.average([row[column] for row in held], weights=counts)) for column in (1, 2, 3)]
    print(f"leaving one set out: coverage {means[0]:.2f}, mean absolute error {means[1]:.3f}, bias {means[2]:+.3f}")


if __name__ == "__main__":
    main()
