"""Compare runs on the images that all of them were evaluated on: paired, image by image."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from markupsafe import Markup
from numpy.typing import NDArray
from scipy.stats import binomtest

from finetune.errors import RunFolderError
from finetune.predict.metrics import SMALLEST_PROBABILITY, wilson_interval
from finetune.runs.folder import RunFolder
from finetune.runs.image_tables import read_predictions
from finetune.runs.page.charts import Mark, accuracy_against_time
from finetune.runs.page.evaluated import Illustrator, ImagePrediction
from finetune.runs.page.figures import interval_bar
from finetune.runs.page.pictures import SMALL, find_again

LEVEL = 0.05
"""Largest p-value of a difference that is called one."""

NORMAL = 1.96
"""Number of standard errors on each side of a 95 % interval."""

MOST_SHOWN = 8
"""Largest number of images that are shown for each of the two ways in which two runs differ."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ComparedRun:
    """A run, with its results on the common images."""

    path: str
    """Folder of the run, as it was given."""
    label: str
    """Candidate and network of the run."""
    num_images: int
    """Number of its training images."""
    top1: float
    """Share of the common images that it predicts correctly."""
    interval: tuple[float, float]
    """95 % interval of that share (Wilson)."""
    log_loss: float
    """Mean log-loss on the common images, in nats."""
    seconds: float
    """Wall time of its training, in seconds."""
    bar: Markup
    """Figure of the share and its interval."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PairedTest:
    """The comparison of a run with the first one, image by image."""

    path: str
    """Folder of the run."""
    reference: str
    """Folder of the first run."""
    count: int
    """Number of common images."""
    gained: int
    """Number of images that this run alone predicts correctly."""
    lost: int
    """Number of images that the first run alone predicts correctly."""
    difference: float
    """Accuracy of this run less that of the first one."""
    interval: tuple[float, float]
    """95 % interval of the difference."""
    p_value: float
    """p-value of the exact McNemar test, after Holm's correction for the number of compared runs."""
    gained_pictures: tuple[ImagePrediction, ...]
    """Images that this run alone predicts correctly, with the wrong predictions of the first run."""
    lost_pictures: tuple[ImagePrediction, ...]
    """Images that the first run alone predicts correctly, with the wrong predictions of this run."""

    @property
    def sentence(self) -> str:
        """The result in one sentence."""
        low, high = (100 * end for end in self.interval)
        verdict = f"the {self.count:,} images do not tell them apart"
        if self.p_value <= LEVEL:
            verdict = f"{self.path} is {'more' if self.difference > 0 else 'less'} accurate"
        return (
            f"{self.path} against {self.reference}: {100 * self.difference:+.1f} points (95 %: {low:+.1f} to "
            f"{high:+.1f}), {self.gained} images gained and {self.lost} lost, McNemar p = {self.p_value:.2g}: {verdict}"
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    """Several runs, compared on the images that all of them were evaluated on."""

    images: str
    """The common images, in words."""
    runs: tuple[ComparedRun, ...]
    """The runs, in the order in which they were given."""
    tests: tuple[PairedTest, ...]
    """Each other run against the first one."""
    chart: Markup
    """Chart of accuracy against time."""


def compare(folders: Sequence[RunFolder]) -> Comparison:
    """Return the comparison of two or more runs; the first one is the reference.

    Raises:
        RunFolderError: a run has no predictions, or no image was tested (or held out) by all runs, with one label.
    """
    tables = {str(folder.path): read_predictions(folder.path) for folder in folders}
    if len(tables) < len(folders):
        raise RunFolderError("a run is given twice; give each run folder once")
    split, common = _common_images(tables)
    right = {path: (rows["label"] == rows["predicted"]).to_numpy() for path, rows in common.items()}
    runs = tuple(_describe(folder, common[str(folder.path)], right[str(folder.path)]) for folder in folders)
    reference = str(folders[0].path)
    p_values = [mcnemar(right[reference], right[run.path]) for run in runs[1:]]
    plan = folders[0].read_plan()
    illustrator = Illustrator(find_again(plan), plan, None, ())
    tests = tuple(
        _test(run.path, reference, common, right, p_value, illustrator)
        for run, p_value in zip(runs[1:], holm(p_values), strict=True)
    )
    kinds = ["chosen", *("plain" for _ in tests)]
    marks = [
        Mark(max(run.seconds, 1.0), run.top1, run.interval, kind, str(number), run.path)
        for number, (run, kind) in enumerate(zip(runs, kinds, strict=True), start=1)
    ]
    images = f"{len(right[reference]):,} {'test' if split == 'test' else 'held-out'} images"
    about = f"Accuracy on {images} against the time of the training, of {len(runs)} runs"
    return Comparison(images=images, runs=runs, tests=tests, chart=accuracy_against_time(marks, about))


def mcnemar(first: NDArray[np.bool_], second: NDArray[np.bool_]) -> float:
    """Return the p-value of the exact McNemar test (McNemar 1947) of two runs on the same images.

    Under the null hypothesis, an image that one run alone predicts correctly is as likely to be one of the first as one
    of the second.

    >>> mcnemar(np.array([True] * 6 + [False]), np.array([False] * 6 + [True]))
    0.125

    Args:
        first: whether the first run predicts each image correctly, (n_images,).
        second: the same of the second run, (n_images,).
    """
    lost, gained = int((first & ~second).sum()), int((second & ~first).sum())
    # Two-sided: 2 P(X <= min(lost, gained)) with X ~ Binomial(lost + gained, 1/2).
    return float(binomtest(min(lost, gained), lost + gained).pvalue) if lost + gained else 1.0


def holm(p_values: Sequence[float]) -> list[float]:
    """Return p-values after Holm's correction (Holm 1979) for their number.

    >>> holm([0.01, 0.04, 0.03])
    [0.03, 0.06, 0.06]
    """
    # The i-th smallest of m p-values (i = 0 ..) is multiplied by m - i; none is below the one before it.
    corrected, largest = [0.0] * len(p_values), 0.0
    for rank, place in enumerate(sorted(range(len(p_values)), key=p_values.__getitem__)):
        largest = max(largest, min(1.0, (len(p_values) - rank) * p_values[place]))
        corrected[place] = largest
    return corrected


def paired_interval(gained: int, lost: int, count: int) -> tuple[float, float]:
    """Return the 95 % interval of the difference of two accuracies on the same images (Agresti & Min 2005).

    Args:
        gained: number of images that only the second run predicts correctly.
        lost: number of images that only the first run predicts correctly.
        count: number of images.
    """
    # Half an image is added to each of the four cells: n' = n + 2. Then (c - b) / n' +- 1.96 se with
    # se = sqrt(b + c - (c - b)^2 / n') / n'.
    more, fewer, total = gained + 0.5, lost + 0.5, count + 2.0
    difference = more - fewer
    error = math.sqrt(more + fewer - difference**2 / total) / total
    return difference / total - NORMAL * error, difference / total + NORMAL * error


def _common_images(tables: dict[str, pd.DataFrame]) -> tuple[str, dict[str, pd.DataFrame]]:
    """Return the split to compare, and each run's predictions of the images that all runs have in it, in one order."""
    for split in ("test", "validation"):
        own = {path: rows[rows["split"] == split].set_index("path") for path, rows in tables.items()}
        first, *others = own.values()
        shared = first.index[[all(image in other.index for other in others) for image in first.index]]
        if len(shared):
            common = {path: rows.loc[shared].reset_index() for path, rows in own.items()}
            _refuse_other_labels(common)
            return split, common
    raise RunFolderError(
        f"no image was tested, or held out, by all of {', '.join(tables)}; compare runs of the same data and --seed"
    )


def _refuse_other_labels(common: dict[str, pd.DataFrame]) -> None:
    """Refuse runs in which one image has several labels.

    Raises:
        RunFolderError: an image has another label in another run.
    """
    (reference, first), *others = common.items()
    for path, rows in others:
        differs = (rows["label"] != first["label"]).to_numpy()
        if differs.any():
            place = int(differs.argmax())
            raise RunFolderError(
                f"{first['path'][place]} is labelled {first['label'][place]!r} in {reference}, but "
                f"{rows['label'][place]!r} in {path}; compare runs of the same data"
            )


def _describe(folder: RunFolder, rows: pd.DataFrame, right: NDArray[np.bool_]) -> ComparedRun:
    """Return a run with its results on the common images."""
    decisions, metrics = folder.read_decisions(), folder.read_metrics()
    interval = wilson_interval(int(right.sum()), len(right))
    top1 = float(right.mean())
    count = len(folder.members)
    mean = f"mean of {count} models, the first: " if count > 1 else ""
    return ComparedRun(
        path=str(folder.path),
        label=f"{mean}{decisions.choice.chosen.label} of {decisions.plan.model}",
        num_images=decisions.evidence.num_images,
        top1=top1,
        interval=interval,
        log_loss=float(-np.log(rows["label_probability"].clip(lower=SMALLEST_PROBABILITY)).mean()),
        seconds=metrics.seconds.train,
        bar=interval_bar(top1, interval),
    )


def _test(
    path: str,
    reference: str,
    common: dict[str, pd.DataFrame],
    right: dict[str, NDArray[np.bool_]],
    p_value: float,
    illustrator: Illustrator,
) -> PairedTest:
    """Return the comparison of a run with the first one, with pictures of the images on which they differ."""
    gained, lost = right[path] & ~right[reference], right[reference] & ~right[path]
    count = len(gained)

    def show(run: str, rows: NDArray[np.bool_]) -> tuple[ImagePrediction, ...]:
        wrong = common[run][rows].sort_values("probability", ascending=False, kind="stable")
        return illustrator.draw(wrong.head(MOST_SHOWN), SMALL)

    return PairedTest(
        path=path,
        reference=reference,
        count=count,
        gained=int(gained.sum()),
        lost=int(lost.sum()),
        difference=float(right[path].mean() - right[reference].mean()),
        interval=paired_interval(int(gained.sum()), int(lost.sum()), count),
        p_value=p_value,
        gained_pictures=show(reference, gained),
        lost_pictures=show(path, lost),
    )
