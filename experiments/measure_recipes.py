"""Run every recipe with several seeds by the command line, and write the results into the recipes and pages.

    python -m experiments.measure_recipes --data DIR [--recipes flowers ...] [--seeds 0 1 2] [--runs FOLDER]
    python -m experiments.measure_recipes --data DIR --strategies auto linear_probe full --recipes clothing --seeds 0

DIR holds the image sets under the folder names of `SETS`. The first form writes the recipes' headers, their table and
the README's examples; the second compares forced strategies and writes the table of docs/explanation/choice.md.
Runs that are already in FOLDER are not repeated, so an interrupted measurement continues.
"""

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import date
from pathlib import Path

from experiments.pages import mark_of, write_between
from experiments.paths import PAGES, ROOT
from finetune.runs.folder import RunFolder

STRATEGIES = ("auto", "linear_probe", "norm_tuning", "partial", "full", "scratch")
"""Strategies that can be compared."""

SHOWN = ("oxford_flowers", "clothing", "uc_merced", "brain_tumor_mri", "fashion_mnist")
"""Recipes that are the README's examples, from near to far."""


@dataclass(frozen=True, slots=True)
class ImageSet:
    """The image set of a recipe."""

    folder: str
    """Name of the folder of the images."""
    what: str
    """Name, source and numbers of classes and images, in words."""


SETS = {
    "bccd_white_blood_cells": ImageSet("wbc4", "BCCD white blood cells (MIT), subset: 4 classes, 203 + 136 images"),
    "brain_tumor_mri": ImageSet("brainmri3", "brain tumour MRI (Cheng 2015), subset: 3 classes, 1,200 + 600 images"),
    "cifar10": ImageSet("cifar10", "CIFAR-10 (Krizhevsky 2009), subset: 10 classes, 1,200 + 600 images"),
    "clothing": ImageSet("clothing10", "clothing (Grigorev 2020), subset: 10 classes, 1,199 + 372 images"),
    "fashion_mnist": ImageSet("fashion10", "Fashion-MNIST (Xiao 2017), subset: 10 classes, 1,200 + 600 images"),
    "fifteen_scenes": ImageSet("scene15", "15 scenes (Lazebnik 2006), subset: 15 classes, 1,200 + 600 images"),
    "oxford_flowers": ImageSet("flowers12", "Oxford Flowers 17 (Nilsback 2006), subset: 12 classes, 695 + 239 images"),
    "pacs_cartoon": ImageSet("pacs_cartoon7", "PACS cartoons (Li 2017), subset: 7 classes, 1,199 + 600 images"),
    "sign_digits": ImageSet("signdigits10", "sign language digits (Mavi 2020), subset: 10 classes, 1,200 + 600 images"),
    "uc_merced": ImageSet("ucmerced21", "UC Merced land use (Yang 2010), subset: 21 classes, 1,197 + 420 images"),
}
"""Image set of each recipe, by the name of the recipe."""


@dataclass(frozen=True, slots=True)
class RunResult:
    """The result of one run."""

    metric: str
    """Metric of the set: `top1` or `balanced_accuracy`."""
    value: float
    """Test result by `metric`, in 0 .. 1."""
    chosen: str
    """Label of the chosen candidate."""
    seconds: float
    """Wall time of the run, in seconds."""
    training_seconds: float
    """Wall time of the training, in seconds."""
    expected_seconds: float
    """Predicted wall time of the training, in seconds."""
    similarity: float
    """Domain similarity: 0 is far, 1 is near."""
    probe: float
    """Cross-validated accuracy of the linear probe."""
    threads: int
    """Number of threads of the run."""


def measure(name: str, strategy: str, data: Path, seed: int, runs: Path) -> RunResult:
    """Return the result of a recipe with a seed; run it unless its run folder is already finished."""
    folder = runs / f"{name}-{strategy}-{seed}"
    if not (folder / "metrics.json").exists():
        command = [sys.executable, str(ROOT / "scripts" / "finetune.py"), "train", "--output", str(folder)]
        command += ["--recipe", str(ROOT / "recipes" / f"{name}.yaml"), "--data", str(data), "--seed", str(seed)]
        subprocess.run([*command, "--strategy", strategy], check=True, stdout=subprocess.DEVNULL)
    metrics = json.loads((folder / "metrics.json").read_text())
    evidence = json.loads((folder / "evidence.json").read_text())
    candidate = RunFolder(folder).read_decisions().choice.chosen
    environment = json.loads((folder / "environment.json").read_text())
    return RunResult(
        metric=evidence["metric"],
        value=metrics["test"][evidence["metric"]],
        chosen=candidate.label,
        seconds=metrics["seconds"]["total"],
        training_seconds=metrics["seconds"]["train"],
        expected_seconds=candidate.expected_seconds,
        similarity=evidence["domain_similarity"],
        probe=evidence["probe_accuracy"],
        threads=environment["threads"],
    )


def mean_and_spread(results: Sequence[RunResult]) -> str:
    """Return the mean and the standard deviation of the test metric over the runs, as text."""
    values = [result.value for result in results]
    mean = f"{statistics.mean(values):.3f}"
    return f"{mean} ± {statistics.stdev(values):.3f}" if len(values) > 1 else mean


def accuracy(results: Sequence[RunResult]) -> str:
    """Return the mean and the standard deviation of the test metric, and the metric's name if it is not top-1."""
    return mean_and_spread(results) + (" (balanced)" if results[0].metric == "balanced_accuracy" else "")


def mean_minutes(results: Sequence[RunResult]) -> str:
    """Return the mean duration of the runs, and their number of threads."""
    threads = " or ".join(sorted({str(result.threads) for result in results}))
    unit = "thread" if threads == "1" else "threads"
    return f"{statistics.mean(result.seconds for result in results) / 60:.1f} min on {threads} {unit}"


def chosen(results: Sequence[RunResult]) -> str:
    """Return the labels of the candidates that the runs chose, as text."""
    return ", ".join(sorted({result.chosen for result in results}))


def write_header(name: str, results: Sequence[RunResult]) -> None:
    """Write the results into the first lines of a recipe."""
    path = ROOT / "recipes" / f"{name}.yaml"
    body = [line for line in path.read_text("utf-8").splitlines() if not line.startswith("#")]
    header = [
        f"# {SETS[name].what} (training + test).",
        f"# Test {results[0].metric} {mean_and_spread(results)} (mean and standard deviation of {len(results)} seeds),",
        f"# {chosen(results)}, {mean_minutes(results)} ({hardware()}), {date.today()}:",
        f"#   finetune train --recipe recipes/{name}.yaml --data {SETS[name].folder} --seed 0",
    ]
    path.write_text("\n".join([*header, *body]) + "\n", "utf-8")


def write_table(all_results: dict[str, list[RunResult]]) -> None:
    """Write recipes/README.md: the table of results."""
    seeds = max(map(len, all_results.values()))
    numbers = " ".join(map(str, range(seeds)))
    lines = [
        "# Recipes",
        "",
        "One file for each image set; its first lines state the result. Give the folder of the images with `--data`:",
        "",
        "```bash",
        "finetune train --recipe recipes/oxford_flowers.yaml --data ./flowers",
        "```",
        "",
        f"Test results of {seeds} seeds (mean ± standard deviation), read once, at the end of each run.",
        f"Network: the embedded EfficientNet-Lite0. Hardware: {hardware()}.",
        f"Date: {date.today()}. Command: `python -m experiments.measure_recipes --data DIR --seeds {numbers}`.",
        "",
        "| recipe | images (training + test) | similarity | probe (5-fold) | chosen | metric | test | time of a run |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for name, results in sorted(all_results.items()):
        similarity = statistics.mean(result.similarity for result in results)
        probe = statistics.mean(result.probe for result in results)
        lines.append(
            f"| [{name}]({name}.yaml) | {SETS[name].what} | {similarity:.2f} | {probe:.3f} | {chosen(results)} | "
            f"{results[0].metric} | {mean_and_spread(results)} | {mean_minutes(results)} |"
        )
    (ROOT / "recipes" / "README.md").write_text("\n".join(lines) + "\n", "utf-8")


def write_examples(all_results: dict[str, list[RunResult]]) -> None:
    """Write the results of the `SHOWN` recipes into the README."""
    lines = [
        "| images (training + test) | similarity | linear probe (5-fold) | chosen | test accuracy | time of a run |",
        "|---|---|---|---|---|---|",
    ]
    for name in SHOWN:
        results = all_results[name]
        similarity = statistics.mean(result.similarity for result in results)
        probe = statistics.mean(result.probe for result in results)
        lines.append(
            f"| {SETS[name].what} | {similarity:.2f} | {probe:.3f} | {chosen(results)} | {accuracy(results)} | "
            f"{mean_minutes(results)} |"
        )
    seeds = len(all_results[SHOWN[0]])
    lines += [
        "",
        f"Mean ± standard deviation of {seeds} seeds; {hardware()}, {date.today()}.",
    ]
    write_between(ROOT / "README.md", mark_of("measure_recipes"), "\n".join(lines))


def write_comparison(all_results: dict[str, dict[str, list[RunResult]]], command: str) -> None:
    """Write the table of forced strategies into docs/explanation/choice.md."""
    strategies = list(next(iter(all_results.values())))
    lines = [
        f"Test accuracy and time of a run; {hardware()}, {date.today()}. Command:",
        f"`{command}`.",
        "",
        "| set | " + " | ".join(strategies) + " |",
        "|---|" + "---|" * len(strategies),
    ]
    for name, by_strategy in all_results.items():
        cells = [f"{accuracy(results)}, {mean_minutes(results)}" for results in by_strategy.values()]
        lines.append(f"| {SETS[name].folder} | " + " | ".join(cells) + " |")
    ratios = [
        result.training_seconds / result.expected_seconds
        for by_strategy in all_results.values()
        for results in by_strategy.values()
        for result in results
    ]
    lines += [
        "",
        f"Training took {min(ratios):.2f} to {max(ratios):.2f} times the expected seconds "
        f"(median {statistics.median(ratios):.2f}, {len(ratios)} runs).",
    ]
    write_between(PAGES / "choice.md", mark_of("measure_recipes"), "\n".join(lines))


def hardware() -> str:
    """Return the number and kind of CPU cores."""
    return f"{os.cpu_count()} CPU cores ({platform.machine()})"


def main() -> None:
    """Measure, then write the results."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder of the image sets")
    parser.add_argument("--recipes", nargs="+", choices=sorted(SETS), default=sorted(SETS))
    parser.add_argument("--strategies", nargs="+", choices=STRATEGIES, default=["auto"], help="several are compared")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--runs", type=Path, default=Path("runs"), help="folder of the run folders")
    arguments = parser.parse_args()
    results: dict[str, dict[str, list[RunResult]]] = {
        name: {strategy: [] for strategy in arguments.strategies} for name in arguments.recipes
    }
    for seed in arguments.seeds:
        for name, by_strategy in results.items():
            for strategy, measured in by_strategy.items():
                result = measure(name, strategy, arguments.data / SETS[name].folder, seed, arguments.runs)
                measured.append(result)
                print(f"{name} seed {seed}: {result}", flush=True)
    if len(arguments.strategies) > 1:
        words = [f"--recipes {' '.join(results)}", f"--strategies {' '.join(arguments.strategies)}"]
        words.append(f"--seeds {' '.join(map(str, arguments.seeds))}")
        write_comparison(results, f"python -m experiments.measure_recipes --data DIR {' '.join(words)}")
        return
    automatic = {name: by_strategy[arguments.strategies[0]] for name, by_strategy in results.items()}
    for name, measured in automatic.items():
        write_header(name, measured)
    write_table(automatic)
    if set(SHOWN) <= automatic.keys():
        write_examples(automatic)


if __name__ == "__main__":
    main()
