"""Measure runs on images with any number of labels, compared with plain logistic regressions, one for each label.

    python -m experiments.measure_labels --data DIR --runs FOLDER
    python -m experiments.measure_labels --write

DIR holds the image sets, from which two sets of composites are made, because there is no set of several labels among
them: `side by side` has a flower (flowers12), a place (scene15), both or neither in the halves of each image, and
`blended` is the mean of one or two aerial images (ucmerced21). Training images are made of training images alone, and
test images of test images alone. FOLDER has them, with the runs.

Both the toolkit's default run and the regressions (scikit-learn, on the pretrained network's features of the same
images, standardised, with C by 3-fold cross-validated average precision) are scored on the test images. Rows are
appended to experiments/results/labels.jsonl; sets that are in it are not measured again. The second form writes the
table of docs/guides/several-labels.md.
"""

import argparse
import csv
import time
from collections.abc import Sequence
from datetime import date
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from sklearn.linear_model import LogisticRegressionCV
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from experiments.measure_recipes import hardware
from experiments.pages import mark_of, write_between
from experiments.paths import ROOT
from experiments.rows import Row, append_row, read_rows
from finetune.data import labels_of, load_images
from finetune.predict.set_metrics import drawn_precisions, mean_average_precision
from finetune.recipe import Recipe
from finetune.runs.pipeline import run

RESULTS = ROOT / "experiments" / "results" / "labels.jsonl"
"""Rows of the sets."""

GUIDE = ROOT / "docs" / "guides" / "several-labels.md"
"""Page with the table."""

NETWORK, SIDE = "tf_efficientnet_lite0", 128
"""Network of all rows, and the side of its images in pixels."""

COUNTS = {"train": 900, "test": 500}
"""Number of composites in each split."""

STRENGTHS = (1e-3, 1e-2, 1e-1, 1.0)
"""Inverse regularizations C of the plain regressions."""

COMPOSITES = ("side by side", "blended")
"""Names of the sets of composites."""

Picture = tuple[Image.Image, str]
"""An image and its class."""


def pictures(folder: Path) -> list[Picture]:
    """Return the images below the class folders of a split, as squares, with their classes."""
    found = []
    for path in sorted(folder.glob("*/*")):
        with Image.open(path) as image:
            found.append((image.convert("RGB").resize((SIDE, SIDE)), path.parent.name))
    return found


def side_by_side(flowers: Sequence[Picture], places: Sequence[Picture], draw: np.random.Generator) -> Picture:
    """Return a picture with a flower, a place, both or neither; each half is empty in a quarter of the pictures."""
    whole, names = Image.new("RGB", (2 * SIDE, SIDE), (128, 128, 128)), []
    for half, among in zip(draw.permutation(2).tolist(), (flowers, places), strict=True):
        if draw.random() < 0.75:
            image, name = among[int(draw.integers(len(among)))]
            whole.paste(image, (half * SIDE, 0))
            names.append(name)
    # The network sees the central square of an image, so the halves are in the middle of a grey square.
    square = Image.new("RGB", (2 * SIDE, 2 * SIDE), (128, 128, 128))
    square.paste(whole, (0, SIDE // 2))
    return square, ";".join(sorted(names))


def blended(tiles: Sequence[Picture], draw: np.random.Generator) -> Picture:
    """Return the mean of two pictures, or one in a quarter of the cases."""
    image, name = tiles[int(draw.integers(len(tiles)))]
    if draw.random() < 0.25:
        return image, name
    other, second = tiles[int(draw.integers(len(tiles)))]
    return Image.blend(image, other, 0.5), ";".join(sorted({name, second}))


def make(name: str, data: Path, folder: Path) -> Path:
    """Write a set of composites with its table, unless it is there; return the table."""
    table = folder / "table.csv"
    if table.exists():
        return table
    rows = [["path", "labels", "split"]]
    for split, count in COUNTS.items():
        draw = np.random.default_rng([COMPOSITES.index(name), *split.encode()])
        sets = ("flowers12", "scene15") if name == "side by side" else ("ucmerced21",)
        parts = [pictures(data / own / split) for own in sets]
        for number in range(count):
            image, labels = blended(parts[0], draw) if len(parts) == 1 else side_by_side(parts[0], parts[1], draw)
            path = folder / "images" / f"{split}-{number:04d}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            image.save(path)
            rows.append([f"images/{path.name}", labels, split])
    with table.open("w", encoding="utf-8", newline="") as file:
        csv.writer(file).writerows(rows)
    return table


def plain_probes(
    features: NDArray[np.float32], labels: NDArray[np.int64], tested: NDArray[np.float32]
) -> NDArray[np.float64]:
    """Return the test scores (n_test, n_classes) of one logistic regression for each label.

    Args:
        features: features of the training images (n, width).
        labels: their sets of labels (n, n_classes).
        tested: features of the test images (n_test, width).
    """
    scores = []
    for own in labels.T:
        regression = LogisticRegressionCV(Cs=STRENGTHS, cv=3, scoring="average_precision", max_iter=1000)
        fitted = make_pipeline(StandardScaler(), regression).fit(features, own)
        scores.append(fitted.decision_function(tested))
    return np.stack(scores, axis=1)


def measure(name: str, data: Path, folder: Path) -> Row:
    """Return the mean average precision of the default run and of the plain regressions on a set."""
    table = make(name, data, folder)
    recipe = Recipe(data=str(table), columns={"delimiter": ";"}, model=NETWORK, image_size=SIDE)
    started = time.perf_counter()
    model = run(recipe, folder / "run")
    seconds = time.perf_counter() - started
    probe = run(recipe.changed(strategy="linear_probe"), folder / "probe")
    splits = load_images(str(table), recipe.columns)
    if model.tested is None or model.test is None or model.test.sets is None or splits.test is None:
        raise ValueError("the composites have a test split")
    labels = labels_of(splits.test)
    plain = plain_probes(probe.features_of(splits.train), labels_of(splits.train), probe.features_of(splits.test))
    differences = drawn_precisions(model.tested.probabilities, labels) - drawn_precisions(plain, labels)
    low, high = np.quantile(differences, (0.025, 0.975))
    sets = model.test.sets
    return {
        "set": name,
        "date": f"{date.today()}",
        "classes": labels.shape[1],
        "train": len(splits.train),
        "test": len(splits.test),
        "per_image": round(float(labels.sum(axis=1).mean()), 2),
        "strategy": model.plan.strategy,
        "map": round(sets.mean_average_precision, 4),
        "interval": [round(end, 4) for end in sets.mean_average_precision_interval],
        "micro_f1": round(sets.micro_f1, 4),
        "exact_match": round(sets.exact_match, 4),
        "own_probe": round(probe.test.main, 4) if probe.test else None,
        "plain": round(mean_average_precision(plain, labels), 4),
        "gain": [round(float(low), 4), round(float(high), 4)],
        "seconds": round(seconds, 1),
    }


def page(rows: Sequence[Row]) -> str:
    """Return the table of the guide."""
    lines = [
        f"`python -m experiments.measure_labels --data DIR --runs FOLDER`; {hardware()}, {rows[0]['date']}; "
        f"EfficientNet-Lite0 at {SIDE} px, one",
        "seed, mean average precision on the test images with 95 % bootstrap intervals:",
        "",
        "| composites | images (training + test) | labels an image | chosen | default run | its linear probe | plain "
        "regressions | gain over them |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        low, high = (f"{100 * end:.1f}" for end in row["interval"])
        least, most = (f"{100 * end:+.1f}" for end in row["gain"])
        lines.append(
            f"| {row['set']} ({row['classes']} classes) | {row['train']} + {row['test']} | {row['per_image']} | "
            f"{row['strategy']} | {100 * row['map']:.1f} ({low} to {high}) | {100 * row['own_probe']:.1f} | "
            f"{100 * row['plain']:.1f} | {100 * (row['map'] - row['plain']):+.1f} ({least} to {most}) |"
        )
    return "\n".join(lines)


def main() -> None:
    """Measure the sets, or write the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, help="folder of the image sets")
    parser.add_argument("--runs", type=Path, help="folder for the composites and the runs")
    parser.add_argument("--write", action="store_true", help="write the table of the guide")
    arguments = parser.parse_args()
    rows = read_rows(RESULTS)
    if arguments.data and arguments.runs:
        for name in COMPOSITES:
            if all(row["set"] != name for row in rows):
                append_row(RESULTS, measure(name, arguments.data, arguments.runs / name.replace(" ", "-")))
    if arguments.write:
        write_between(GUIDE, mark_of("measure_labels"), page(rows))


if __name__ == "__main__":
    main()
