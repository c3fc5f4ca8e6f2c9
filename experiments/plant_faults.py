"""Plant faults in image sets, and count which of them an audit finds, and what it reports without them.

    python -m experiments.plant_faults --data DIR [--sets monkey10 ...] [--write docs/guides/audit.md]
    python -m experiments.plant_faults --data DIR --quick-part SET

DIR holds image sets, each with a folder train; test images are not used. Of each set, at most 400 images are divided
into train and test and audited twice: as they are, where each finding counts as a false alarm unless it is true, and
with faults. Of the planted copies each is in the test split and its original in the training split: files as they are,
re-encoded (JPEG of quality 50 to 90, also reduced to 60 % where the shorter side stays at least 48 px), mirrored (JPEG
of the same qualities), and cropped to between 71 and 95 % of each side. 5 % of the labels are swapped. Sets that are in
the file of rows already are not measured again.
"""

import argparse
import os
import random
import shutil
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from unittest.mock import patch

import numpy as np
from PIL import Image, ImageOps

from experiments.pages import mark_of, write_between
from experiments.paths import RESULTS
from experiments.rows import Row, append_row, read_rows
from finetune.auditing.crossing import find_quick_copies
from finetune.auditing.features import compute_features
from finetune.auditing.findings import Audit
from finetune.auditing.images import all_images
from finetune.auditing.label_errors import held_out_probabilities
from finetune.auditing.procedure import audit
from finetune.data import labels_of, load_images, load_with_copies, paths_of, stratified_subset, tie_copies
from finetune.measure import measure_evidence
from finetune.progress import no_progress
from finetune.recipe import Recipe

SETS = ("monkey10", "clothing10", "pacs_cartoon7", "signdigits10", "seedling12", "ucmerced21")
"""Sets that the limits of the audit were not chosen on."""

IMAGES, TESTED, COPIES, SWAPPED = 400, 0.25, 20, 0.05
"""Number of images of each set, the share of them in the test split, planted copies of each kind, and the share of the
labels that are swapped."""

REVIEWED = 0.1
"""Share of the images, those with the least probable labels, among which swapped labels are looked for."""

CHANGES = ("copied", "re-encoded", "mirrored", "cropped")
"""Kinds of planted copies."""

ROWS = RESULTS / "plant_faults.jsonl"
"""Measured rows, one for each set."""

SOURCE = (
    "Training images alone, at most 400 a set; EfficientNet-Lite0 at 128 px, 2 CPU cores (x86_64, busy with other "
    "work), 2026-11-29: `python -m experiments.plant_faults --data DIR`."
)
"""How the table was measured."""


def measure(folder: Path, seed: int) -> Row:
    """Return the row of a set."""
    with tempfile.TemporaryDirectory() as place:
        clean, faulty = Path(place, "clean"), Path(place, "faulty")
        _divide(folder, clean, seed)
        before = audit(str(clean))
        shutil.copytree(clean, faulty)
        planted = {change: _plant_copies(faulty, change, seed) for change in CHANGES}
        swapped = _swap_labels(faulty, seed)
        after = audit(str(faulty))
        found = {
            path for finding in after.findings if finding.other_path for path in (finding.path, finding.other_path)
        }
        return {
            "set": folder.name,
            "images": before.num_images,
            "alarms": Counter(finding.kind for finding in before.findings),
            "alarms_listed": [
                finding.model_dump() | {"path": _name(finding.path), "other_path": _name(finding.other_path)}
                for finding in before.findings
            ],
            "planted": {change: len(paths) for change, paths in planted.items()},
            "found": {change: sum(str(path) in found for path in paths) for change, paths in planted.items()},
            "swapped": len(swapped),
            "swapped_reported": sum(finding.path in swapped for finding in after.of_kind("label")),
            "swapped_in_review": _in_review(faulty, after, swapped),
            "test_accuracy": after.test_accuracy,
            "test_accuracy_without_copies": after.test_accuracy_without_copies,
        }


def _divide(folder: Path, place: Path, seed: int) -> None:
    """Copy some training images of a set into folders train and test."""
    splits = load_images(str(folder), groups="none")
    labels, paths = labels_of(splits.train), paths_of(splits.train)
    chosen = stratified_subset(labels, IMAGES, seed)
    tested = set(stratified_subset(labels[chosen], round(TESTED * len(chosen)), seed).tolist())
    for number, index in enumerate(chosen.tolist()):
        target = place / ("test" if number in tested else "train") / splits.class_names[labels[index]]
        target.mkdir(parents=True, exist_ok=True)
        shutil.copy(paths[index], target / f"{number:03d}{Path(paths[index]).suffix}")


def _plant_copies(root: Path, change: str, seed: int) -> list[Path]:
    """Put changed copies of some training images into the test split, and return their paths."""
    generator = random.Random(f"{change} {seed}")
    originals = sorted(path for path in (root / "train").rglob("*") if path.is_file())
    planted = []
    for original in generator.sample(originals, COPIES):
        target = root / "test" / original.parent.name / f"{change}-{original.stem}.jpg"
        target.parent.mkdir(parents=True, exist_ok=True)
        if change == "copied":
            target = target.with_suffix(original.suffix)
            shutil.copy(original, target)
        else:
            with Image.open(original) as image:
                _changed(image.convert("RGB"), change, generator).save(target, quality=generator.randint(50, 90))
        planted.append(target)
    return planted


def _changed(image: Image.Image, change: str, generator: random.Random) -> Image.Image:
    """Return an image, reduced, mirrored or cropped."""
    width, height = image.size
    if change == "mirrored":
        return ImageOps.mirror(image)
    if change == "re-encoded":
        scale = max(generator.uniform(0.6, 1.0), min(1.0, 48 / min(image.size)))
        return image.resize((round(width * scale), round(height * scale)), Image.Resampling.LANCZOS)
    share = generator.uniform(0.75, 0.95)
    own = (round(width * share), round(height * share * generator.uniform(0.95, 1.0)))
    left, top = generator.randint(0, width - own[0]), generator.randint(0, height - own[1])
    return image.crop((left, top, left + own[0], top + own[1]))


def _swap_labels(root: Path, seed: int) -> set[str]:
    """Move some images that have no planted copy into the folder of another class, and return their new paths."""
    generator = random.Random(f"swapped {seed}")
    copied = {path.stem.rpartition("-")[2] for path in (root / "test").rglob("*-*")}
    files = sorted(path for path in root.rglob("*") if path.is_file() and "-" not in path.stem)
    free = [path for path in files if path.stem not in copied]
    names = sorted(path.name for path in (root / "train").iterdir())
    moved = set()
    for path in generator.sample(free, round(SWAPPED * len(files))):
        other = generator.choice([name for name in names if name != path.parent.name])
        target = path.parent.parent / other / path.name
        target.parent.mkdir(exist_ok=True)
        moved.add(str(path.rename(target)))
    return moved


def _in_review(root: Path, found: Audit, swapped: set[str]) -> int:
    """Return how many swapped labels are among the tenth of the images with the least probable labels."""
    splits = load_with_copies(str(root))
    images = all_images(splits)
    features, _ = compute_features(str(root), splits, images, no_progress)
    kept = {row[0] for row in found.clean_rows}  # each picture counts once, as in the audit
    rows = np.asarray([number for number, path in enumerate(images.paths) if path in kept])
    probabilities = held_out_probabilities(features[rows], images.labels[rows], len(images.class_names), None)
    given = probabilities[np.arange(len(rows)), images.labels[rows]]
    reviewed = rows[np.argsort(given, kind="stable")[: round(REVIEWED * len(rows))]]
    return sum(images.paths[number] in swapped for number in reviewed)


def _name(path: str) -> str:
    """Return the last parts of a path, without the temporary folder."""
    return "/".join(Path(path).parts[-3:])


def time_quick_part(folder: Path) -> str:
    """Return the CPU times of the part of an audit that is in every run, of the evidence, with an empty cache, and of
    the second measurement that follows where copies were found."""
    splits, recipe = load_images(str(folder), groups="none"), Recipe(data=str(folder), groups="none")
    with tempfile.TemporaryDirectory() as place, patch.dict(os.environ, FINETUNE_CACHE=place):
        times = [time.process_time()]
        evidence = measure_evidence(recipe, splits)
        times.append(time.process_time())
        found = find_quick_copies(splits, evidence.preprocessing.shorter_side)
        times.append(time.process_time())
        if found is not None and found.pairs:
            measure_evidence(recipe, tie_copies(splits, found.pictures(), recipe.seed))
        times.append(time.process_time())
    first, quick, again = np.diff(times)
    pairs, crossing = ("no", "no") if found is None else (len(found.pairs), len(found.crossing()))
    return (
        f"{folder.name}, {len(splits.train)} training images: {quick:.2f} CPU s of {first:.1f} CPU s, "
        f"{quick / first:.1%}; {pairs} pairs of copies, {crossing} images on both sides; measured again in "
        f"{again:.2f} CPU s, {again / first:.1%}"
    )


def table(rows: Sequence[Row]) -> list[str]:
    """Return the lines of the table."""
    lines = [
        "| set | images | "
        + " | ".join(CHANGES)
        + " | swapped labels: in the top 10 %, reported | false alarms: copies, labels, "
        "others | probe's test accuracy, without copies |",
        "|" + "---|" * (len(CHANGES) + 5),
    ]
    for row in rows:
        alarms: Counter[str] = Counter(row["alarms"])
        copies = sum(alarms.pop(kind, 0) for kind in ("two labels", "copy", "near copy"))
        labels = alarms.pop("label", 0)
        found = " | ".join(f"{row['found'][change]} of {row['planted'][change]}" for change in CHANGES)
        lines.append(
            f"| {row['set']} | {row['images']} | {found} | {row['swapped_in_review']}, {row['swapped_reported']} of "
            f"{row['swapped']} | {copies}, {labels}, {sum(alarms.values())} | {100 * row['test_accuracy']:.1f} → "
            f"{100 * row['test_accuracy_without_copies']:.1f} % |"
        )
    return lines


def main() -> None:
    """Measure the sets that are missing, and print or write the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder of image sets")
    parser.add_argument("--sets", nargs="+", default=SETS, help="names of the sets")
    parser.add_argument("--seed", type=int, default=0, help="seed of the draws")
    parser.add_argument("--write", type=Path, help="page whose table is replaced")
    parser.add_argument("--quick-part", metavar="SET", help="time the part that is in every run, on this set, and stop")
    asked = parser.parse_args()
    if asked.quick_part:
        print(time_quick_part(asked.data / asked.quick_part))
        return
    done = {row["set"] for row in read_rows(ROWS)}
    for name in asked.sets:
        if name not in done:
            row = measure(asked.data / name, asked.seed)
            append_row(ROWS, row)
            print("\n".join(table([row])[2:]), flush=True)
    text = "\n".join([*table(read_rows(ROWS)), "", SOURCE])
    if asked.write is None:
        print(text)
        return
    write_between(asked.write, mark_of("plant_faults"), text)


if __name__ == "__main__":
    main()
