"""Run every recipe with several seeds, as a person would, and write the results into the recipes and their table.

    python scripts/measure_recipes.py --data DIR [--recipes flowers ...] [--seeds 0 1 2] [--runs FOLDER]

DIR holds the image sets under the names that `SETS` gives. A run that is in FOLDER already is not repeated, so that an
interrupted measurement goes on where it stopped.
"""

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
from dataclasses import dataclass
from datetime import date
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


@dataclass(frozen=True, slots=True)
class ImageSet:
    """What a recipe was measured on."""

    folder: str
    what: str


SETS = {
    "bccd_white_blood_cells": ImageSet("wbc4", "BCCD white blood cells (MIT), subset: 4 classes, 203 + 136 images"),
    "brain_tumor_mri": ImageSet("brainmri3", "brain tumour MRI (Cheng 2015), subset: 3 classes, 1,200 + 600 images"),
    "cifar10": ImageSet("cifar10", "CIFAR-10 (Krizhevsky 2009), subset: 10 classes, 1,200 + 600 images"),
    "clothing": ImageSet("clothing10", "clothing (Grigorev 2020), subset: 10 classes, 1,199 + 372 images"),
    "fashion_mnist": ImageSet("fashion10", "Fashion-MNIST (Xiao 2017), subset: 10 classes, 1,200 + 600 images"),
    "fifteen_scenes": ImageSet("scene15", "15 scenes (Lazebnik 2006), subset: 15 classes, 1,200 + 600 images"),
    "magnetic_tiles": ImageSet("magtile5", "magnetic tile defects (Huang 2018), subset: 5 classes, 872 + 438 images"),
    "oxford_flowers": ImageSet("flowers12", "Oxford Flowers 17 (Nilsback 2006), subset: 12 classes, 695 + 239 images"),
    "pacs_cartoon": ImageSet("pacs_cartoon7", "PACS cartoons (Li 2017), subset: 7 classes, 1,199 + 600 images"),
    "sign_digits": ImageSet("signdigits10", "sign language digits (Mavi 2020), subset: 10 classes, 1,200 + 600 images"),
    "uc_merced": ImageSet("ucmerced21", "UC Merced land use (Yang 2010), subset: 21 classes, 1,197 + 420 images"),
}


@dataclass(frozen=True, slots=True)
class Result:
    """What one run gave."""

    metric: str
    value: float
    strategy: str
    minutes: float
    similarity: float
    probe: float


def measure(name: str, data: Path, seed: int, runs: Path) -> Result:
    """Return the result of a recipe with a seed, from its run folder if it is there."""
    folder = runs / f"{name}-{seed}"
    if not (folder / "metrics.json").exists():
        command = [sys.executable, str(ROOT / "scripts" / "finetune.py"), "train", "--output", str(folder)]
        command += ["--recipe", str(ROOT / "recipes" / f"{name}.yaml"), "--data", str(data), "--seed", str(seed)]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    metrics = json.loads((folder / "metrics.json").read_text())
    evidence = json.loads((folder / "evidence.json").read_text())
    choice = json.loads((folder / "choice.json").read_text())
    return Result(
        metric=evidence["metric"],
        value=metrics["test"][evidence["metric"]],
        strategy=choice["strategy"],
        minutes=metrics["seconds"]["total"] / 60,
        similarity=evidence["domain_similarity"],
        probe=evidence["probe_accuracy"],
    )


def describe(results: list[Result]) -> tuple[str, str, str]:
    """Return mean and standard deviation of the test metric, minutes, and the strategy."""
    values = [result.value for result in results]
    spread = statistics.stdev(values) if len(values) > 1 else 0.0
    strategies = sorted({result.strategy for result in results})
    minutes = statistics.mean(result.minutes for result in results)
    return f"{statistics.mean(values):.3f} ± {spread:.3f}", f"{minutes:.1f}", ", ".join(strategies)


def write_header(name: str, results: list[Result]) -> None:
    """Put what was measured into the recipe's first lines."""
    path = ROOT / "recipes" / f"{name}.yaml"
    body = [line for line in path.read_text("utf-8").splitlines() if not line.startswith("#")]
    value, minutes, strategy = describe(results)
    header = [
        f"# {SETS[name].what} (training + test).",
        f"# Test {results[0].metric} {value} (mean and standard deviation of {len(results)} seeds), {strategy},",
        f"# {minutes} minutes a run on {os.cpu_count()} CPU cores ({platform.machine()}), {date.today()}:",
        f"#   finetune train --recipe recipes/{name}.yaml --data {SETS[name].folder} --seed 0",
    ]
    path.write_text("\n".join([*header, *body]) + "\n", "utf-8")


def write_table(all_results: dict[str, list[Result]]) -> None:
    """Write the table of results."""
    seeds = max(map(len, all_results.values()))
    lines = [
        "# Recipes",
        "",
        "One file for each image set, with what it gave in its first lines.",
        "The place of the images is given with `--data`:",
        "",
        "```bash",
        "finetune train --recipe recipes/oxford_flowers.yaml --data ./flowers",
        "```",
        "",
        f"Test results of {seeds} seeds (mean ± standard deviation), read once, at the end of each run.",
        f"Network: the embedded EfficientNet-Lite0. Hardware: {os.cpu_count()} CPU cores ({platform.machine()}).",
        f"Date: {date.today()}. Command: `python scripts/measure_recipes.py --data DIR`.",
        "",
        "| recipe | images | similarity | probe (cross-validated) | strategy chosen | metric | test | minutes |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for name, results in sorted(all_results.items()):
        value, minutes, strategy = describe(results)
        similarity = statistics.mean(result.similarity for result in results)
        probe = statistics.mean(result.probe for result in results)
        lines.append(
            f"| [{name}]({name}.yaml) | {SETS[name].what} | {similarity:.2f} | {probe:.3f} | {strategy} | "
            f"{results[0].metric} | {value} | {minutes} |"
        )
    (ROOT / "recipes" / "README.md").write_text("\n".join(lines) + "\n", "utf-8")


def main() -> None:
    """Measure and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder of the image sets")
    parser.add_argument("--recipes", nargs="+", choices=sorted(SETS), default=sorted(SETS))
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--runs", type=Path, default=Path("runs"), help="where the run folders go")
    arguments = parser.parse_args()
    all_results: dict[str, list[Result]] = {name: [] for name in arguments.recipes}
    for seed in arguments.seeds:
        for name in arguments.recipes:
            result = measure(name, arguments.data / SETS[name].folder, seed, arguments.runs)
            all_results[name].append(result)
            print(f"{name} seed {seed}: {result}", flush=True)
    for name, results in all_results.items():
        write_header(name, results)
    write_table(all_results)


if __name__ == "__main__":
    main()
