"""Compare runs on the images that all of them predicted without training on them: paired, image by image.

A difference is that of two trained models. How far another seed would move either of them is not in it, and the notes
say so.
"""

import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy.stats import binomtest

from finetune.errors import RunFolderError
from finetune.predict.intervals import wilson_interval
from finetune.predict.links import SMALLEST_PROBABILITY
from finetune.runs.folder import RunFolder
from finetune.runs.image_tables import read_predictions
from finetune.runs.run_data import contents_in
from finetune.runs.scoring_models import count_models, describe_models

LEVEL = 0.05
"""Largest p-value of a difference that is called one."""

NORMAL = 1.96
"""Number of standard errors on each side of a 95 % interval."""


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


@dataclass(frozen=True, slots=True, kw_only=True)
class ClassDifference:
    """How a run differs from the first one on the common images of one class."""

    name: str
    """Name of the class."""
    count: int
    """Number of its common images."""
    reference: int
    """Number of them that the first run predicts correctly."""
    right: int
    """Number of them that this run predicts correctly."""
    p_value: float
    """p-value of the exact McNemar test, after Holm's correction for the number of classes."""

    @property
    def difference(self) -> float:
        """Recall of this run less that of the first one."""
        return (self.right - self.reference) / self.count


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
    classes: tuple[ClassDifference, ...]
    """The classes on which the runs differ, the largest difference first."""

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
    """Several runs, compared on the images that all of them predicted."""

    images: str
    """The common images, in words."""
    runs: tuple[ComparedRun, ...]
    """The runs, in the order in which they were given."""
    tests: tuple[PairedTest, ...]
    """Each other run against the first one."""
    notes: tuple[str, ...]
    """What the tests do not say."""
    predictions: Mapping[str, pd.DataFrame]
    """Each run's predictions of the common images, in one order."""

    def right(self, path: str) -> NDArray[np.bool_]:
        """Return whether a run predicts each common image correctly, (n_images,)."""
        return _is_right(self.predictions[path])

    def noting(self, *notes: str) -> "Comparison":
        """Return this comparison with further notes; empty ones are left out."""
        return replace(self, notes=(*self.notes, *filter(None, notes)))


def compare(folders: Sequence[RunFolder], tables: Sequence[pd.DataFrame] = (), images: str = "") -> Comparison:
    """Return the comparison of two or more runs; the first one is the reference.

    Args:
        folders: the folders of the runs.
        tables: predictions of each run on other images, as `list_predictions` makes them; by default those that are in
            the folders.
        images: these images, in words.

    Raises:
        RunFolderError: a run has no predictions, or no image was tested (or held out) by all runs, with one label.
    """
    if len({folder.path.resolve() for folder in folders}) < len(folders):
        raise RunFolderError("a run is given twice; give each run folder once")
    if not tables:
        tables = [read_predictions(folder.path) for folder in folders]
    paths = [str(folder.path) for folder in folders]
    split, common = _common_images(dict(zip(paths, tables, strict=True)))
    reference, right = paths[0], {path: _is_right(rows) for path, rows in common.items()}
    p_values = [mcnemar(right[reference], right[path]) for path in paths[1:]]
    labels = common[reference]["label"].to_numpy(dtype=object)
    return Comparison(
        images=f"{len(labels):,} {images or ('test images' if split == 'test' else 'held-out images')}",
        runs=tuple(_describe(folder, common[path], right[path]) for folder, path in zip(folders, paths, strict=True)),
        tests=tuple(
            _test(path, reference, right, labels, p_value)
            for path, p_value in zip(paths[1:], holm(p_values), strict=True)
        ),
        notes=tuple(filter(None, (_about_seeds(folders), "" if images or split != "test" else _about_reads(folders)))),
        predictions=common,
    )


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


def class_differences(
    first: NDArray[np.bool_], second: NDArray[np.bool_], labels: NDArray[np.object_]
) -> tuple[ClassDifference, ...]:
    """Return the classes on which two runs differ, the largest difference first.

    Args:
        first: whether the first run predicts each image correctly, (n_images,).
        second: the same of the second run, (n_images,).
        labels: class name of each image, (n_images,).
    """
    rows_of: dict[str, list[int]] = defaultdict(list)
    for row, label in enumerate(labels):
        rows_of[label].append(row)
    p_values = holm([mcnemar(first[rows], second[rows]) for rows in rows_of.values()])
    differences = [
        ClassDifference(
            name=name,
            count=len(rows),
            reference=int(first[rows].sum()),
            right=int(second[rows].sum()),
            p_value=p_value,
        )
        for (name, rows), p_value in zip(rows_of.items(), p_values, strict=True)
    ]
    found = [each for each in differences if each.right != each.reference]
    return tuple(sorted(found, key=lambda each: (-abs(each.difference), each.name)))


def _is_right(rows: pd.DataFrame) -> NDArray[np.bool_]:
    """Return whether each prediction is right, (n_images,)."""
    return (rows["label"] == rows["predicted"]).to_numpy(dtype=bool)


def _common_images(tables: dict[str, pd.DataFrame]) -> tuple[str, dict[str, pd.DataFrame]]:
    """Return the split to compare, and each run's predictions of the images that all runs have in it, in one order."""
    for split in ("test", "validation"):
        own = {path: _numbered(rows[rows["split"] == split]) for path, rows in tables.items()}
        first, *others = own.values()
        shared = first.index[[all(image in other.index for other in others) for image in first.index]]
        if len(shared):
            common = {path: rows.loc[shared].reset_index().drop(columns="number") for path, rows in own.items()}
            _refuse_other_labels(common)
            return split, common
    raise RunFolderError(
        f"no image was tested, or held out, by all of {', '.join(tables)}; compare runs of the same data and --seed, "
        f"or give labelled images that none of them was trained on: finetune compare --data"
    )


def _numbered(rows: pd.DataFrame) -> pd.DataFrame:
    """Return predictions by the path of the image and its number among those of the same path, which images of a data
    set without paths may share."""
    return rows.assign(number=rows.groupby("path").cumcount()).set_index(["path", "number"])


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
    count = len(folder.members)
    mean = f"mean of {count} models, the first: " if count > 1 else ""
    return ComparedRun(
        path=str(folder.path),
        label=f"{mean}{decisions.choice.chosen.label} of {decisions.plan.model}",
        num_images=decisions.evidence.num_images,
        top1=float(right.mean()),
        interval=wilson_interval(int(right.sum()), len(right)),
        log_loss=float(-np.log(rows["label_probability"].clip(lower=SMALLEST_PROBABILITY)).mean()),
        seconds=metrics.seconds.train,
    )


def _test(
    path: str, reference: str, right: dict[str, NDArray[np.bool_]], labels: NDArray[np.object_], p_value: float
) -> PairedTest:
    """Return the comparison of a run with the first one."""
    own, first = right[path], right[reference]
    gained, lost = int((own & ~first).sum()), int((first & ~own).sum())
    return PairedTest(
        path=path,
        reference=reference,
        count=len(labels),
        gained=gained,
        lost=lost,
        difference=float(own.mean() - first.mean()),
        interval=paired_interval(gained, lost, len(labels)),
        p_value=p_value,
        classes=class_differences(first, own, labels),
    )


def _about_seeds(folders: Sequence[RunFolder]) -> str:
    """Return a sentence about what the seeds of the runs leave open."""
    seeds = sorted({folder.read_plan().training_seed for folder in folders})
    which = f"the seed {seeds[0]}" if len(seeds) == 1 else f"the seeds {', '.join(map(str, seeds))}"
    return (
        f"each run is one training ({which}), so this compares models and not settings: another seed moves each "
        f"accuracy; repeat the runs with other seeds before you prefer a setting"
    )


def _about_reads(folders: Sequence[RunFolder]) -> str:
    """Return a sentence about how many models have scored the test split, if the runs have the same one."""
    first, *others = (contents_in(folder, "test") for folder in folders)
    if not first or any(other != first for other in others):
        return ""
    return describe_models(count_models(first), len(first), "test images")
