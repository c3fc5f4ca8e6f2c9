"""Score the locked image sets once: run finetune as a user would, and append what it found.

    python -m experiments.locked_sets --data DIR [--sets emodb7 dtd10 trash6]

The sets of `experiments.strategy_grid.LOCKED` took no part in any choice. Each is run with every strategy and every
preference, and its test accuracy, wall time and chosen training are appended to experiments/results/locked_sets.jsonl,
whatever they are. A set that has a row for a run is not run again.
"""

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from datetime import date
from pathlib import Path

from experiments.paths import ROOT
from experiments.rows import append_row, read_rows
from experiments.strategy_grid import IMAGE_SIZE, LOCKED
from experiments.strategy_report import LOCKED_ROWS

RUNS = {
    "linear_probe": ["--strategy", "linear_probe"],
    "full": ["--strategy", "full"],
    "partial": ["--strategy", "partial"],
    "balanced": [],
    "accuracy": ["--prefer", "accuracy"],
    "speed": ["--prefer", "speed"],
}
"""Options of each run."""


def score(folder: Path, options: list[str]) -> dict[str, object]:
    """Run finetune on a set; return its test accuracy, the wall time of the command and what was trained."""
    with tempfile.TemporaryDirectory() as target:
        output = Path(target) / "run"
        command = [
            sys.executable,
            str(ROOT / "scripts" / "finetune.py"),
            "train",
            "--data",
            str(folder),
            "--output",
            str(output),
        ]
        start = time.perf_counter()
        subprocess.run([*command, "--image-size", str(IMAGE_SIZE), *options], check=True, capture_output=True)
        seconds = time.perf_counter() - start
        metrics, choice = (json.loads((output / name).read_text()) for name in ("metrics.json", "choice.json"))
    names = {each["name"]: each for each in choice["candidates"]}
    chosen = choice["candidates"][0]
    return {
        "accuracy": metrics["test"]["top1"],
        "seconds": round(seconds, 1),
        "trained": " + ".join(choice["members"]) or chosen["name"],
        "note": metrics.get("note", ""),
        "expected_interval": names[chosen["name"]]["expected_interval"],
    }


def main() -> None:
    """Run what is missing."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder of the image sets")
    parser.add_argument("--sets", nargs="+", default=list(LOCKED), choices=LOCKED)
    asked = parser.parse_args()
    if not LOCKED_ROWS.exists():
        commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], check=True, capture_output=True, text=True)
        about = {"date": str(date.today()), "commit": commit.stdout.strip()}
        append_row(LOCKED_ROWS, {**about, "machine": f"{os.cpu_count()} cores, {platform.machine()}"})
    for name in asked.sets:
        for run, options in RUNS.items():
            if not any((row.get("set"), row.get("run")) == (name, run) for row in read_rows(LOCKED_ROWS)):
                append_row(LOCKED_ROWS, {"set": name, "run": run, **score(asked.data / name, options)})


if __name__ == "__main__":
    main()
