"""Write the benchmarks page, with tables and a plot of accuracy and time, from the results of experiments.benchmark."""

import os
import platform
import statistics
from collections.abc import Sequence
from datetime import date
from pathlib import Path

import matplotlib as mpl
import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray

from experiments.paths import IMAGES, PAGES
from experiments.rows import Row

COMPARED = ("linear_probe", "auto", "fastai")
"""Contenders that run on every set with every seed."""

SCRIPTS = ("script, probe", "script, probe, tuned", "script", "script, tuned")
"""Contenders that run on the first set with the first seed."""

LIMIT_SET = "scene15"
"""Image set of the comparison with the bare network; it has at least 1,000 training images."""

NAMES = {
    "linear_probe": "finetune --strategy linear_probe",
    "auto": "finetune",
    "fastai": "fastai fine_tune(5)",
    "script, probe": "script: features + logistic regression, float32",
    "script, probe, tuned": "script: the same, bfloat16, channels-last",
    "script": "script: 5 epochs of all layers, float32",
    "script, tuned": "script: the same, bfloat16, channels-last",
}
"""Names of the contenders on the page."""

Results = dict[tuple[str, str, int], Row]
"""Results by contender, set and seed."""


def median(results: Results, contender: str, name: str, seeds: Sequence[int], key: str = "seconds") -> float:
    """Return the median over the seeds of the value of a key, by default of the seconds."""
    return float(statistics.median(results[contender, name, seed][key] for seed in seeds))


def correct_shares(results: Results, contender: str, name: str, seeds: Sequence[int]) -> NDArray[np.float64]:
    """Return the share of the seeds with which each test image is classified correctly, (n_images,)."""
    shares: NDArray[np.float64] = np.mean(
        [[int(one) for one in results[contender, name, seed]["correct"]] for seed in seeds], axis=0
    )
    return shares


def accuracies(results: Results, contender: str, name: str, seeds: Sequence[int]) -> list[float]:
    """Return the test accuracy of each seed."""
    return [float(np.mean([int(one) for one in results[contender, name, seed]["correct"]])) for seed in seeds]


def describe_accuracy(results: Results, contender: str, name: str, seeds: Sequence[int]) -> str:
    """Return the mean and the standard deviation of the test accuracy over the seeds, as text."""
    values = accuracies(results, contender, name, seeds)
    spread = f" ± {statistics.stdev(values):.3f}" if len(values) > 1 else ""
    return f"{statistics.mean(values):.3f}{spread}"


def difference(results: Results, contender: str, other: str, name: str, seeds: Sequence[int]) -> str:
    """Return the difference in accuracy between two contenders in points, with its 95 % interval, as text.

    Differences are paired by test image. With s, their standard deviation, it is mean ± 1.96 s / sqrt(n_images).
    """
    paired = correct_shares(results, contender, name, seeds) - correct_shares(results, other, name, seeds)
    error = 1.96 * float(paired.std(ddof=1)) / len(paired) ** 0.5
    return f"{100 * paired.mean():+.1f} ({100 * (paired.mean() - error):+.1f} to {100 * (paired.mean() + error):+.1f})"


def compare_with_fastai(results: Results, sets: Sequence[str], seeds: Sequence[int]) -> list[str]:
    """Return the table that compares this toolkit with fastai, as lines."""
    lines = [
        "| set | contender | test accuracy | seconds | times faster than fastai | accuracy minus fastai's, points |",
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


def compare_with_scripts(results: Results, name: str, seeds: Sequence[int]) -> list[str]:
    """Return the table that compares this toolkit with the scripts, as lines."""
    lines = ["| contender | test accuracy | seconds |", "|---|---|---|"]
    for contender in (*SCRIPTS, *COMPARED):
        accuracy = describe_accuracy(results, contender, name, seeds)
        lines.append(f"| {NAMES[contender]} | {accuracy} | {median(results, contender, name, seeds):.1f} |")
    return lines


class LimitTable:
    """The table that compares this toolkit with the bare network on `LIMIT_SET`."""

    def __init__(self, results: Results, seeds: Sequence[int]) -> None:
        """Keep the results that the table shows."""
        self._results = results
        self._seeds = seeds

    def lines(self) -> list[str]:
        """Return the lines of the table."""
        rows = [*self._bare(), *self._probe(), *self._full(), *self._partial()]
        return ["| what | measured |", "|---|---|", *(f"| {what} | {value} |" for what, value in rows)]

    def _median(self, contender: str, key: str) -> float:
        return median(self._results, contender, LIMIT_SET, self._seeds, key)

    def _over_bare(self, contender: str) -> float:
        """Return the speed of training steps relative to bare passes before and after, in the same process."""
        rows = [self._results[contender, LIMIT_SET, seed] for seed in self._seeds]
        return float(statistics.median(row["training_images_per_second"] / row["bare_training"] for row in rows))

    def _ratio(self, contender: str, other: str) -> str:
        return f"**{self._over_bare(contender) / self._over_bare(other):.2f} x**"

    def _difference(self, contender: str, other: str) -> str:
        return difference(self._results, contender, other, LIMIT_SET, self._seeds)

    def _num_images(self, contender: str) -> int:
        return int(self._results[contender, LIMIT_SET, self._seeds[0]]["train_images"])

    def _bare(self) -> list[tuple[str, str]]:
        few = self._num_images("linear_probe, 60")
        return [
            ("`--help`, including the start of Python", f"{self._median('help', 'seconds'):.2f} s"),
            (
                f"evidence + linear probe on {few} images, nearly all of it costs that every run has, without imports",
                f"{self._median('linear_probe, 60', 'until_trained'):.2f} s",
            ),
            ("bare decoding", f"{self._median('bare', 'decoding'):.0f} images/s"),
            ("bare forward pass, the fastest settings", f"{self._median('bare', 'forward'):.0f} images/s"),
            ("bare forward pass, as in tutorials", f"{self._median('bare', 'tutorial_forward'):.0f} images/s"),
            (
                "bare forward + backward pass, the fastest settings, with this toolkit's gradients of convolutions",
                f"{self._median('bare', 'training'):.0f} images/s",
            ),
            ("the same with batches of 64 instead of 32", f"{self._median('bare', 'larger_training'):.0f} images/s"),
            (
                "with batches of 32 and PyTorch's gradients of convolutions",
                f"{self._median('bare', 'unaided_training'):.0f} images/s",
            ),
            (
                "bare forward + backward pass, as in tutorials",
                f"{self._median('bare', 'tutorial_training'):.0f} images/s",
            ),
        ]

    def _probe(self) -> list[tuple[str, str]]:
        images, some = (self._num_images(name) for name in ("linear_probe", "linear_probe, 400"))
        whole, part = (self._median(name, "until_trained") for name in ("linear_probe", "linear_probe, 400"))
        # The line through (some, part) and (images, whole) meets the axis at the fixed cost.
        fixed = whole - images * (whole - part) / (images - some)
        least = images * (1 / self._median("bare", "decoding") + 1 / self._median("bare", "forward"))
        return [
            (f"evidence + linear probe on {images} images, in total", f"{whole:.2f} s"),
            (
                f"fixed part of it, by the line through {some} and {images} images (includes the domain similarity, "
                f"which uses 200 images at most)",
                f"{fixed:.2f} s",
            ),
            ("bare decoding + forward pass of these images", f"{least:.2f} s"),
            ("**total over the bare passes**", f"**{whole / least:.2f} x**"),
            ("**total without the fixed part over the bare passes**", f"**{(whole - fixed) / least:.2f} x**"),
        ]

    def _full(self) -> list[tuple[str, str]]:
        full = self._median("full, short", "training_images_per_second")
        return [
            ("`partial` on cached images, until it trains", f"{self._median('again', 'until_training'):.2f} s"),
            ("`full`, steps with reading and optimizer", f"{full:.0f} images/s"),
            ("**`full` over bare passes just before and after it**", f"**{self._over_bare('full, short'):.2f} x**"),
            (
                "**`full` over the bare passes as in tutorials**",
                f"**{full / self._median('bare', 'tutorial_training'):.2f} x**",
            ),
        ]

    def _partial(self) -> list[tuple[str, str]]:
        cached, uncached = (
            self._median(name, "training_images_per_second") for name in ("partial", "partial, not cached")
        )
        two_stages = self._median("partial, 2 stages", "training_images_per_second")
        return [
            ("`partial` from cached activations", f"{cached:.0f} images/s"),
            ("`partial` without them", f"{uncached:.0f} images/s"),
            (
                "**cached over not cached**, each relative to bare passes just before and after it",
                self._ratio("partial", "partial, not cached"),
            ),
            ("**`partial` over `full`**, measured in the same way", self._ratio("partial", "full, short")),
            (
                "accuracy, cached minus not cached, points",
                self._difference("partial", "partial, not cached"),
            ),
            ("`partial` of 2 stages, from cached activations", f"{two_stages:.0f} images/s"),
            (
                "**cached over not cached**, measured in the same way",
                self._ratio("partial, 2 stages", "partial, 2 stages, not cached"),
            ),
            (
                "**`partial` of 2 stages over `full`**, measured in the same way",
                self._ratio("partial, 2 stages", "full, short"),
            ),
            (
                "accuracy, cached minus not cached, points",
                self._difference("partial, 2 stages", "partial, 2 stages, not cached"),
            ),
            (
                "accuracy, 2 stages minus the planned number of stages, points",
                self._difference("partial, 2 stages", "partial"),
            ),
        ]


def plot(results: Results, sets: Sequence[str], seeds: Sequence[int], path: Path) -> None:
    """Draw test accuracy against seconds."""
    figure = Figure(figsize=(3 * len(sets), 3.2))
    axes = figure.subplots(1, len(sets), squeeze=False)[0]
    for axis, name in zip(axes, sets, strict=True):
        for contender in COMPARED:
            seconds = [results[contender, name, seed]["seconds"] for seed in seeds]
            axis.scatter(seconds, accuracies(results, contender, name, seeds), label=NAMES[contender], alpha=0.8)
        axis.set(title=name, xscale="log", xlabel="seconds")
    axes[0].set_ylabel("test accuracy")
    axes[0].legend(fontsize=7)
    figure.tight_layout()
    with mpl.rc_context({"svg.hashsalt": "finetune"}):
        figure.savefig(path, metadata={"Date": None})


def write_page(results: Results, sets: Sequence[str], seeds: Sequence[int], command: str) -> None:
    """Write docs/explanation/benchmarks.md and its plot."""
    plot(results, sets, seeds, IMAGES / "benchmarks.svg")
    lines = [
        "# Benchmarks",
        "",
        f"{os.cpu_count()} CPU cores ({platform.machine()}), {date.today()}. All contenders have the same network",
        "(EfficientNet-Lite0 at 128 px), pretrained weights, training and test images. Times are medians of",
        f"{len(seeds)} runs. Clocks start after the imports. The speed of the machine is measured beforehand;",
        "everything else is computed again in each run. Command:",
        f"`{command}`.",
        "",
        "![Test accuracy against seconds](../images/benchmarks.svg)",
        "",
        "## Compared with fastai",
        "",
        *compare_with_fastai(results, sets, seeds),
        "",
        "Differences are paired by test image; intervals are 95 %.",
        "",
        f"## Compared with a user's script ({sets[0]}, seed {seeds[0]})",
        "",
        *compare_with_scripts(results, sets[0], seeds[:1]),
        "",
        f"## Compared with the bare network ({LIMIT_SET})",
        "",
        *LimitTable(results, seeds).lines(),
    ]
    (PAGES / "benchmarks.md").write_text("\n".join(lines) + "\n", "utf-8")
