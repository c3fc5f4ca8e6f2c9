"""Look for groups in the file names of image sets, and measure what a linear probe loses on them; count false alarms.

    python -m experiments.find_groups --data DIR [--shuffles 5] [--write docs/explanation/groups.md]

DIR holds image sets, each with a folder train; test images are not measured. `groups.csv` is hidden from the search.
Where a set has it, the probe's loss on the true groups is measured, too. With names that are shuffled within each
class, which tell nothing, every finding is a false alarm. Sets that are in the file of rows already are not measured
again.
"""

import argparse
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from experiments.calibrate_forecast import features_of
from experiments.pages import mark_of, write_between
from experiments.paths import RESULTS
from experiments.rows import Row, append_row, read_rows
from finetune.data import ImageSplits, groups_of, labels_of, load_images, paths_of
from finetune.measure.shift import (
    FALSE_ALARM,
    SURE,
    Errors,
    Grouping,
    compare_rules,
    find_groups,
    measure_groups,
    ridge_errors,
)
from finetune.predict.linear_probe import cross_validate

SEEDS = 3
"""Number of searches of each set, with other folds and draws."""

ROWS = RESULTS / "find_groups.jsonl"
"""Measured rows, one for each set."""

SOURCE = (
    "Train images alone; EfficientNet-Lite0 at 128 px, 2 CPU cores (x86_64, shared with other work), 2026-11-29: "
    "`python -m experiments.find_groups --data DIR`."
)
"""How the table was measured."""


def measure(folder: Path, shuffles: int) -> Row:
    """Return the row of a set: the groups that were found, those that are true, and the false alarms."""
    splits = load_images(str(folder), groups="none")
    features, labels = features_of(splits, "train"), labels_of(splits.train)
    everything = np.arange(len(labels))
    start = time.process_time()
    found = [find_groups(features, splits, everything, seed) for seed in range(SEEDS)]
    row: Row = {"set": folder.name, "images": len(labels), "seconds": (time.process_time() - start) / SEEDS}
    row["rules"] = [own.rule if own is not None else "" for own in found]
    row["used"] = [own is not None and own.used for own in found]
    best = max((own for own in found if own is not None), key=lambda own: row["rules"].count(own.rule), default=None)
    row |= {"found": accuracies(features, splits, best), "true": None}
    if (folder / "groups.csv").is_file():
        known = groups_of(load_images(str(folder)).train)
        assert known is not None
        row["true"] = accuracies(features, splits, Grouping(rule="column", groups=known, used=True))
    errors = ridge_errors(features, labels)
    alarms = [shuffled(errors, splits, seed) for seed in range(shuffles)]
    return row | {
        "shuffles": shuffles,
        "alarms": sum(clear for clear, _ in alarms),
        "sure": sum(sure for _, sure in alarms),
    }


def accuracies(features: np.ndarray, splits: ImageSplits, grouping: Grouping | None) -> Row | None:
    """Return both accuracies of the linear probe for some groups; None without groups."""
    if grouping is None:
        return None
    labels = labels_of(splits.train)
    probe = cross_validate(features, labels, len(splits.class_names), 0, grouping.groups)
    return measure_groups(features, labels, grouping, probe.inverse_regularization, 0).model_dump()


def shuffled(errors: Errors, splits: ImageSplits, seed: int) -> tuple[bool, bool]:
    """Return whether names that are shuffled within each class raise an alarm, and whether it is a sure one."""
    labels, paths = labels_of(splits.train), np.asarray(paths_of(splits.train))
    generator = np.random.default_rng(seed)
    for label in np.unique(labels):
        own = np.flatnonzero(labels == label)
        paths[own] = paths[generator.permutation(own)]
    names = [splits.class_names[label] for label in labels]
    compared = [shift for _, shift in compare_rules(labels, errors, paths.tolist(), names, seed)]
    clear, sure = (any(shift.is_clear(len(compared), chance) for shift in compared) for chance in (FALSE_ALARM, SURE))
    return clear, sure


def table(rows: Sequence[Row]) -> list[str]:
    """Return the lines of the table."""
    lines = [
        "| set | images | found, in 3 searches | probe, found groups | probe, true groups | CPU s | false alarms |",
        "|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        rule = row["found"]["rule"] if row["found"] else ""
        count, sure = row["rules"].count(rule) if rule else 0, sum(row["used"])
        name = f"`{rule}`: {count}, used: {sure}" if rule else "nothing"
        lines.append(
            f"| {row['set']} | {row['images']} | {name} | {figures(row['found'])} | {figures(row['true'])} | "
            f"{row['seconds']:.2f} | {row['alarms']} of {row['shuffles']} |"
        )
    return lines


def figures(found: Row | None) -> str:
    """Return both accuracies in percent, and their difference with its standard error."""
    if found is None:
        return "-"
    random, grouped, error = (100 * found[key] for key in ("random_accuracy", "grouped_accuracy", "error"))
    return f"{random:.1f} → {grouped:.1f} ({grouped - random:+.1f} ± {error:.1f}; {found['num_groups']} groups)"


def main() -> None:
    """Measure the sets that are missing, and print or write the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder of image sets")
    parser.add_argument("--shuffles", type=int, default=5, help="number of searches with shuffled names")
    parser.add_argument("--write", type=Path, help="page whose table is replaced")
    asked = parser.parse_args()
    done = {row["set"] for row in read_rows(ROWS)}
    for folder in sorted(place for place in asked.data.iterdir() if place.is_dir() and place.name not in done):
        row = measure(folder, asked.shuffles)
        append_row(ROWS, row)
        print("\n".join(table([row])[2:]), flush=True)
    rows = read_rows(ROWS)
    total = sum(row["shuffles"] for row in rows)
    alarms, sure = (sum(row[key] for row in rows) for key in ("alarms", "sure"))
    text = "\n".join(
        [*table(rows), "", f"Shuffled names: {alarms} alarms in {total} searches, {sure} of them sure. {SOURCE}"]
    )
    if asked.write is None:
        print(text)
        return
    write_between(asked.write, mark_of("find_groups"), text)


if __name__ == "__main__":
    main()
