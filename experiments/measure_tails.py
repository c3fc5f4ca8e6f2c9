"""Measure the default correction for classes of unequal size on long-tailed sets, compared with the others.

    python -m experiments.measure_tails --data DIR --runs FOLDER
    python -m experiments.measure_tails --data DIR --runs FOLDER --write

The training images of a set are thinned to exponentially falling class sizes (Cui et al. 2019), from the largest class
to one image of the smallest, which takes `allow_rare`; the test images stay as they are, so that balanced accuracy is
accuracy. Every run is of the default choice unless `--strategy` fixes it. Rows are appended to
experiments/results/tails.jsonl; runs that are in it are not repeated. The table of all rows is printed, or written into
docs/guides/rare-classes.md.
"""

import argparse
import csv
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from experiments.pages import mark_of, write_between
from experiments.paths import RESULTS, ROOT
from experiments.rows import Row, append_row, read_rows
from finetune.recipe import Recipe
from finetune.runs.pipeline import run

ROWS = RESULTS / "tails.jsonl"
"""Rows of the runs."""

GUIDE = ROOT / "docs" / "guides" / "rare-classes.md"
"""Page with the table."""

RATIO = 100.0
"""Ratio of the largest class to the smallest, whose size is rounded to one image at least."""

SIDE = 128
"""Side of the images that the network receives, in pixels."""

CORRECTIONS = ("default", "none", "class_weights", "logit_adjustment")
"""Values of `training.imbalance`; `default` leaves it to the plan."""


def tail_sizes(largest: int, num_classes: int) -> list[int]:
    """Return exponentially falling class sizes, the smallest at least 1.

    >>> tail_sizes(100, 3)
    [100, 10, 1]
    """
    return [max(1, round(largest * RATIO ** -(rank / (num_classes - 1)))) for rank in range(num_classes)]


def write_tail(folder: Path, table: Path, seed: int) -> None:
    """Write a table of a tree's images with thinned training images; the seed orders classes and images."""
    classes = sorted(path.name for path in (folder / "train").iterdir() if path.is_dir())
    generator = np.random.default_rng(seed)
    order = generator.permutation(classes).tolist()
    largest = min(len(list((folder / "train" / name).iterdir())) for name in classes)
    kept = dict(zip(order, tail_sizes(largest, len(classes)), strict=True))

    def rows() -> Iterator[tuple[str, str, str]]:
        for name in classes:
            images = sorted((folder / "train" / name).iterdir())
            for place in generator.permutation(len(images))[: kept[name]]:
                yield str(images[place]), name, "train"
            for path in sorted((folder / "test" / name).iterdir()):
                yield str(path), name, "test"

    with table.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([("path", "label", "split"), *rows()])


def measure(table: Path, output: Path, correction: str, strategy: str) -> Row:
    """Return the metrics of a run on the test images."""
    training = {} if correction == "default" else {"imbalance": correction}
    model = run(
        Recipe(
            data=str(table), model="tf_efficientnet_lite0", strategy=strategy, image_size=SIDE, allow_rare=True,
            training=training,
        ),
        output,
    )  # fmt: skip
    test = model.test
    if test is None:
        raise ValueError(f"{table} has no test images")
    return {
        "chosen": model.plan.strategy,
        "imbalance": model.plan.imbalance,
        "top1": round(test.top1, 4),
        "balanced_accuracy": round(test.balanced_accuracy, 4),
        "log_loss": round(test.log_loss, 4),
    }


def page(rows: Sequence[Row]) -> str:
    """Return the table of balanced accuracies on the test images: a row for each set and strategy."""
    lines = [
        "| set | run | " + " | ".join(name.replace("_", " ") for name in CORRECTIONS) + " |",
        "|---|---|" + "---|" * len(CORRECTIONS),
    ]
    for name, strategy in dict.fromkeys((row["set"], row["strategy"]) for row in rows):
        own = [row for row in rows if (row["set"], row["strategy"]) == (name, strategy)]
        cells = []
        for correction in CORRECTIONS:
            found = [row for row in own if row["correction"] == correction]
            cells.append(f"{np.mean([row['balanced_accuracy'] for row in found]):.3f}" if found else "")
            if found and correction == "default":
                cells[-1] += f" ({', '.join(dict.fromkeys(row['imbalance'].replace('_', ' ') for row in found))})"
        chosen = ", ".join(dict.fromkeys(f"auto: {row['chosen']}" for row in own)) if strategy == "auto" else strategy
        lines.append(f"| {name} | {chosen} | {' | '.join(cells)} |")
    return "\n".join(lines)


def main() -> None:
    """Measure what is not measured yet; print the table of all rows, or write it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder of the image sets")
    parser.add_argument("--runs", type=Path, required=True, help="folder of the tables and the run folders")
    parser.add_argument("--sets", nargs="+", default=["scene15", "ucmerced21"])
    parser.add_argument("--seeds", nargs="+", type=int, default=[0])
    parser.add_argument("--strategy", default="auto")
    parser.add_argument("--corrections", nargs="+", choices=CORRECTIONS, default=list(CORRECTIONS[:2]))
    parser.add_argument("--write", action="store_true", help="write the table of the guide")
    arguments = parser.parse_args()
    arguments.runs.mkdir(parents=True, exist_ok=True)
    for seed in arguments.seeds:
        for name in arguments.sets:
            table = arguments.runs / f"{name}-{seed}.csv"
            write_tail(arguments.data / name, table, seed)
            for correction in arguments.corrections:
                key = {"set": name, "seed": seed, "strategy": arguments.strategy, "correction": correction}
                if any(key.items() <= row.items() for row in read_rows(ROWS)):
                    continue
                output = arguments.runs / "-".join(map(str, key.values()))
                append_row(ROWS, key | measure(table, output, correction, arguments.strategy))
    table_of_rows = page(read_rows(ROWS))
    print(table_of_rows)
    if arguments.write:
        write_between(GUIDE, mark_of("measure_tails"), table_of_rows)


if __name__ == "__main__":
    main()
