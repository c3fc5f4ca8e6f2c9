"""Run this toolkit beside fastai, a competent user's script and the bare network; write docs/benchmarks.md and a plot.

    pip install -e '.[benchmark]'
    python -m experiments.benchmark --data DIR [--sets flowers12 ...] [--seeds 0 1 2] [--runs FOLDER]

DIR holds image sets, each with train and test. Every contender runs in a process of its own (`contenders.py`), one
after another, with the machine's speed measured before and nothing else kept between runs. What FOLDER holds already is
not repeated, so that an interrupted benchmark goes on where it stopped; experiments/results/benchmarks.jsonl.gz, unpacked to
FOLDER/benchmark.jsonl, has the results of the page. Leave the machine alone meanwhile.
"""

import argparse
import gzip
import json
import os
import platform
import shutil
import statistics
import subprocess
import sys
from collections.abc import Sequence
from datetime import date
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np

matplotlib.use("svg")
import matplotlib.pyplot as plt

ROOT = Path(__file__).resolve().parent.parent

SETS = ("flowers12", "ucmerced21", "clothing10", "brainmri3", "fashion10")

COMPARED = ("linear_probe", "auto", "fastai")
"""Run on every set with every seed."""

SCRIPTS = ("script, probe", "script, probe, tuned", "script", "script, tuned")
"""Run on the first set with the first seed."""

LIMITED = (
    "help", "bare", "linear_probe", "linear_probe, 60", "linear_probe, 400", "full, short", "partial, not cached",
    "partial", "again", "partial, 2 stages, not cached", "partial, 2 stages",
)  # fmt: skip
"""Run on the set for limits with every seed."""

LIMIT_SET = "scene15"
"""A set with at least 1,000 training images."""

NAMES = {
    "linear_probe": "finetune --strategy linear_probe",
    "auto": "finetune",
    "fastai": "fastai fine_tune(5)",
    "script, probe": "script: features + logistic regression, float32",
    "script, probe, tuned": "script: the same, bfloat16, channels-last",
    "script": "script: 5 epochs of all layers, float32",
    "script, tuned": "script: the same, bfloat16, channels-last",
}

Result = dict[str, Any]
Results = dict[tuple[str, str, int], Result]


class Runs:
    """The results so far, in a file with a line for each."""

    def __init__(self, folder: Path, data: Path) -> None:
        """Go on with what `folder` holds."""
        folder.mkdir(parents=True, exist_ok=True)
        self._file = folder / "benchmark.jsonl"
        self._cache = folder / "cache"
        self._data = data
        self.results: Results = {}
        for line in self._file.read_text("utf-8").splitlines() if self._file.exists() else ():
            row = json.loads(line)
            self.results[row["contender"], row["set"], row["seed"]] = row

    def run(self, contender: str, name: str, seed: int) -> None:
        """Run a contender, unless its result is there."""
        if (contender, name, seed) in self.results:
            return
        if contender != "again":
            self._forget()
        row = {"contender": contender, "set": name, "seed": seed} | self._call(contender, name, seed)
        with self._file.open("a", encoding="utf-8") as file:
            file.write(json.dumps(row) + "\n")
        self.results[contender, name, seed] = row
        print({key: value for key, value in row.items() if key != "correct"}, flush=True)

    def tune(self, name: str) -> None:
        """Let the machine's speed be measured, so that no contender's clock sees it."""
        if not (self._cache / "measurements").exists():
            self._call("linear_probe", name, 0)

    def copy_to(self, path: Path) -> None:
        """Write the results to a compressed file, the same one for the same results."""
        path.write_bytes(gzip.compress(self._file.read_bytes(), mtime=0))

    def _call(self, contender: str, name: str, seed: int) -> Result:
        command = [sys.executable, str(ROOT / "scripts" / "contenders.py")]
        command += ["partial" if contender == "again" else contender]
        command += ["--data", str(self._data / name), "--seed", str(seed)]
        environment = os.environ | {"FINETUNE_CACHE": str(self._cache.resolve()), "HF_HUB_OFFLINE": "1"}
        done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True, env=environment)
        result: Result = json.loads(done.stdout.splitlines()[-1])
        return result

    def _forget(self) -> None:
        for kind in ("pixels", "features", "activations"):
            shutil.rmtree(self._cache / kind, ignore_errors=True)


def median(results: Results, contender: str, name: str, seeds: Sequence[int], key: str = "seconds") -> float:
    """Return the median over the seeds."""
    return float(statistics.median(results[contender, name, seed][key] for seed in seeds))


def correct(results: Results, contender: str, name: str, seeds: Sequence[int]) -> Any:  # noqa: ANN401
    """Return the share of seeds (n_images,) in which each test image was labelled rightly."""
    return np.mean([[int(one) for one in results[contender, name, seed]["correct"]] for seed in seeds], axis=0)


def describe_accuracy(results: Results, contender: str, name: str, seeds: Sequence[int]) -> str:
    """Return mean and standard deviation of the test accuracy."""
    values = [float(np.mean([int(one) for one in results[contender, name, seed]["correct"]])) for seed in seeds]
    spread = f" ± {statistics.stdev(values):.3f}" if len(values) > 1 else ""
    return f"{statistics.mean(values):.3f}{spread}"


def difference(results: Results, contender: str, other: str, name: str, seeds: Sequence[int]) -> str:
    """Return the difference in accuracy, in points, with its 95 % interval over the test images."""
    paired = correct(results, contender, name, seeds) - correct(results, other, name, seeds)
    error = 1.96 * float(paired.std(ddof=1)) / len(paired) ** 0.5
    return f"{100 * paired.mean():+.1f} ({100 * (paired.mean() - error):+.1f} to {100 * (paired.mean() + error):+.1f})"


def compare(results: Results, sets: Sequence[str], seeds: Sequence[int]) -> list[str]:
    """Return the table of this toolkit and fastai."""
    lines = [
        "| set | contender | test accuracy | seconds | fastai's seconds over these | accuracy against fastai, points |",
        "|---|---|---|---|---|---|",
    ]
    for name in sets:
        peer = median(results, "fastai", name, seeds)
        for contender in COMPARED:
            seconds = median(results, contender, name, seeds)
            against = "" if contender == "fastai" else difference(results, contender, "fastai", name, seeds)
            lines.append(
                f"| {name} | {NAMES[contender]} | {describe_accuracy(results, contender, name, seeds)} | "
                f"{seconds:.1f} | {peer / seconds:.1f} x | {against} |"
            )
    return lines


def compare_scripts(results: Results, name: str, seeds: Sequence[int]) -> list[str]:
    """Return the table of this toolkit and the scripts."""
    lines = ["| contender | test accuracy | seconds |", "|---|---|---|"]
    for contender in (*SCRIPTS, *COMPARED):
        accuracy = describe_accuracy(results, contender, name, seeds)
        lines.append(f"| {NAMES[contender]} | {accuracy} | {median(results, contender, name, seeds):.1f} |")
    return lines


def compare_limits(results: Results, seeds: Sequence[int]) -> list[str]:
    """Return how near this toolkit comes to the bare network."""

    def of(contender: str, key: str) -> float:
        return median(results, contender, LIMIT_SET, seeds, key)

    def over_bare(contender: str) -> float:
        """Return the speed of training steps over that of bare passes just before and after, in the same process."""
        rows = [results[contender, LIMIT_SET, seed] for seed in seeds]
        return float(statistics.median(row["training_images_per_second"] / row["bare_training"] for row in rows))

    images, some = (
        results[name, LIMIT_SET, seeds[0]]["train_images"] for name in ("linear_probe", "linear_probe, 400")
    )
    whole, part = of("linear_probe", "until_trained"), of("linear_probe, 400", "until_trained")
    fixed = whole - images * (whole - part) / (images - some)
    least = images * (1 / of("bare", "decoding") + 1 / of("bare", "forward"))
    full = of("full, short", "training_images_per_second")
    cached = of("partial", "training_images_per_second")
    uncached = of("partial, not cached", "training_images_per_second")
    short = of("partial, 2 stages", "training_images_per_second")
    few = results["linear_probe, 60", LIMIT_SET, seeds[0]]["train_images"]
    rows = [
        ("`--help`, with the start of Python", f"{of('help', 'seconds'):.2f} s"),
        (
            f"evidence + linear probe on {few} images, where almost all is what every run costs, imports apart",
            f"{of('linear_probe, 60', 'until_trained'):.2f} s",
        ),
        ("bare decoding", f"{of('bare', 'decoding'):.0f} images/s"),
        ("bare forward pass, best of all ways", f"{of('bare', 'forward'):.0f} images/s"),
        ("bare forward pass, the tutorials' way", f"{of('bare', 'tutorial_forward'):.0f} images/s"),
        (
            "bare forward + backward pass, best of all ways, with our gradients of convolutions",
            f"{of('bare', 'training'):.0f} images/s",
        ),
        ("the same with batches of 64 instead of 32", f"{of('bare', 'larger_training'):.0f} images/s"),
        ("with batches of 32, but nothing of ours", f"{of('bare', 'unaided_training'):.0f} images/s"),
        ("bare forward + backward pass, the tutorials' way", f"{of('bare', 'tutorial_training'):.0f} images/s"),
        (f"evidence + linear probe on {images} images, all in all", f"{whole:.2f} s"),
        (
            f"of it fixed, by the line through {some} and {images} images (with the similarity, of 200 images at most)",
            f"{fixed:.2f} s",
        ),
        ("bare decoding + forward pass of these images", f"{least:.2f} s"),
        ("**all in all, over the bare passes**", f"**{whole / least:.2f} x**"),
        ("**without what is fixed, over the bare passes**", f"**{(whole - fixed) / least:.2f} x**"),
        ("`partial` on images that it saw before, until it trains", f"{of('again', 'until_training'):.2f} s"),
        ("`full`, steps with reading and optimizer", f"{full:.0f} images/s"),
        ("**`full` over bare passes just before and after it**", f"**{over_bare('full, short'):.2f} x**"),
        ("**`full` over the tutorials' way**", f"**{full / of('bare', 'tutorial_training'):.2f} x**"),
        ("`partial` from kept activations", f"{cached:.0f} images/s"),
        ("`partial` without them", f"{uncached:.0f} images/s"),
        (
            "**kept over not kept**, in the same manner",
            f"**{over_bare('partial') / over_bare('partial, not cached'):.2f} x**",
        ),
        (
            "**`partial` over `full`**, each over bare passes just before and after it",
            f"**{over_bare('partial') / over_bare('full, short'):.2f} x**",
        ),
        (
            "accuracy of kept against not kept, points",
            difference(results, "partial", "partial, not cached", LIMIT_SET, seeds),
        ),
        ("`partial` of 2 stages, from kept activations", f"{short:.0f} images/s"),
        (
            "**kept over not kept**, in the same manner",
            f"**{over_bare('partial, 2 stages') / over_bare('partial, 2 stages, not cached'):.2f} x**",
        ),
        (
            "**`partial` of 2 stages over `full`**, in the same manner",
            f"**{over_bare('partial, 2 stages') / over_bare('full, short'):.2f} x**",
        ),
        (
            "accuracy of kept against not kept, points",
            difference(results, "partial, 2 stages", "partial, 2 stages, not cached", LIMIT_SET, seeds),
        ),
        (
            "accuracy of 2 stages against the planned ones, points",
            difference(results, "partial, 2 stages", "partial", LIMIT_SET, seeds),
        ),
    ]
    return ["| what | measured |", "|---|---|", *(f"| {what} | {value} |" for what, value in rows)]


def plot(results: Results, sets: Sequence[str], seeds: Sequence[int], path: Path) -> None:
    """Draw accuracy against time."""
    figure, axes = plt.subplots(1, len(sets), figsize=(3 * len(sets), 3.2), squeeze=False)
    for axis, name in zip(axes[0], sets, strict=True):
        for contender in COMPARED:
            seconds = [results[contender, name, seed]["seconds"] for seed in seeds]
            values = [np.mean([int(one) for one in results[contender, name, seed]["correct"]]) for seed in seeds]
            axis.scatter(seconds, values, label=NAMES[contender], alpha=0.8)
        axis.set(title=name, xscale="log", xlabel="seconds")
    axes[0][0].set_ylabel("test accuracy")
    axes[0][0].legend(fontsize=7)
    figure.tight_layout()
    figure.savefig(path, metadata={"Date": None})


def write_page(results: Results, sets: Sequence[str], seeds: Sequence[int], command: str) -> None:
    """Write docs/benchmarks.md and its plot."""
    plot(results, sets, seeds, ROOT / "docs" / "benchmarks.svg")
    lines = [
        "# Benchmarks",
        "",
        f"{os.cpu_count()} CPU cores ({platform.machine()}), {date.today()}; EfficientNet-Lite0 at 128 px, the same",
        f"weights, training and test images for all. Medians of {len(seeds)} runs. Clocks start after the imports;",
        "the speed of the machine was measured before, everything else is done anew in each run. Command:",
        f"`{command}`.",
        "",
        "![Test accuracy against seconds](benchmarks.svg)",
        "",
        "## Beside fastai",
        "",
        *compare(results, sets, seeds),
        "",
        "Differences are paired by test image; intervals are 95 %.",
        "",
        f"## Beside a competent user's script ({sets[0]}, seed {seeds[0]})",
        "",
        *compare_scripts(results, sets[0], seeds[:1]),
        "",
        f"## Beside the bare network ({LIMIT_SET})",
        "",
        *compare_limits(results, seeds),
    ]
    (ROOT / "docs" / "benchmarks.md").write_text("\n".join(lines) + "\n", "utf-8")


def main() -> None:
    """Run what is missing, then write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder of the image sets")
    parser.add_argument("--sets", nargs="+", default=list(SETS))
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--runs", type=Path, default=Path("runs/benchmark"), help="where results are kept")
    arguments = parser.parse_args()
    runs = Runs(arguments.runs, arguments.data)
    runs.tune(arguments.sets[0])
    for seed in arguments.seeds:
        for name in arguments.sets:
            for contender in COMPARED:
                runs.run(contender, name, seed)
    for seed in arguments.seeds:
        for contender in LIMITED:
            runs.run(contender, LIMIT_SET, seed)
    for contender in SCRIPTS:
        runs.run(contender, arguments.sets[0], arguments.seeds[0])
    words = f" --sets {' '.join(arguments.sets)}" if arguments.sets != list(SETS) else ""
    command = f"python -m experiments.benchmark --data DIR{words} --seeds {' '.join(map(str, arguments.seeds))}"
    write_page(runs.results, arguments.sets, arguments.seeds, command)
    runs.copy_to(ROOT / "docs" / "benchmarks.jsonl.gz")


if __name__ == "__main__":
    main()
