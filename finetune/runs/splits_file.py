"""List the images of a run in a file: their labels, their splits, and the training that held each one out."""

import csv
from collections.abc import Sequence
from pathlib import Path

from finetune.data import ImageSplits, labels_of, paths_of
from finetune.decide.plan import Plan
from finetune.training import plan_phases


def write_splits(path: Path, plan: Plan, splits: ImageSplits) -> None:
    """Write each image's path, label and split, and the phase that held it out, as a table that `--data` accepts."""
    held_out_by: dict[int, str] = {}
    for phase in plan_phases(plan, splits):
        held_out_by |= {int(index): phase.name for index in phase.held_out}
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["path", "label", "split", "held_out_by"])
        offset = 0
        for name, table in (("train", splits.train), ("validation", splits.validation), ("test", splits.test)):
            if table is None:
                continue
            rows: Sequence[tuple[str, int]] = list(zip(paths_of(table), labels_of(table).tolist(), strict=True))
            for number, (image, label) in enumerate(rows):
                held = held_out_by.get(offset + number, "") if name != "test" else ""
                # A relative path would be read relative to this file.
                place = str(Path(image).absolute()) if Path(image).exists() else image
                writer.writerow([place, splits.class_names[label], name, held])
            offset += len(table) if name != "test" else 0
