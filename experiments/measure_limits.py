"""Compare the passes of this toolkit with those of the bare network; write a part of the benchmarks page.

    python -m experiments.measure_limits --data DIR [--seeds 0 1 2] [--runs FOLDER]

DIR holds image sets, each with train and test. Every contender runs in a process of its own (experiments.contenders),
one after another. Results that are in FOLDER/limits.jsonl are not measured again, so an interrupted program continues.
Run nothing else on the machine.
"""

import argparse
import os
import platform
import shutil
import statistics
from collections.abc import Sequence
from datetime import date
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from experiments.anytime import Results, paired, right
from experiments.benchmark_runs import BenchmarkRuns
from experiments.pages import mark_of, write_between
from experiments.paths import PAGES, RESULTS

LIMIT_SET = "scene15"
"""Image set of the comparison with the bare network; it has at least 1,000 training images."""

LIMITED = (
    "help", "bare", "linear_probe", "linear_probe, 60", "linear_probe, 400", "full, short", "partial, not cached",
    "partial", "again", "partial, 2 stages, not cached", "partial, 2 stages",
)  # fmt: skip
"""Contenders that run on `LIMIT_SET` with every seed; `again` is `partial` with the caches of the previous run."""


def median(results: Results, contender: str, name: str, seeds: Sequence[int], key: str = "seconds") -> float:
    """Return the median over the seeds of the value of a key, by default of the seconds."""
    return float(statistics.median(results[contender, name, seed][key] for seed in seeds))


def correct_shares(results: Results, contender: str, name: str, seeds: Sequence[int]) -> NDArray[np.float64]:
    """Return the share of the seeds with which each test image is classified correctly, (n_images,)."""
    shares: NDArray[np.float64] = np.mean([right(results[contender, name, seed]) for seed in seeds], axis=0)
    return shares


def difference(results: Results, contender: str, other: str, name: str, seeds: Sequence[int]) -> str:
    """Return the difference in accuracy between two contenders in points, with its 95 % interval, as text.

    It is paired by test image, of which each seed has its share.
    """
    shares = [correct_shares(results, each, name, seeds) for each in (contender, other)]
    mean, half = paired([shares[0]], [shares[1]])
    return f"{mean:+.1f} ({mean - half:+.1f} to {mean + half:+.1f})"


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


def main() -> None:
    """Run the contenders whose results are missing, then write the part of the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder of the image sets")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--runs", type=Path, default=Path("runs/limits"), help="folder of the results so far")
    arguments = parser.parse_args()
    runs = BenchmarkRuns(arguments.runs / "limits.jsonl", arguments.data)
    runs.measure_machine(LIMIT_SET)
    for seed in arguments.seeds:
        for contender in LIMITED:
            runs.run(contender, LIMIT_SET, seed)
    lines = [
        f"{os.cpu_count()} CPU cores ({platform.machine()}), {date.today()}, EfficientNet-Lite0 at 128 px,",
        f"{LIMIT_SET}, medians of {len(arguments.seeds)} runs. Command:",
        f"`python -m experiments.measure_limits --data DIR --seeds {' '.join(map(str, arguments.seeds))}`.",
        "",
        *LimitTable(runs.results, arguments.seeds).lines(),
    ]
    write_between(PAGES / "benchmarks.md", mark_of("measure_limits"), "\n".join(lines))
    shutil.copy(arguments.runs / "limits.jsonl", RESULTS / "limits.jsonl")


if __name__ == "__main__":
    main()
