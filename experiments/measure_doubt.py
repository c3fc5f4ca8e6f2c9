"""Measure withheld labels, sets of classes, and the distance of images of other kinds, on runs of the recipes.

    python -m experiments.measure_doubt --data DIR --runs FOLDER
    python -m experiments.measure_doubt --write

DIR holds the image sets, and FOLDER the run folders of experiments.measure_recipes (seed 0). For each of them, up to
200 test images are compared with up to 120 test images of each set of `OTHERS`. Rows are appended to
experiments/results/doubt.jsonl; runs that are in it are not measured again. The second form writes the tables of
docs/guides/withheld-labels.md.
"""

import argparse
from datetime import date
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from sklearn.metrics import roc_auc_score

from experiments.measure_recipes import SETS, hardware
from experiments.pages import mark_of, write_between
from experiments.paths import ROOT
from experiments.rows import Row, append_row, read_rows
from finetune.data import load_images
from finetune.data.folder import walk_files
from finetune.predict.doubt import find_least_probability, least_probability_in_set
from finetune.predict.model import Predictor
from finetune.predict.neighbours import Neighbours
from finetune.progress import no_progress
from finetune.runs.doubt import NEIGHBOURS, find_neighbours
from finetune.runs.folder import RunFolder
from finetune.runs.image_tables import probabilities_of, read_predictions

RESULTS = ROOT / "experiments" / "results" / "doubt.jsonl"
"""Rows of the runs."""

GUIDE = ROOT / "docs" / "guides" / "withheld-labels.md"
"""Page with the tables."""

OTHERS = ("flowers12", "scene15", "ucmerced21", "signdigits10", "brainmri3")
"""Sets whose images are of another kind than those of the run: flowers, scenes, aerial images, hands, brains."""

OWN, OTHER = 200, 120
"""Largest numbers of test images of the run's own set and of each other set."""

WANTED, COVERAGE = 0.95, 0.9
"""Share of the given labels that shall be right, and share of the sets that shall hold the right class."""


def draw(folder: Path, most: int) -> list[str]:
    """Return at most `most` image files below a folder, drawn with seed 0."""
    files = sorted(walk_files(folder))
    return [files[place] for place in np.random.default_rng(0).permutation(len(files))[:most]]


def distances(model: Predictor, neighbours: Neighbours, files: list[str]) -> NDArray[np.float64]:
    """Return the distance of each file from its nearest training image, (n_files,)."""
    return neighbours.distances(model.embed(files))


def measure(run: Path, data: Path, own: str) -> Row:
    """Return what a run's limits do on its test images and on images of other sets."""
    predictions = read_predictions(run)
    held, test = (predictions[predictions["split"] == split] for split in ("validation", "test"))
    is_right = (held["label"] == held["predicted"]).to_numpy(bool)
    least = find_least_probability(held["probability"].to_numpy(float), is_right, WANTED)
    model = RunFolder(run).read_model()
    in_set = least_probability_in_set(held["label_probability"].to_numpy(float), COVERAGE)
    probabilities = probabilities_of(test, model.class_names)
    sizes = np.maximum(1, (probabilities >= in_set).sum(axis=1))
    best = test["label"] == test["predicted"]
    covered = best | (test["label_probability"] >= in_set)
    given = test["probability"] >= (2.0 if least is None else least.value)
    if (run / NEIGHBOURS).exists():
        neighbours = Neighbours.load(run / NEIGHBOURS)
    else:  # a run of an earlier version
        neighbours = find_neighbours(model, load_images(str(data / own)), no_progress)
    near = distances(model, neighbours, draw(data / own / "test", OWN))
    others: dict[str, Row] = {}
    for other in OTHERS:
        if other == own:
            continue
        far = distances(model, neighbours, draw(data / other / "test", OTHER))
        is_other = np.repeat([0, 1], [len(near), len(far)])
        others[other] = {
            "auroc": round(float(roc_auc_score(is_other, np.concatenate([near, far]))), 4),
            "withheld": round(float((far > neighbours.limit).mean()), 3),
        }
    return {
        "run": run.name,
        "set": own,
        "date": f"{date.today()}",
        "top1": round(float(best.mean()), 4),
        "given": round(float(given.mean()), 4),
        "right": round(float(best[given].mean()), 4) if given.any() else None,
        "num_given": int(given.sum()),
        "covered": round(float(covered.mean()), 4),
        "set_size": round(float(sizes.mean()), 2),
        "own_withheld": round(float((near > neighbours.limit).mean()), 3),
        "others": others,
    }


def tables(rows: list[Row]) -> str:
    """Return the two tables of the guide."""
    lines = [
        f"`python -m experiments.measure_doubt --data DIR --runs FOLDER`; {hardware()}, {rows[0]['date']}; one run of",
        "each recipe, limits from the held-out images, results on the test images:",
        "",
        f"| set | right | labelled at {WANTED} | of these right | right class in set, {COVERAGE} | classes in a set |",
        "|---|---|---|---|---|---|",
    ]
    for row in rows:
        right = "" if row["right"] is None else f"{100 * row['right']:.1f} %"
        lines.append(
            f"| {row['set']} | {100 * row['top1']:.1f} % | {100 * row['given']:.0f} % | {right} | "
            f"{100 * row['covered']:.1f} % | {row['set_size']:.2f} |"
        )
    lines += [
        "",
        "Images of other kinds: area under the ROC curve of the distance, and the share that is beyond the limit:",
        "",
        "| trained on | own test images beyond | " + " | ".join(OTHERS) + " |",
        "|---|---|" + "---|" * len(OTHERS),
    ]
    for row in rows:
        cells = []
        for other in OTHERS:
            found = row["others"].get(other)
            cells.append(f"{found['auroc']:.3f}, {100 * found['withheld']:.0f} %" if found else "")
        lines.append(f"| {row['set']} | {100 * row['own_withheld']:.1f} % | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def main() -> None:
    """Measure the runs, or write the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, help="folder of the image sets")
    parser.add_argument("--runs", type=Path, help="folder of the runs of experiments.measure_recipes")
    parser.add_argument("--write", action="store_true", help="write the tables of the guide")
    arguments = parser.parse_args()
    if arguments.write:
        write_between(GUIDE, mark_of("measure_doubt"), tables(read_rows(RESULTS)))
        return
    known = {row["run"] for row in read_rows(RESULTS)}
    for name, image_set in SETS.items():
        run = arguments.runs / f"{name}-auto-0"
        if run.name not in known and (run / "metrics.json").exists():
            row = measure(run, arguments.data, image_set.folder)
            append_row(RESULTS, row)
            print(row, flush=True)


if __name__ == "__main__":
    main()
