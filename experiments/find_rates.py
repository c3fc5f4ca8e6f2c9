"""Compare the rates that the range test finds with the tuned ones, and let it save trainings at ten times those.

    python -m experiments.find_rates --data DIR [--sets flowers12 ...] [--networks ...] [--results FILE]
    python -m experiments.find_rates --data DIR --rescue [--sets scene15] [--results FILE]

The first form runs the range test on networks whose rates are known from the grid: 4e-4 near the pretraining images to
8e-4 far from them, for all layers. The second form trains all layers at ten times the tuned rate, and at this rate
bounded by the range test, and compares both with the linear probe. Rows are appended to FILE.
"""

import argparse
import time
from datetime import date
from pathlib import Path

import torch

from experiments.paths import RESULTS
from experiments.rows import append_row
from finetune import Recipe, choose_strategy, load_images, make_plan, measure_evidence, train
from finetune.data import Pixels, labels_of, stratified_subset
from finetune.data.batches import PlainImages
from finetune.decide.candidates import learning_rates
from finetune.decide.evidence import ForwardSettings
from finetune.measure.rates import HighestRate, measure_highest_rate
from finetune.network.backbone import create_network, native_preprocessing
from finetune.network.forward import forward_all
from finetune.network.head import recorded_features
from finetune.predict.metrics import score

NETWORKS = ("tf_efficientnet_lite0", "tf_efficientnet_lite1", "tf_efficientnet_lite2")
"""Networks whose rates are known."""

SETS = ("flowers12", "magtile5", "arabic28", "seedling12", "wbc4")
"""Image sets, near and far."""

IMAGE_SIZE = 96
"""Side of the square images, in pixels."""

IMAGES = 600
"""Most training images."""

STEPS = 150
"""Steps of a training of the second form."""

FORWARD = ForwardSettings(
    precision="float32", layout="channels_last", batch_size=32, parallel_parts=1, num_threads=1, loader_workers=0
)
"""Settings of forward passes."""


def find(name: str, folder: Path) -> tuple[HighestRate, float]:
    """Return what the range test finds for a network on a set, and the processor time that it took, in seconds.

    Raises:
        ValueError: the set has too few images.
    """
    splits = load_images(str(folder))
    network, _ = create_network(name, "pretrained", len(splits.class_names), IMAGE_SIZE)
    preprocessing = native_preprocessing(network, IMAGE_SIZE)
    members = stratified_subset(labels_of(splits.train), IMAGES, 0)
    images = PlainImages(Pixels(splits.train.select(members), preprocessing.shorter_side), preprocessing)
    with recorded_features(network) as compute:
        features = forward_all(network, images, preprocessing, FORWARD, compute)
    start = time.process_time()
    labels = labels_of(splits.train)[members]
    found = measure_highest_rate(network, images, features, labels, preprocessing, "channels_last", 0)
    if found is None:
        raise ValueError(f"{folder} has too few images")
    return found, round(time.process_time() - start, 1)


def rescue(name: str, folder: Path, results: Path) -> None:
    """Train a network at ten times its rate, and at this rate bounded by the range test; append a row for each."""
    splits = load_images(str(folder), limit=IMAGES)
    assert splits.test is not None
    recipe = Recipe(data=folder.name, model=name, image_size=IMAGE_SIZE, strategy="full", steps=STEPS, limit=IMAGES)
    evidence = measure_evidence(recipe, splits)
    high = 10 * learning_rates("full", evidence.domain_similarity)[0]
    found, _ = find(name, folder)
    # One training, evaluated on the test images, which chose nothing.
    for rate in (high, min(high, found.rate)):
        asked = recipe.changed(training={"learning_rate": float(f"{rate:.2g}")}, refit=False)
        plan = make_plan(asked, evidence, choose_strategy(evidence, asked)).changed(validation="held_out")
        model = train(plan, splits)
        metrics = score(model.probabilities(splits.test), labels_of(splits.test), list(splits.class_names))
        row = {"set": folder.name, "network": name, "rate": plan.head_learning_rate, "highest": found.rate}
        row |= {"test": metrics.top1, "probe": evidence.probe_accuracy, "rejected": model.rejected}
        append_row(results, {**row, "date": str(date.today())})
        print(row, flush=True)


def main() -> None:
    """Run the range tests, or the trainings."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder of the image sets")
    parser.add_argument("--sets", nargs="+", default=list(SETS))
    parser.add_argument("--networks", nargs="+", default=list(NETWORKS))
    parser.add_argument("--rescue", action="store_true", help="train at ten times the rate")
    parser.add_argument("--results", type=Path, default=RESULTS / "rates.jsonl", help="file of the rows")
    asked = parser.parse_args()
    torch.set_num_threads(1)
    for name in asked.networks:
        for image_set in asked.sets:
            if asked.rescue:
                rescue(name, asked.data / image_set, asked.results)
                continue
            found, seconds = find(name, asked.data / image_set)
            row = {"set": image_set, "network": name, "highest": found.rate, "images": found.work.forward_images}
            append_row(asked.results, {**row, "seconds": seconds, "date": str(date.today())})
            print(row, seconds, flush=True)


if __name__ == "__main__":
    main()
