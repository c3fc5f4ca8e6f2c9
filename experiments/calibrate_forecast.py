"""Refit and check what the forecast of more images assumes, by hiding images and looking.

    python -m experiments.calibrate_forecast --data DIR [--cache curves.jsonl]

DIR holds image sets, each with train and test. A linear probe learns from 5, 20, 80 and all images of each class; its
learning curve at one size, measured on training images alone, forecasts the test accuracy at the next ones. The
assumptions of `finetune/forecast.py` are the triple that covers 93 % with the least width; they are judged leaving one
set out. What the cache file holds is not measured again.
"""

import argparse
import itertools
import json
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from experiments.strategy_grid import SETS, few_of_each_class
from finetune.data import ImageSplits, Pixels, labels_of, load_images

# This script's folder comes first on the path, where finetune.py stands in for the package.
from finetune.data.batches import PlainImages
from finetune.decide.evidence import ForwardSettings
from finetune.decide.forecast import NINETY_PERCENT, Assumptions, likely_slope
from finetune.network.backbone import create_network, find_head, native_preprocessing
from finetune.network.outputs import digest_weights, frozen_features
from finetune.predict.linear_probe import CURVE_SHARES, cross_validate, error_slope, fit_head, learning_curve

IMAGE_SIZE = 128

SEEDS = {"5": 5, "20": 3, "80": 2, "all": 1}
"""Subsets of each size."""

FORECASTS = (("5", "20"), ("20", "80"), ("20", "all"), ("80", "all"))

FORWARD = ForwardSettings(
    precision="float32", layout="channels_last", batch_size=16, parallel_parts=1, num_threads=1, loader_workers=0
)

GRID = tuple(
    Assumptions(usual_slope=slope, spread=spread, bend=bend)
    for slope, spread, bend in itertools.product(
        (0.2, 0.25, 0.3, 0.35), (0.08, 0.12, 0.16, 0.2), (0.08, 0.1, 0.12, 0.14, 0.16)
    )
)
"""What to choose from."""


COVERED = 0.93
"""Share of the forecasts within their interval that the assumptions are fitted to: of sets left out fewer are."""


@dataclass(frozen=True, slots=True)
class Case:
    """A forecast that can be checked."""

    set: str
    images: int
    more: int
    slope: float
    slope_error: float
    error_now: float
    """On the test images, from the fewer images."""
    error_then: float
    """From the more images."""

    def gain(self, slope: float) -> float:
        """Return what a power law with this slope forecasts."""
        return self.error_now * -math.expm1(-slope * math.log((self.images + self.more) / self.images))


def measure(name: str, data: Path) -> Iterator[dict[str, Any]]:
    """Yield a probe's learning curve and test errors at each size, with several subsets."""
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
    """Return the pooled features (n_images, width) of a split."""
    network, _ = create_network("tf_efficientnet_lite0", "pretrained", len(splits.class_names), IMAGE_SIZE)
    preprocessing = native_preprocessing(network.eval(), IMAGE_SIZE)
    pixels = Pixels(splits.train if part == "train" else splits.test, preprocessing.shorter_side)
    weights = digest_weights(network, leave_out=find_head(network)[0])
    return frozen_features(network, PlainImages(pixels, preprocessing), preprocessing, FORWARD, weights).numpy()


def cases(rows: Sequence[dict[str, Any]]) -> list[Case]:
    """Return every forecast; what is forecast is the mean over the subsets."""
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


def judge(some: Sequence[Case], assumed: Assumptions) -> tuple[float, float, float, float]:
    """Return coverage, mean absolute error, mean error, and median width."""
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
    """Return the assumptions that cover enough with the least width."""

    def cost(assumed: Assumptions) -> float:
        coverage, error, _, width = judge(some, assumed)
        return width + error + 10.0 * max(0.0, COVERED - coverage)

    return min(GRID, key=cost)


def main() -> None:
    """Measure what is missing, fit, and judge."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--cache", type=Path, default=Path("curves.jsonl"))
    arguments = parser.parse_args()
    rows = [json.loads(line) for line in arguments.cache.read_text().splitlines()] if arguments.cache.exists() else []
    for name in SETS:
        if any(row["set"] == name for row in rows):
            continue
        found = list(measure(name, arguments.data))
        rows += found
        with arguments.cache.open("a") as file:
            file.writelines(json.dumps(row) + "\n" for row in found)
    made = cases(rows)
    gains = [case.error_now - case.error_then for case in made]
    print(f"{len(made)} forecasts; fitted: {fit(made)}; mean gain {np.mean(gains):.3f}")
    names = sorted({case.set for case in made})
    held = []
    for name in names:
        left_out = fit([case for case in made if case.set != name])
        result = judge([case for case in made if case.set == name], left_out)
        held.append((len([case for case in made if case.set == name]), *result))
        print(f"{name:15} {left_out} coverage {result[0]:.2f}, off by {result[1]:.3f}, width {result[3]:.3f}")
    counts = np.array([row[0] for row in held])
    means = [float(np.average([row[column] for row in held], weights=counts)) for column in (1, 2, 3)]
    print(f"leaving a set out: coverage {means[0]:.2f}, off by {means[1]:.3f} in the mean, of it bias {means[2]:+.3f}")


if __name__ == "__main__":
    main()
