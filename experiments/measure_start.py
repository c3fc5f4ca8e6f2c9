"""Measure how long commands take that have little to do, their imports included.

    python -m experiments.measure_start --data DIR/SET

The commands are started in turn, each in a process of its own: a mistake in a path, a linear probe of 60 images, and a
prediction of five images, both on a machine whose speed is known; and the timing of a machine that is not. The bare
import of PyTorch and timm is timed, too: no command that uses a network can take less. Medians are printed.
Measure on a machine with nothing else to do.
"""

import argparse
import os
import re
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from experiments.paths import ROOT

SIXTY = 3, 20
"""Number of classes, and number of images of each, of the small data set."""

TIMED = re.compile(r"timing this machine: 1 in ([\d.]+) s")
"""What a run prints when it has timed the machine."""


def copy_sixty(source: Path, target: Path) -> None:
    """Copy the first images of the first classes of `source`, a set with `train`, to `target`."""
    classes, count = SIXTY
    for folder in sorted((source / "train").iterdir())[:classes]:
        (target / folder.name).mkdir(parents=True)
        for image in sorted(folder.iterdir())[:count]:
            shutil.copy(image, target / folder.name)


PROGRAM = str(ROOT / "scripts" / "finetune.py")
"""Path of the program."""


def seconds_of(arguments: list[str], cache: Path, status: int = 0) -> tuple[float, str]:
    """Return the seconds that Python takes with these arguments, and what it prints; check its exit status."""
    start = time.perf_counter()
    command = [sys.executable, *arguments]
    ended = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "FINETUNE_CACHE": str(cache)})
    seconds = time.perf_counter() - start
    if ended.returncode != status:
        raise SystemExit(f"{' '.join(arguments)} ended with {ended.returncode}:\n{ended.stderr}")
    return seconds, ended.stdout


def main() -> None:
    """Start all commands in turn, and print the median of each."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True, type=Path, help="an image set with train/CLASS/ folders")
    parser.add_argument("--repetitions", type=int, default=5, help="how often each command is started; 5 by default")
    arguments = parser.parse_args()
    times: dict[str, list[float]] = {}
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        copy_sixty(arguments.data, folder / "images")
        data, known = str(folder / "images"), folder / "known"
        probe = [PROGRAM, "train", "--data", data, "--strategy", "linear_probe"]
        seconds_of([*probe, "--output", f"{place}/first"], known)
        images = [str(image) for image in sorted((folder / "images").rglob("*.*"))[:5]]
        for number in range(arguments.repetitions):
            plan = [PROGRAM, "train", "--data", data, "--plan-only", "--verbose", "--output", f"{place}/plan{number}"]
            _, printed = seconds_of(plan, folder / f"cache{number}")
            found = TIMED.search(printed)
            if found is None:
                raise SystemExit(f"no timing of the machine in:\n{printed}")
            measured = {
                "`import torch, timm` and no command": seconds_of(["-c", "import torch, timm"], known)[0],
                "mistake in a path": seconds_of([PROGRAM, "train", "--data", f"{place}/nowhere"], known, status=2)[0],
                "timing the machine, on the first use of a network": float(found[1]),
                "linear probe of 60 images": seconds_of([*probe, "--output", f"{place}/run{number}"], known)[0],
                "`predict` of five images": seconds_of(
                    [PROGRAM, "predict", f"{place}/first", *images, "--output", f"{place}/{number}.csv"], known
                )[0],
            }
            for about, seconds in measured.items():
                times.setdefault(about, []).append(seconds)
    print("| command | median | range |\n|---|---|---|")
    for about, values in times.items():
        print(f"| {about} | {statistics.median(values):.1f} s | {min(values):.1f} to {max(values):.1f} s |")


if __name__ == "__main__":
    main()
