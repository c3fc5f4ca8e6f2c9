"""Draw the comparison of runs: its chart, its intervals, and the images on which the runs differ."""

from dataclasses import dataclass

import numpy as np
from markupsafe import Markup
from numpy.typing import NDArray

from finetune.decide.plan import Plan
from finetune.runs.comparing import ComparedRun, Comparison, PairedTest
from finetune.runs.page.charts import Mark, accuracy_against_time
from finetune.runs.page.evaluated import Illustrator, ImagePrediction
from finetune.runs.page.figures import interval_bar
from finetune.runs.page.pictures import SMALL, find_again

MOST_SHOWN = 8
"""Largest number of images that are shown for each of the two ways in which two runs differ."""

MOST_CLASSES = 12
"""Largest number of classes on which two runs differ most that are listed."""


@dataclass(frozen=True, slots=True, kw_only=True)
class DrawnRun:
    """A run with the figure of its accuracy."""

    run: ComparedRun
    """The run."""
    bar: Markup
    """Figure of its accuracy and the interval."""


@dataclass(frozen=True, slots=True, kw_only=True)
class DrawnTest:
    """A paired test with pictures of the images on which the two runs differ."""

    test: PairedTest
    """The test."""
    gained_pictures: tuple[ImagePrediction, ...]
    """Images that this run alone predicts correctly, with the wrong predictions of the first run."""
    lost_pictures: tuple[ImagePrediction, ...]
    """Images that the first run alone predicts correctly, with the wrong predictions of this run."""


@dataclass(frozen=True, slots=True, kw_only=True)
class DrawnComparison:
    """A comparison as a page shows it."""

    comparison: Comparison
    """The comparison."""
    runs: tuple[DrawnRun, ...]
    """The runs, in the order in which they were given."""
    tests: tuple[DrawnTest, ...]
    """Each other run against the first one."""
    chart: Markup
    """Chart of accuracy against time."""


def draw_comparison(comparison: Comparison, plan: Plan) -> DrawnComparison:
    """Return a comparison with its figures and pictures.

    Args:
        comparison: the comparison.
        plan: the plan of the first run, which says how its images are read.
    """
    runs = comparison.runs
    illustrator = Illustrator(find_again(plan), plan, None)
    marks = [
        Mark(max(run.seconds, 1.0), run.top1, run.interval, "plain" if number > 1 else "chosen", str(number), run.path)
        for number, run in enumerate(runs, start=1)
    ]
    about = f"Accuracy on {comparison.images} against the time of the training, of {len(runs)} runs"
    return DrawnComparison(
        comparison=comparison,
        runs=tuple(DrawnRun(run=run, bar=interval_bar(run.top1, run.interval)) for run in runs),
        tests=tuple(_draw_test(test, comparison, illustrator) for test in comparison.tests),
        chart=accuracy_against_time(marks, about),
    )


def _draw_test(test: PairedTest, comparison: Comparison, illustrator: Illustrator) -> DrawnTest:
    """Return a paired test with pictures of the images on which the runs differ."""
    own, first = comparison.right(test.path), comparison.right(test.reference)

    def show(run: str, rows: NDArray[np.bool_]) -> tuple[ImagePrediction, ...]:
        wrong = comparison.predictions[run][rows].sort_values("probability", ascending=False, kind="stable")
        return illustrator.draw(wrong.head(MOST_SHOWN), SMALL)

    return DrawnTest(
        test=test, gained_pictures=show(test.reference, own & ~first), lost_pictures=show(test.path, first & ~own)
    )
